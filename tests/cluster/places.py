# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and folders of a test cluster.

    control (etcd, API server, controllers, scheduler) ─┐
    outside (a host that is no node)                    ├─ bridge, 172.29.0.0/24, fd00:29::/64
    node-1, node-2 (containerd, kubelet)                ─┘

Everything is in namespaces of the cluster; the machine's own network gets nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PORT = 6443
BASE = Path("/var/lib/podlane-cluster")

# What a node has for itself of the machine's file tree. Debian's containerd looks for plugins
# in /usr/lib/cni by default; ours is told /opt/cni/bin, as Kubernetes' documentation has it.
PRIVATE_FOLDERS = (
    "/var/lib/containerd", "/run/containerd", "/var/lib/kubelet", "/etc/cni", "/opt/cni",
    "/var/lib/cni", "/run/netns", "/var/log/pods", "/var/log/containers", "/run/podlane",
    "/var/lib/podlane", "/etc/podlane",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace on the cluster's bridge; `number` is its addresses' last part."""

    name: str
    number: int

    @property
    def ipv4(self) -> str:
        return f"172.29.0.{self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd00:29::{self.number:x}"


@dataclass(frozen=True, slots=True)
class Places:
    """One cluster by its name."""

    name: str
    node_count: int
    family: str = "dual"
    domain: str = ""  # of the nodes' names, if they have one

    def _families(self, ipv4: str, ipv6: str) -> tuple[str, ...]:
        return {"dual": (ipv4, ipv6), "ipv4": (ipv4,), "ipv6": (ipv6,)}[self.family]

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """Of the cluster, a family each; nodes get theirs from them."""
        return self._families("10.244.0.0/16", "fd00:244::/56")

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        return self._families("10.96.0.0/16", "fd00:96::/112")

    @property
    def api_service(self) -> tuple[str, ...]:
        """ClusterIPs of the Service `kubernetes`."""
        return self._families("10.96.0.1", "fd00:96::1")

    @property
    def dns_service(self) -> tuple[str, ...]:
        """ClusterIPs of CoreDNS."""
        return self._families("10.96.0.10", "fd00:96::a")

    def addresses(self, host: Host) -> tuple[str, ...]:
        """A host's addresses that Kubernetes knows; every host has both families' all the same."""
        return self._families(host.ipv4, host.ipv6)

    @property
    def folder(self) -> Path:
        return BASE / self.name

    @property
    def control(self) -> Host:
        return Host("control", 1)

    @property
    def outside(self) -> Host:
        return Host("outside", 100)

    @property
    def nodes(self) -> tuple[Host, ...]:
        domain = f".{self.domain}" if self.domain else ""
        return tuple(Host(f"node-{one}{domain}", 10 + one) for one in range(1, self.node_count + 1))

    @property
    def server(self) -> str:
        address = self.addresses(self.control)[0]
        return f"https://{f'[{address}]' if ':' in address else address}:{PORT}"

    def netns(self, host: Host) -> str:
        """The name of a host's namespace under /run/netns."""
        return f"plc-{self.name}-{host.name}"

    @property
    def cgroup_name(self) -> str:
        return f"podlane-cluster-{self.name}"
