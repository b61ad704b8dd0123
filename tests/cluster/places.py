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

POD_CIDRS = ("10.244.0.0/16", "fd00:244::/56")
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:96::/112")
API_SERVICE = ("10.96.0.1", "fd00:96::1")
DNS_SERVICE = ("10.96.0.10", "fd00:96::a")
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
        return tuple(Host(f"node-{one}", 10 + one) for one in range(1, self.node_count + 1))

    @property
    def server(self) -> str:
        return f"https://{self.control.ipv4}:{PORT}"

    def netns(self, host: Host) -> str:
        """The name of a host's namespace under /run/netns."""
        return f"plc-{self.name}-{host.name}"

    @property
    def cgroup_name(self) -> str:
        return f"podlane-cluster-{self.name}"
