# SPDX-License-Identifier: Apache-2.0
"""Nodes, ranges and the node's own kernel routes to the tables `routes` and `peers`.

The programs ask only these tables where a destination is, so what matters of the
kernel's routes is mirrored here. On equal prefixes the later of these wins: kernel
routes, nonMasqueradeCIDRs, Service and cluster ranges, other proxies' Services, pod
ranges, other nodes' addresses, own addresses. Must not read the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from dataplane.model.constants import RouteFlag, RouteKind
from dataplane.model.net import Family, IPAddress, IPNetwork, family_of
from dataplane.model.objects import Node, Problem
from dataplane.model.rows import RouteKey, RouteRow

MASQUERADE = int(RouteFlag.MASQUERADE)
CLUSTER = int(RouteFlag.CLUSTER)
HOP_IS_NODE = int(RouteFlag.HOP_IS_NODE)
DEFAULTS: tuple[IPNetwork, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A unicast route of the node's main table; gateway None means on the link itself."""

    destination: IPNetwork
    index: int
    gateway: IPAddress | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """What the routes of one node depend on besides other nodes.

    Args:
        node: its name.
        vxlan: whether pods of other nodes are reached by the overlay, else by next hop.
        direct: other nodes send clients on to this one by the overlay, in both modes.
        addresses: every address that is on this node, besides router and pod addresses.
        routers: its own addresses among its pods.
        pod_cidrs: its own.
        cluster_cidrs, service_cidrs, non_masquerade_cidrs: as configured or found.
        left_alone: ClusterIPs of Services that another proxy serves, in the node's stack.
        uplinks: interface indexes of the uplinks.
        kernel: the main table, of which routes inside our own ranges are not looked at.
        underlay: the outer family of tunnels between nodes that have both. All nodes must
            agree on it, since a tunnelled packet is checked against the route back.
    """

    node: str
    vxlan: bool
    addresses: tuple[IPAddress, ...]
    pod_cidrs: tuple[IPNetwork, ...]
    cluster_cidrs: tuple[IPNetwork, ...]
    routers: tuple[IPAddress, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    non_masquerade_cidrs: tuple[IPNetwork, ...] = ()
    left_alone: tuple[IPAddress, ...] = ()
    uplinks: frozenset[int] = frozenset()
    kernel: tuple[KernelRoute, ...] = ()
    underlay: Family = Family.V4
    direct: bool = False


@dataclass(slots=True)
class Routes:
    """The rows of `routes` by family; peers: tunnel sources, each with its node's name."""

    rows: dict[Family, dict[RouteKey, RouteRow]] = field(
        default_factory=lambda: {family: {} for family in Family}
    )
    peers: dict[IPAddress, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def put(self, prefix: IPNetwork, row: RouteRow) -> None:
        self.rows[family_of(prefix)][RouteKey(prefix.prefixlen, prefix.network_address)] = row


def make_routes(facts: RouteFacts, nodes: Iterable[Node]) -> Routes:
    """All rows. A node that can't be reached is a problem; its range stays unreachable."""
    routes = Routes()
    world = _World(facts)
    for prefix in (*DEFAULTS, *world.prefixes(), *facts.non_masquerade_cidrs):
        routes.put(prefix, world.row(prefix))
    for prefix in facts.cluster_cidrs:
        routes.put(prefix, RouteRow(RouteKind.UNREACHABLE, CLUSTER))
    for prefix in facts.service_cidrs:
        routes.put(prefix, RouteRow(RouteKind.SERVICE))
    for address in facts.left_alone:
        routes.put(_host(address), RouteRow(RouteKind.STACK))
    owners: dict[IPNetwork, str] = {}
    for prefix in facts.pod_cidrs:
        owners[prefix] = facts.node
        routes.put(prefix, RouteRow(RouteKind.LOCAL, CLUSTER))
    others = sorted((n for n in nodes if n.name != facts.node), key=lambda n: n.name)
    for node in others:
        _pod_routes(routes, facts, world, node, owners)
    routes.problems += _overlaps(owners, facts.service_cidrs)
    for node in others:
        for address in node.addresses:
            # In native mode other nodes know the way to our pods, in VXLAN mode the link may not.
            row = world.row(_host(address), masquerade=facts.vxlan)
            if facts.vxlan:
                # What comes from a node's own address by the overlay is answered by it.
                hop = _shared_address(facts.addresses, node.addresses, facts.underlay)
                row = replace(row, hop=hop)
            routes.put(_host(address), row)
            if facts.vxlan or facts.direct:
                routes.peers[address] = node.name
    for own in (*facts.addresses, *facts.routers):
        routes.put(_host(own), RouteRow(RouteKind.NODE))
    return routes


def _overlaps(
    owners: Mapping[IPNetwork, str], service_cidrs: Iterable[IPNetwork]
) -> Iterator[Problem]:
    """Ranges that share addresses: the longer one wins, which is hardly what was meant."""
    ranges = [(cidr, f"Node {name}", "spec.podCIDRs") for cidr, name in owners.items()]
    ranges += [(cidr, "Service ranges", "serviceCIDRs") for cidr in service_cidrs]
    ranges.sort(key=lambda r: (r[0].version, int(r[0].network_address), r[0].prefixlen, r[1]))
    last: tuple[IPNetwork, str] | None = None  # the one that reaches furthest
    for cidr, owner, where in ranges:
        if last and last[0].version == cidr.version and cidr[0] in last[0]:
            yield Problem(owner, where, f"{cidr} overlaps {last[0]} of {last[1]}")
        else:
            last = cidr, owner


def _pod_routes(
    routes: Routes, facts: RouteFacts, world: _World, node: Node, owners: dict[IPNetwork, str]
) -> None:
    """Routes to one other node's pods."""

    def problem(reason: str) -> None:
        routes.problems.append(Problem(str(node.key), "spec.podCIDRs", reason))

    for prefix in node.pod_cidrs:
        owner = owners.setdefault(prefix, node.name)
        if owner != node.name:
            problem(f"{prefix} is taken by Node {owner}")
            continue
        # Inner and outer family are independent: pods may be of one that the link has not.
        wish = facts.underlay if facts.vxlan else family_of(prefix)
        hop = _shared_address(facts.addresses, node.addresses, wish)
        if hop is None:
            problem(f"{prefix}: no address of a family that this node has too")
        elif facts.vxlan:
            routes.put(prefix, RouteRow(RouteKind.TUNNEL, CLUSTER, hop=hop))
        else:
            way = world.way(_host(hop))
            if way is None or way.index not in facts.uplinks:
                problem(f"{prefix}: no uplink leads to {hop}")
            else:
                flags = CLUSTER if way.gateway else CLUSTER | HOP_IS_NODE
                hop = way.gateway or hop
                routes.put(prefix, RouteRow(RouteKind.NATIVE, flags, way.index, hop))


def _shared_address(
    ours: Sequence[IPAddress], theirs: Sequence[IPAddress], wish: Family
) -> IPAddress | None:
    """Their primary address of a family that we have too, the wished one if possible."""
    have = {a.version for a in ours}
    for address in sorted(theirs, key=lambda a: a.version != wish):
        if address.version in have:
            return address
    return None


class _World:
    """The node's kernel routes, as far as they lead out of the cluster."""

    def __init__(self, facts: RouteFacts) -> None:
        self._facts = facts
        self._kept = facts.non_masquerade_cidrs
        self._routes: dict[tuple[Family, int, int], KernelRoute] = {}
        ours = (*facts.cluster_cidrs, *facts.pod_cidrs, *facts.service_cidrs)
        for route in sorted(facts.kernel, key=lambda r: (-r.metric, -r.index)):
            prefix = route.destination
            local = prefix.is_link_local or prefix.is_multicast or prefix.is_loopback
            if not local and not _inside(prefix, ours):
                family, number = family_of(prefix), int(prefix.network_address)
                self._routes[family, prefix.prefixlen, number] = route
        self._lengths = {
            family: sorted({key[1] for key in self._routes if key[0] is family}, reverse=True)
            for family in Family
        }

    def prefixes(self) -> list[IPNetwork]:
        """Where the kernel's routes lead."""
        return [route.destination for route in self._routes.values()]

    def way(self, prefix: IPNetwork) -> KernelRoute | None:
        """The longest route that covers all of the prefix."""
        family, number = family_of(prefix), int(prefix.network_address)
        for length in self._lengths[family]:
            if length <= prefix.prefixlen:
                rest = family.bits - length
                route = self._routes.get((family, length, number >> rest << rest))
                if route:
                    return route
        return None

    def is_kept(self, prefix: IPNetwork) -> bool:
        """Whether pods keep their own address towards it (nonMasqueradeCIDRs)."""
        return _inside(prefix, self._kept)

    def row(self, prefix: IPNetwork, masquerade: bool = True) -> RouteRow:
        """The row of a prefix outside the cluster."""
        way = self.way(prefix)
        if way is None or way.index not in self._facts.uplinks:
            return RouteRow(RouteKind.STACK)
        flags = MASQUERADE if masquerade and not self.is_kept(prefix) else 0
        return RouteRow(RouteKind.WORLD, flags, way.index)


def _host(address: IPAddress) -> IPNetwork:
    return ip_network(address)


def covers(wide: IPNetwork, prefix: IPNetwork) -> bool:
    """Whether all of `prefix` is in `wide`."""
    return (
        wide.version == prefix.version
        and wide.prefixlen <= prefix.prefixlen
        and prefix.network_address in wide
    )


def _inside(prefix: IPNetwork, ranges: Iterable[IPNetwork]) -> bool:
    return any(covers(candidate, prefix) for candidate in ranges)
