# SPDX-License-Identifier: Apache-2.0
"""The peer in the same cluster: kube-proxy, and the reference plugins bridge and host-local.

Must not be started where podlane is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.cluster.control import Control
from tests.cluster.hosts import Hosts
from tests.cluster.places import Host, Places

PLUGINS = Path("/usr/lib/cni")


def start(places: Places, hosts: Hosts, control: Control, mode: str = "nftables") -> None:
    """Plugins, routes and kube-proxy on every node."""
    cidrs = {
        node: control.kubectl(f"get node {node.name} -o jsonpath={{.spec.podCIDRs[*]}}").split()
        for node in places.nodes
    }
    for node in places.nodes:
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            hosts.run_on(node, f"sysctl -qw {name}=1")
        for other in places.nodes:
            if other != node:
                for cidr in cidrs[other]:
                    via = other.ipv6 if ":" in cidr else other.ipv4
                    hosts.run_on(node, f"ip route replace {cidr} via {via}")
        _plugins(hosts, node, cidrs[node])
        hosts.start(
            node,
            f"{control.programs}/kubernetes kube-proxy --proxy-mode {mode}"
            f" --kubeconfig {places.folder}/pki/kube-proxy.kubeconfig"
            f" --hostname-override {node.name} --cluster-cidr {','.join(places.pod_cidrs)}"
            " --conntrack-max-per-core 0",
            f"{node.name}-kube-proxy",
        )


def _plugins(hosts: Hosts, node: Host, cidrs: list[str]) -> None:
    """The conflist comes last: with it the node is Ready."""
    root = hosts.state(node) / "root"
    binaries, configs = root / "opt/cni/bin", root / "etc/cni/net.d"
    for folder in (binaries, configs):
        folder.mkdir(parents=True, exist_ok=True)
    for plugin in ("bridge", "host-local", "loopback", "portmap"):
        shutil.copy(PLUGINS / plugin, binaries / plugin)
    ranges = [[{"subnet": cidr}] for cidr in cidrs]
    defaults = [{"dst": "::/0" if ":" in cidr else "0.0.0.0/0"} for cidr in cidrs]
    conflist = {
        "cniVersion": "1.0.0",
        "name": "bridge",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True,
             "ipam": {"type": "host-local", "ranges": ranges, "routes": defaults}},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }  # fmt: skip
    (configs / "10-bridge.conflist").write_text(json.dumps(conflist))
