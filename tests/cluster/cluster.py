# SPDX-License-Identifier: Apache-2.0
"""One test cluster from nothing to Ready, and away again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.cluster import build, images, nodes, peer, podlane
from tests.cluster.control import Control
from tests.cluster.hosts import Hosts, wait_for
from tests.cluster.places import PORT, Host, Places

HERE = Path(__file__).parent


class Cluster:
    """A cluster by its places; `control` is there once it is up."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.hosts = Hosts(places)
        self.control = Control(places, self.hosts, Path())
        self.kubelets: dict[str, subprocess.Popen[bytes]] = {}

    def up(self, network: str, mode: str = "vxlan", programs: Path | None = None) -> None:
        """Bring it up with a network: podlane, peer, or none (nodes stay NotReady).

        Raises:
            RuntimeError: what did not come up, with the end of its log; the cluster is gone again.
        """
        programs = programs or build.programs()
        self.control = Control(self.places, self.hosts, programs)
        if self.places.folder.exists():
            raise RuntimeError(f"{self.places.name} is there already: `down` takes it away")
        began = time.monotonic()
        try:
            self._up(network, mode, programs)
        except BaseException:
            self.down()
            raise
        print(f"cluster: {self.places.name} is up with {network}"
              f" ({time.monotonic() - began:.0f} s)", flush=True)  # fmt: skip

    def _up(self, network: str, mode: str, programs: Path) -> None:
        places, hosts, control = self.places, self.hosts, self.control
        places.folder.mkdir(parents=True, mode=0o700)
        archives = images.make(programs, places.folder / "images", self._test_images(programs))
        if network == "podlane" or (network == "none" and podlane.IMAGE.is_file()):
            archives.append(podlane.image())
        say("hosts and control plane")
        hosts.make()
        control.start()
        say("nodes")
        self.kubelets = nodes.start(places, hosts, programs, archives)
        wait_for(lambda: len(self._nodes()) == places.node_count, 60, "nodes\n" + self._logs())
        wait_for(lambda: all(n["spec"].get("podCIDRs") for n in self._nodes()), 30, "podCIDRs")
        control.route_to_pods()
        if network == "none":
            say(
                f"without a network: podlane manifests --api-server {places.server} | kubectl apply -f -"
            )
            return
        if network == "peer":
            peer.start(places, hosts, control)
        else:
            podlane.install(control, mode)
        self.name_server()
        self.await_nodes(90)
        say("nodes are Ready")
        self.await_name_server()

    def name_server(self) -> None:
        """Ask for CoreDNS."""
        self.control.kubectl("apply -f -", stdin=self._coredns())

    def await_name_server(self) -> None:
        self.control.kubectl("-n kube-system rollout status deployment/coredns --timeout 120s")

    def await_nodes(self, seconds: float) -> None:
        """All nodes are there and Ready."""
        wait_for(self._all_ready, seconds, "nodes Ready\n" + self._logs())

    def _all_ready(self) -> bool:
        found = self._nodes()
        return len(found) == self.places.node_count and all(map(_ready, found))

    def restart_kubelet(self, node: Host) -> None:
        """End a node's kubelet and start it anew; the pods stay."""
        kubelet = self.kubelets[node.name]
        kubelet.terminate()
        kubelet.wait()
        self.kubelets[node.name] = nodes.kubelet(
            self.places, self.hosts, self.control.programs, node
        )

    def _coredns(self) -> str:
        ips = self.places.dns_service
        text = (HERE / "coredns.yaml").read_text()
        return text.replace("CLUSTER_IPS", json.dumps(ips)).replace("CLUSTER_IP", ips[0])

    @staticmethod
    def _test_images(programs: Path) -> list[str]:
        """Names of the images that the tests ask for and this cluster has."""
        tests = programs / "e2e.test"
        if not tests.is_file():
            return []
        listed = subprocess.run([tests, "--list-images"], capture_output=True, text=True,
                                env={**os.environ, "KUBE_TEST_REPO": TEST_REPOSITORY})  # fmt: skip
        wanted = ("agnhost", "busybox", "jessie-dnsutils", "nginx", "httpd", "pause",
                  "regression-issue-74839")  # fmt: skip
        return [one for one in listed.stdout.split() if any(f"-{w}-" in one for w in wanted)]

    def _nodes(self) -> list[dict[str, Any]]:
        found = self.control.kubectl("get nodes -o json", check=False)
        return list(json.loads(found)["items"]) if found else []

    def _logs(self) -> str:
        return "\n".join(self.hosts.log(f"{one.name}-kubelet", 15) for one in self.places.nodes)

    def publish(self, target: Path) -> None:
        """Write a kubeconfig that works from the machine itself, by a relay on its loopback."""
        relay = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.relay", self.places.netns(self.places.control),
             self.places.control.ipv4, str(PORT)],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, text=True,
        )  # fmt: skip
        (self.hosts.cgroup / "cgroup.procs").write_text(str(relay.pid))
        assert relay.stdout is not None
        port = relay.stdout.readline().strip()
        relay.stdout.close()
        text = (self.places.folder / "pki/admin.kubeconfig").read_text()
        target.write_text(text.replace(self.places.server, f"https://127.0.0.1:{port}"))
        target.chmod(0o600)
        print(f"cluster: export KUBECONFIG={target.resolve()}; kubectl is"
              f" {self.control.programs}/kubectl")  # fmt: skip

    def down(self) -> None:
        """Take all of it away."""
        self.hosts.destroy()
        print(f"cluster: {self.places.name} is gone", flush=True)


TEST_REPOSITORY = "localhost/e2e"


def say(words: str) -> None:
    """A step, as it begins."""
    print(f"cluster: {words}", flush=True)


def _ready(node: dict[str, Any]) -> bool:
    conditions = node["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
