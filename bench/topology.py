# SPDX-License-Identifier: Apache-2.0
"""The peers: what a kernel without podlane does, built with plain `ip` in namespaces of their own.

No tc, no netfilter rules, and the kernel's own defaults for offloads on every veth.

    one node     client pod ─veth─ node ─veth─ server pod

    two nodes    client pod ─veth─ node 1 ─veth─ bridge ─veth─ node 2 ─veth─ server pod
                                     └────── vxlan ──────────────┘
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface, ip_address
from pathlib import Path

from bench.load import Target
from dataplane.model.errors import BadEnvironment

NAMESPACES = Path("/run/netns")
UNDERLAY_MTU = 1500
VXLAN_OVERHEAD = 50
VXLAN_PORT = 4789


class Net:
    """Namespaces under one prefix, random if none is given; links go with their namespaces."""

    def __init__(self, stack: ExitStack, prefix: str = "") -> None:
        self.prefix = prefix or f"plbench-{secrets.token_hex(3)}"
        self._stack = stack

    def path(self, name: str) -> Path:
        return NAMESPACES / f"{self.prefix}-{name}"

    def add(self, name: str) -> None:
        """A namespace with loopback up that forwards as a node does."""
        full = f"{self.prefix}-{name}"
        ip("netns", "add", full)
        self._stack.callback(ip, "netns", "delete", full)
        self.ip(name, "link", "set", "lo", "up")
        sysctl = ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        ip("netns", "exec", full, *sysctl)

    def ip(self, name: str, *words: str) -> None:
        """`ip` inside one of the namespaces."""
        ip("-n", f"{self.prefix}-{name}", *words)

    def veth(self, left: tuple[str, str], right: tuple[str, str], mtu: int) -> None:
        """A veth pair, each end as (namespace, device), up."""
        (left_name, left_device), (right_name, right_device) = left, right
        self.ip(
            left_name, "link", "add", left_device, "mtu", str(mtu), "type", "veth",
            "peer", "name", right_device, "mtu", str(mtu), "netns", f"{self.prefix}-{right_name}",
        )  # fmt: skip
        self.ip(left_name, "link", "set", left_device, "up")
        self.ip(right_name, "link", "set", right_device, "up")

    def pod(self, name: str, node: str, address: IPv4Interface, mtu: int) -> None:
        """A pod behind a node: one address, everything through the node."""
        self.add(name)
        gateway = address.network.network_address + 1
        self.veth((node, f"host-{name}"[:15]), (name, "eth0"), mtu)
        self.ip(node, "address", "add", f"{gateway}/32", "dev", f"host-{name}"[:15])
        self.ip(node, "route", "add", f"{address.ip}/32", "dev", f"host-{name}"[:15])
        self.ip(name, "address", "add", f"{address.ip}/32", "dev", "eth0")
        self.ip(name, "route", "add", f"{gateway}/32", "dev", "eth0", "scope", "link")
        self.ip(name, "route", "add", "default", "via", str(gateway))


def ip(*words: str) -> None:
    """iproute2. Raises BadEnvironment in its own words."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise BadEnvironment(f"ip {' '.join(words)}", done.stderr.strip())


@contextmanager
def routed(mtu: int) -> Iterator[tuple[Target, Path]]:
    """One node, two pods, routed by its kernel: the client's target, and where the server runs."""
    with ExitStack() as stack:
        net = Net(stack)
        net.add("node")
        net.pod("client", "node", IPv4Interface("10.71.1.2/24"), mtu)
        net.pod("server", "node", IPv4Interface("10.71.2.2/24"), mtu)
        yield Target(net.path("client"), ip_address("10.71.2.2")), net.path("server")


@contextmanager
def tunnelled() -> Iterator[tuple[Target, Path]]:
    """Two nodes joined by a bridge, pods routed through the kernel's VXLAN device."""
    mtu = UNDERLAY_MTU - VXLAN_OVERHEAD
    with ExitStack() as stack:
        net = Net(stack)
        net.add("underlay")
        net.ip("underlay", "link", "add", "br0", "type", "bridge")
        net.ip("underlay", "link", "set", "br0", "up")
        for n in (1, 2):
            other = 3 - n
            node = f"node{n}"
            net.add(node)
            net.veth(("underlay", node), (node, "eth0"), UNDERLAY_MTU)
            net.ip("underlay", "link", "set", node, "master", "br0")
            net.ip(node, "address", "add", f"172.31.71.{n}/24", "dev", "eth0")
            net.ip(
                node, "link", "add", "vxlan0", "mtu", str(mtu), "type", "vxlan", "id", "71",
                "dstport", str(VXLAN_PORT), "local", f"172.31.71.{n}",
                "remote", f"172.31.71.{other}", "dev", "eth0",
            )  # fmt: skip
            net.ip(node, "address", "add", f"10.71.{n}0.1/32", "dev", "vxlan0")
            net.ip(node, "link", "set", "vxlan0", "up")
            net.ip(
                node, "route", "add", f"10.71.{other}.0/24",
                "via", f"10.71.{other}0.1", "dev", "vxlan0", "onlink",
            )  # fmt: skip
        net.pod("client", "node1", IPv4Interface("10.71.1.2/24"), mtu)
        net.pod("server", "node2", IPv4Interface("10.71.2.2/24"), mtu)
        yield Target(net.path("client"), ip_address("10.71.2.2")), net.path("server")
