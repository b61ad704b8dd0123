# SPDX-License-Identifier: Apache-2.0
"""What the copy's maps hold, and what the addresses in them mean to people.

A scene is what programs and story look at, wherever it came from (manifests, or a node's
pinned maps). Pure. Must not decide what an answer is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from dataplane.core.plan import FRONTENDS, NAMES, ROUTES, Key, Row
from dataplane.explain.questions import Question
from dataplane.model.constants import NameKind, NodeFlag, RouteFlag, RouteKind
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol, family_of
from dataplane.model.objects import Node
from dataplane.model.rows import (
    EndpointRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    NodeRow,
    RouteKey,
    RouteRow,
    Table,
)

NODE = {family: Table("node", family) for family in Family}
ENDPOINTS = {family: Table("endpoints", family) for family in Family}
UPLINKS = {family: Table("uplinks", family) for family in Family}

# The one device of a new network namespace: a test run takes it without looking for it. All
# that is asked comes in by it, whether from a pod or from outside.
DEVICE = 1
OVERLAY = 2
FIRST_POD = 100

POD_MAC = bytes.fromhex("020000000001")
UPLINK_MAC = bytes.fromhex("020000000002")
OUTSIDE_MAC = bytes.fromhex("020000000003")

# Next hops to what is somewhere, of ranges that documentation may use (RFC 5737, RFC 3849).
MADE_UP: dict[Family, IPAddress] = {
    Family.V4: ip_address("192.0.2.255"),
    Family.V6: ip_address("2001:db8::ffff"),
}

Tables = dict[Table, dict[Key, Row]]
Change = tuple[Table, Key, Row | None]
"""A table's key and the row that it is to have; None takes the entry away."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a question needs besides the node. here, elsewhere: a plain destination that is
    taken to be a pod, since nobody told explain of every pod."""

    changes: tuple[Change, ...] = ()
    here: IPAddress | None = None
    elsewhere: IPAddress | None = None


@dataclass(slots=True)
class Scene:
    """One node.

    Args:
        node: its name.
        addresses: its own; whoever has one of them is the node itself.
        cluster: ranges of pods; a sender in one is a pod of this node.
        tables: all rows that an agent writes.
        pods, nodes: names by address.
        vxlan: whether pods elsewhere are reached by the overlay, else by next hop.
        complete: whether the rows know every pod, so that a plain destination is where they say.
        unmasked: endpoints outside the cluster, towards which pods are not hidden here so
            that the Service's own rewriting can be told from that.
    """

    node: str
    addresses: frozenset[IPAddress]
    cluster: tuple[IPNetwork, ...]
    tables: Tables
    pods: dict[IPAddress, str] = field(default_factory=dict)
    nodes: dict[IPAddress, str] = field(default_factory=dict)
    vxlan: bool = True
    complete: bool = False
    unmasked: set[IPAddress] = field(default_factory=set)
    _lengths: dict[Family, list[int]] = field(default_factory=dict)

    def in_cluster(self, address: IPAddress) -> bool:
        return any(address in cidr for cidr in self.cluster)

    def is_node(self, address: IPAddress) -> bool:
        return address in self.addresses or address.is_loopback

    def has(self, flag: NodeFlag) -> bool:
        """Whether the node's own record has a setting."""
        rows = (row for t in NODE.values() for row in self.tables.get(t, {}).values())
        return any(isinstance(row, NodeRow) and row.flags & flag for row in rows)

    # ---- lookups as the programs make them ----
    def frontend(
        self, address: IPAddress, port: int, protocol: Protocol
    ) -> tuple[FrontendKey, FrontendRow] | None:
        """The entry of address, port and protocol, else that of the whole address."""
        rows = self.tables.get(FRONTENDS[family_of(address)], {})
        for key in (FrontendKey(address, port, int(protocol)), FrontendKey(address, 0, 0)):
            row = rows.get(key)
            if isinstance(row, FrontendRow):
                return key, row
        return None

    def endpoint(self, address: IPAddress) -> EndpointRow | None:
        row = self.tables.get(ENDPOINTS[family_of(address)], {}).get(address)
        return row if isinstance(row, EndpointRow) else None

    def route(self, address: IPAddress) -> tuple[RouteKey, RouteRow] | None:
        """The longest prefix that has the address, as the kernel's lpm_trie finds it."""
        rows = self.tables.get(ROUTES[family_of(address)], {})
        for length in self._prefixes(family_of(address)):
            rest = address.max_prefixlen - length
            key = RouteKey(length, type(address)(int(address) >> rest << rest))
            if isinstance(row := rows.get(key), RouteRow):
                return key, row
        return None

    def _prefixes(self, family: Family) -> list[int]:
        """Lengths of prefixes that there are, once; what is added later are host routes."""
        if family not in self._lengths:
            keys = self.tables.get(ROUTES[family], {})
            found = {key.prefix for key in keys if isinstance(key, RouteKey)} | {family.bits}
            self._lengths[family] = sorted(found, reverse=True)
        return self._lengths[family]

    def service(self, number: int) -> str:
        """namespace/name:port of a Service id; empty if there is none."""
        row = self.tables.get(NAMES, {}).get(NameKey(NameKind.SERVICE, number))
        return ServiceName.parse(row.text).service if isinstance(row, NameRow) else ""

    # ---- what a question needs ----
    def way(self, address: IPAddress, node: Node | None = None, flags: int = 0) -> RouteRow:
        """A route to a pod that is elsewhere: to its node, or to a next hop that is made up."""
        ours = {one.version for one in self.addresses}
        hops = [one for one in (node.addresses if node else ()) if one.version in ours]
        made_up = MADE_UP[family_of(address)]
        if self.vxlan:
            return RouteRow(RouteKind.TUNNEL, flags, 0, hops[0] if hops else made_up)
        hop = next((one for one in hops if one.version == address.version), made_up)
        return RouteRow(RouteKind.NATIVE, flags | RouteFlag.HOP_IS_NODE, DEVICE, hop)

    def needs(self, question: Question) -> Needs:
        """What must be otherwise for a question: its sender, and a plain destination."""
        source, to = question.source, question.address
        endpoints, routes = ENDPOINTS[question.family], ROUTES[question.family]
        changes: list[Change] = []
        known = self.endpoint(source)
        if self.is_node(source):
            pass
        elif self.in_cluster(source):
            row = known or self.new_endpoint(question.family)
            changes.append((endpoints, source, replace(row, ifindex=DEVICE, mac=POD_MAC)))
        elif known:  # asked of as someone outside, so it is no pod of this node
            changes.append((endpoints, source, None))
            changes.append((routes, host_key(source), RouteRow(RouteKind.WORLD, 0, DEVICE)))
        outside = not self.is_node(source) and not self.in_cluster(source)
        if self.frontend(to, question.port, question.protocol) or (outside and to == source):
            return Needs(tuple(changes))
        if self.complete:
            return Needs(tuple(changes))
        # A plain destination: where the rows have it, or where its range is.
        found = self.route(to)
        if self.endpoint(to) is not None or any(key == to and row for _, key, row in changes):
            return Needs(tuple(changes), here=to)
        kind = found[1].kind if found else RouteKind.STACK
        if found and kind == RouteKind.LOCAL:
            changes.append((endpoints, to, self.new_endpoint(question.family, 1)))
            return Needs(tuple(changes), here=to)
        if found and kind == RouteKind.UNREACHABLE:
            changes.append((routes, host_key(to), self.way(to, flags=found[1].flags)))
            return Needs(tuple(changes), elsewhere=to)
        elsewhere = to if kind in (RouteKind.TUNNEL, RouteKind.NATIVE) else None
        return Needs(tuple(changes), elsewhere=elsewhere)

    def masked(self, address: IPAddress) -> list[Change]:
        """The way to an unmasked address as the node has it, which hides its pods."""
        found = self.route(address)
        if found is None:
            return []
        row = replace(found[1], flags=found[1].flags | RouteFlag.MASQUERADE)
        return [(ROUTES[family_of(address)], host_key(address), row)]

    def add_pod(self, address: IPAddress) -> None:
        """An endpoint of this node, on a device of its own."""
        family = family_of(address)
        self.put(ENDPOINTS[family], address, self.new_endpoint(family))

    def new_endpoint(self, family: Family, more: int = 0) -> EndpointRow:
        number = 1 + more + len(self.tables.get(ENDPOINTS[family], {}))
        return EndpointRow(FIRST_POD + number, number, POD_MAC)

    def put(self, table: Table, key: Key, row: Row) -> None:
        self.tables.setdefault(table, {})[key] = row


def host_key(address: IPAddress) -> RouteKey:
    """The key of a route to one address."""
    return RouteKey(address.max_prefixlen, address)
