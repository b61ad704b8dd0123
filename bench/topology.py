# SPDX-License-Identifier: Apache-2.0
"""The peers: what a kernel without podlane does, built with plain `ip` in namespaces of their own.

No tc, no netfilter rules, and the kernel's own defaults for offloads on every veth.

    one node     client pod ─veth─ node ─veth─ server pod

    two nodes    client pod ─veth─ node 1 ─veth─ bridge ─veth─ node 2 ─veth─ server pod
                                     └────── vxlan ──────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface, IPv4Network, ip_address
from pathlib import Path

from bench.load import Target
from tests.cluster.net import Net

UNDERLAY_MTU = 1500
VXLAN_OVERHEAD = 50
VXLAN_PORT = 4789


@contextmanager
def routed(mtu: int, also: IPv4Network | None = None) -> Iterator[tuple[Target, Path]]:
    """One node, two pods, routed by its kernel: the client's target, and where the server runs.

    also: addresses that lead to the server too, each of which it has.
    """
    with ExitStack() as stack:
        net = Net(stack)
        net.add("node")
        net.pod("client", "node", IPv4Interface("10.71.1.2/24"), mtu)
        net.pod("server", "node", IPv4Interface("10.71.2.2/24"), mtu)
        if also is not None:
            net.ip("node", "route", "add", str(also), "via", "10.71.2.2", "dev", "host-server")
            net.ip("server", "route", "add", "local", str(also), "dev", "lo")
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
