# SPDX-License-Identifier: Apache-2.0
"""The control plane of a test cluster: etcd, API server, controllers, scheduler, on host `control`.

Must not know nodes beyond their names: kubelets register themselves.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster.hosts import Hosts, run, wait_for
from tests.cluster.pki import Pki
from tests.cluster.places import PORT, Places


class Control:
    """What runs on `control`, and kubectl."""

    def __init__(self, places: Places, hosts: Hosts, programs: Path) -> None:
        self.places, self.hosts, self.programs = places, hosts, programs
        self.pki_folder = places.folder / "pki"
        self.api_server: subprocess.Popen[bytes] | None = None

    def start(self, controllers: bool = True) -> None:
        """Bring it up; returns when the API server is ready."""
        host, places = self.places.control, self.places
        pki = Pki(self.pki_folder)
        sans = (host.ipv4, host.ipv6, "127.0.0.1", *places.api_service)
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        pki.certificate("apiserver", "kube-apiserver", sans=sans + names)
        pki.certificate("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        pki.certificate("front-proxy", "front-proxy-client")
        pki.certificate("admin", "admin", "system:masters")
        for user in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
            pki.certificate(user, f"system:{user}")
            pki.kubeconfig(user, places.server)
        pki.kubeconfig("admin", places.server)
        for node in places.nodes:
            pki.certificate(node.name, f"system:node:{node.name}", "system:nodes")
            pki.kubeconfig(node.name, places.server)
        self._daemon(
            "etcd",
            f"--data-dir {places.folder}/etcd --unsafe-no-fsync --name test --log-level warn"
            " --listen-client-urls http://127.0.0.1:2379"
            " --advertise-client-urls http://127.0.0.1:2379"
            " --listen-peer-urls http://127.0.0.1:2380",
        )
        self.start_api_server()
        if controllers:
            self._start_controllers()

    def start_api_server(self) -> None:
        """Bring the API server up, for the first time or once more; returns when it is ready."""
        at, places = self.pki_folder, self.places
        process = self._daemon(
            "kube-apiserver",
            "--etcd-servers http://127.0.0.1:2379 --allow-privileged=true"
            f" --advertise-address {places.addresses(places.control)[0]}"
            f" --bind-address :: --secure-port {PORT}"
            f" --service-cluster-ip-range {','.join(places.service_cidrs)}"
            f" --tls-cert-file {at}/apiserver.crt --tls-private-key-file {at}/apiserver.key"
            f" --client-ca-file {at}/ca.crt --authorization-mode Node,RBAC"
            " --enable-admission-plugins NodeRestriction"
            f" --kubelet-client-certificate {at}/kubelet-client.crt"
            f" --kubelet-client-key {at}/kubelet-client.key"
            " --kubelet-preferred-address-types InternalIP"
            " --service-account-issuer https://kubernetes.default.svc.cluster.local"
            f" --service-account-key-file {at}/sa.pub"
            f" --service-account-signing-key-file {at}/sa.key"
            f" --requestheader-client-ca-file {at}/ca.crt"
            " --requestheader-allowed-names front-proxy-client"
            " --requestheader-extra-headers-prefix X-Remote-Extra-"
            " --requestheader-group-headers X-Remote-Group"
            " --requestheader-username-headers X-Remote-User"
            f" --proxy-client-cert-file {at}/front-proxy.crt"
            f" --proxy-client-key-file {at}/front-proxy.key",
        )
        wait_for(self._ready, 120, f"API server\n{self.hosts.log('kube-apiserver')}")
        self.api_server = process

    def _start_controllers(self) -> None:
        at, places = self.pki_folder, self.places
        self._daemon(
            "kube-controller-manager",
            f"--kubeconfig {at}/kube-controller-manager.kubeconfig --leader-elect=false"
            " --use-service-account-credentials --allocate-node-cidrs"
            f" {'--node-cidr-mask-size 64' if places.family == 'ipv6' else ''}"
            f" {'--node-cidr-mask-size-ipv6 64' if places.family == 'dual' else ''}"
            f" --cluster-cidr {','.join(places.pod_cidrs)}"
            f" --service-cluster-ip-range {','.join(places.service_cidrs)}"
            f" --root-ca-file {at}/ca.crt --service-account-private-key-file {at}/sa.key"
            f" --cluster-signing-cert-file {at}/ca.crt --cluster-signing-key-file {at}/ca.key",
        )
        self._daemon(
            "kube-scheduler",
            f"--kubeconfig {at}/kube-scheduler.kubeconfig --leader-elect=false",
        )

    def _daemon(self, name: str, words: str) -> subprocess.Popen[bytes]:
        return self.hosts.start(
            self.places.control, f"{self.programs}/kubernetes {name} {words}", name
        )

    def _ready(self) -> bool:
        return "ok" in self.kubectl("get --raw /readyz", check=False)

    def kubectl(self, words: str, check: bool = True, stdin: str = "") -> str:
        """kubectl as the cluster's admin, on `control`; its output."""
        command = [
            *self.hosts.enter(self.places.control), f"{self.programs}/kubernetes", "kubectl",
            "--kubeconfig", f"{self.pki_folder}/admin.kubeconfig", *words.split(),
        ]  # fmt: skip
        done = subprocess.run(command, input=stdin, text=True, capture_output=True)
        if check and done.returncode:
            raise RuntimeError(f"kubectl {words}: {done.stderr.strip()}")
        return done.stdout

    def route_to_pods(self) -> None:
        """Routes to each node's pods, as the API server's proxy subresource needs them."""
        ns = self.places.netns(self.places.control)
        for node in self.places.nodes:
            cidrs = self.kubectl(f"get node {node.name} -o jsonpath={{.spec.podCIDRs[*]}}").split()
            for cidr in cidrs:
                via = node.ipv6 if ":" in cidr else node.ipv4
                run(f"ip -n {ns} route replace {cidr} via {via}")
