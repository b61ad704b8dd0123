# SPDX-License-Identifier: Apache-2.0
"""containerd and kubelet on the cluster's nodes.

Must not give a node its network: that is podlane's, or the peer's.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts import Hosts, wait_for
from tests.cluster.images import PAUSE
from tests.cluster.places import Host, Places

_CONTAINERD = f"""version = 2
oom_score = 0
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE}"
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""
ZONES = 3  # of which Kubernetes' tests of traffic distribution want two nodes each


def _kubelet_config(places: Places, pki: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        # The machine may be a container itself: no cgroups of QoS, no memory of the kernel's to keep.
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDNS": [places.dns_service[0]],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%",
                         "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
    }  # fmt: skip


def start(
    places: Places, hosts: Hosts, programs: Path, images: Sequence[Path]
) -> dict[str, subprocess.Popen[bytes]]:
    """Bring both daemons up on every node, with the images that they may be asked for.

    Returns the kubelets, by the names of their nodes.
    """
    kubelets = {}
    for node in places.nodes:
        config = hosts.state(node) / "containerd.toml"
        config.write_text(_CONTAINERD)
        hosts.start(node, f"containerd --config {config}", f"{node.name}-containerd")
    for node in places.nodes:
        wait_for(
            lambda node=node: hosts.run_on(node, "ctr version >/dev/null 2>&1 && echo up", check=False),
            30, f"containerd of {node.name}\n{hosts.log(f'{node.name}-containerd')}",
        )  # fmt: skip
        for image in images:
            hosts.run_on(node, f"ctr -n k8s.io images import {image}")
        kubelets[node.name] = kubelet(places, hosts, programs, node)
    return kubelets


def kubelet(places: Places, hosts: Hosts, programs: Path, node: Host) -> subprocess.Popen[bytes]:
    """Start a node's kubelet, which registers the node, in one of three zones."""
    pki = places.folder / "pki"
    config = hosts.state(node) / "kubelet.yaml"
    config.write_text(json.dumps(_kubelet_config(places, pki)))
    return hosts.start(
        node,
        f"{programs}/kubernetes kubelet --config {config} --kubeconfig {pki}/{node.name}.kubeconfig"
        f" --hostname-override {node.name} --node-ip {','.join(places.addresses(node))}"
        f" --node-labels topology.kubernetes.io/zone=zone-{node.number % ZONES} --v 2",
        f"{node.name}-kubelet",
    )
