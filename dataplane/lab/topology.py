# SPDX-License-Identifier: Apache-2.0
"""Which namespaces a lab has, and the links, addresses and routes in each. Pure.

    outside ── underlay (router, bridge) ──┬── node-1 ── pods of node-1
                                           ├── node-2 ── pods of node-2
                                           └── …

The underlay joins the nodes by a bridge and routes between them and `outside`, which is
on another network, as clients of a real cluster are. It also routes load-balancer and
external addresses, each to one node. Pods are the agents' business. The result is text
for `ip -batch`, so that what is done can be read and repeated by hand. Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from dataplane.model.net import Family, IPAddress, IPNetwork, family_of
from dataplane.model.objects import Node

UNDERLAY, OUTSIDE = "underlay", "outside"

NODE_NETWORKS: Mapping[Family, IPNetwork] = {
    Family.V4: IPv4Network("172.30.0.0/16"),
    Family.V6: IPv6Network("fd00:172:30::/64"),
}
OUTSIDE_NETWORKS: Mapping[Family, IPNetwork] = {
    Family.V4: IPv4Network("172.31.0.0/24"),
    Family.V6: IPv6Network("fd00:172:31::/64"),
}
_FIRST_NODE = 11
_OUTSIDE_HOST = 10
_ROUTE_MARK = 108
"""Protocol number of the routes that follow the Services, so that they can be replaced."""


def node_address(number: int, family: Family) -> IPAddress:
    """The address of the n-th node (from 1) of a lab."""
    return NODE_NETWORKS[family][_FIRST_NODE + number - 1]


def outside_address(family: Family) -> IPAddress:
    """The address of the `outside` host."""
    return OUTSIDE_NETWORKS[family][_OUTSIDE_HOST]


def underlay_commands(
    nodes: Sequence[Node], families: Sequence[Family], netns: Callable[[str], Path]
) -> list[str]:
    """What makes the underlay, and hands each node and `outside` its end of a cable."""
    lines = ["link set lo up", "link add br0 type bridge mcast_snooping 0"]
    for number, node in enumerate(nodes, 1):
        port = f"node{number}"
        lines += [
            f"link add {port} type veth peer name eth0 netns {netns(node.name)}",
            f"link set {port} master br0 up",
        ]
    lines += [
        f"link add outside type veth peer name eth0 netns {netns(OUTSIDE)}",
        "link set br0 up",
        "link set outside up",
    ]
    for family in families:
        lines.append(_address(_first(NODE_NETWORKS[family]), NODE_NETWORKS[family], "br0"))
        lines.append(_address(_first(OUTSIDE_NETWORKS[family]), OUTSIDE_NETWORKS[family], "outside"))
        lines += [
            f"route add {address} dev br0"
            for node in nodes
            for address in node.addresses
            if family_of(address) is family and address not in NODE_NETWORKS[family]
        ]
    return lines


def node_commands(
    node: Node, nodes: Sequence[Node], families: Sequence[Family]
) -> list[str]:
    """A node's uplink: its addresses, the other nodes on the same link, the default route."""
    lines = ["link set lo up", "link set eth0 up"]
    for family in families:
        network = NODE_NETWORKS[family]
        own = [address for address in node.addresses if family_of(address) is family]
        lines += [_address(address, network, "eth0") for address in own]
        lines += [
            f"route add {address} dev eth0 src {own[0]}"
            for other in nodes
            for address in other.addresses
            if other != node and own and family_of(address) is family and address not in network
        ]
        if own:
            lines.append(f"route add default via {_first(network)} dev eth0 src {own[0]} onlink")
    return lines


def outside_commands(families: Sequence[Family]) -> list[str]:
    """The outside host: one address a family, everything else through the underlay."""
    lines = ["link set lo up", "link set eth0 up"]
    for family in families:
        network = OUTSIDE_NETWORKS[family]
        lines.append(_address(outside_address(family), network, "eth0"))
        lines.append(f"route add default via {_first(network)} dev eth0")
    return lines


def service_route_commands(
    nodes: Sequence[Node], entries: Mapping[IPAddress, str], family: Family
) -> list[str]:
    """Routes of the underlay, of one family, for addresses that nodes answer for.

    entries: such an address to the name of the node that gets its packets. The result
    replaces what an earlier call's commands made; it is for `ip -4` or `ip -6`.
    """
    places = {node.name: node for node in nodes}
    lines = [f"route flush proto {_ROUTE_MARK}"]
    for address in sorted(a for a in entries if family_of(a) is family):
        hops = [a for a in places[entries[address]].addresses if family_of(a) is family]
        if hops:
            lines.append(f"route replace {address} via {hops[0]} dev br0 onlink proto {_ROUTE_MARK}")
    return lines


def external_host_commands(addresses: Sequence[IPAddress]) -> list[str]:
    """Hosts outside the cluster that endpoints name: `outside` has all their addresses."""
    return [f"address replace {address} dev lo" for address in addresses]


def external_route_commands(addresses: Sequence[IPAddress]) -> list[str]:
    """The underlay's way to them."""
    return [
        f"route replace {address} via {outside_address(family_of(address))} dev outside"
        for address in addresses
    ]


def _first(network: IPNetwork) -> IPAddress:
    return network[1]


def _address(address: IPAddress, network: IPNetwork, device: str) -> str:
    """`address` with the network's prefix if it is in it, else alone."""
    length = network.prefixlen if address in network else family_of(address).bits
    return f"address add {address}/{length} dev {device}" + (
        " nodad" if address.version == 6 else ""
    )
