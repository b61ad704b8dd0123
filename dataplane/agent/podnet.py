# SPDX-License-Identifier: Apache-2.0
"""The network of one pod in the kernel: made, compared with what was given, taken away.

Host side: veth, programs, endpoint rows, name, shaper, routes and neighbours. Pod side:
addresses, routes, neighbours and shaper inside its namespace. Programs and rows come
before the link is up, so that no packet meets a device without them. Must not undo what
failed half-way (agent.pods does) or decide what a pod gets.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from dataplane.agent import recovery, settings, shaping
from dataplane.agent.facts import GATEWAY_MAC, GATEWAYS, Facts
from dataplane.agent.tables import Tables
from dataplane.cni import protocol
from dataplane.cni.protocol import CniError
from dataplane.cni.store import Attachment
from dataplane.kernel.hooks import Hooks, Role
from dataplane.kernel.netlink import (
    Address,
    KernelRoute,
    Link,
    Links,
    Neighbour,
    NetlinkError,
    Shaper,
    requests,
)
from dataplane.model.constants import EndpointFlag, NameKind
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, IPAddress, IPNetwork, family_of
from dataplane.model.rows import EndpointRow, NameKey, NameRow, Table

NAMES = Table("names")
COUNTERS = Table("endpoint_counters")
BUDGETS = Table("endpoint_flows")
ENDPOINTS = {family: Table("endpoints", family) for family in Family}


@dataclass(frozen=True, slots=True)
class Seen:
    """The node's network at one moment, asked once for many pods."""

    links: Mapping[str, Link]
    routes: Mapping[IPNetwork, Sequence[KernelRoute]]
    neighbours: frozenset[Neighbour]

    @classmethod
    def of(cls, links: Links) -> Seen:
        routes: defaultdict[IPNetwork, list[KernelRoute]] = defaultdict(list)
        for route in links.routes():
            routes[route.destination].append(route)
        return cls(
            {link.name: link for link in links.links()}, routes, frozenset(links.neighbours())
        )


class PodNet:
    """Wires and unwires; the store is the caller's."""

    def __init__(self, links: Links, hooks: Hooks, tables: Tables, facts: Facts) -> None:
        self._links, self._hooks, self._tables, self._facts = links, hooks, tables, facts

    def wire(self, new: Attachment, netns: int) -> None:
        """Make a pod's network; what was made is left if something is refused.

        Raises:
            CniError: the interface exists, or the kernel can't shape.
            BadEnvironment: the kernel refused something else.
        """
        link = self._create(new, netns)
        for counted in (COUNTERS, BUDGETS):
            self._tables.drop(counted, [new.endpoint_id])
        try:
            with Links(netns) as inside:
                _wire_inside(inside, link.peer_index, new)
            self.wire_host(new, link, fresh=True)
        except NetlinkError as refusal:
            raise BadEnvironment(f"pod {new.pod}", f"wiring: {refusal.strerror}") from refusal

    def _create(self, new: Attachment, netns: int) -> Link:
        for _ in range(2):
            try:
                return self._links.create_veth(
                    new.veth, GATEWAY_MAC, new.interface, new.mac, netns, new.mtu
                )
            except NetlinkError as refusal:
                if refusal.errno != errno.EEXIST:
                    raise BadEnvironment(f"pod {new.pod}", f"veth: {refusal.strerror}") from refusal
                stale = self._links.link(new.veth)
                if stale is None:
                    break
                # this container's, for the name is its alone; and the store knows of none
                self._links.delete_link(stale.index)
        raise CniError(
            protocol.BAD_ENVIRONMENT,
            f"pod {new.pod}",
            f"interface {new.interface} exists in {new.netns}",
        )

    def wire_host(self, one: Attachment, link: Link, *, fresh: bool = False) -> None:
        """The host side, in the order that keeps packets off half of it; can be repeated."""
        settings.apply_to_ours(self._links.sysctls, one.veth)
        self._hooks.attach(Role.POD, link.index, one.veth, fresh=fresh)
        shape(self._links, link.index, shaping.into_pod(one.bandwidth, one.mtu))
        row = _row(one, link)
        self._tables.put(NAMES, {name_key(one): NameRow(one.pod)})
        for address in one.addresses:
            self._tables.put(ENDPOINTS[family_of(address)], {address: row})
        wanted = [] if link.up else [requests.set_up(link.index, recovery.alias_of(one))]
        for address in one.addresses:
            wanted.append(requests.put_neighbour(Neighbour(link.index, address, one.mac)))
            wanted.append(requests.put_route(self._host_route(link, address)))
        self._links.do(*wanted)

    def unwire(self, one: Attachment) -> None:
        """Rows first, so that a late packet is dropped by name and not sent into a void."""
        for address in one.addresses:
            table = ENDPOINTS[family_of(address)]
            there = self._tables.get(table, address)
            if isinstance(there, EndpointRow) and there.id == one.endpoint_id:
                self._tables.drop(table, [address])
        self._tables.drop(NAMES, [name_key(one)])
        self._links.unlist_link(one.veth)

    def wrong(self, one: Attachment, seen: Seen) -> list[str]:
        """What on the host side is not as it was made, in words."""
        link = seen.links.get(one.veth)
        if link is None:
            return [f"host interface {one.veth} is gone"]
        wrong = []
        if not link.up:
            wrong.append(f"host interface {one.veth} is down")
        wrong += [
            f"filter {place.name} is not on {one.veth}"
            for place in self._hooks.wrong(Role.POD, link.index)
        ]
        for address in one.addresses:
            if self._tables.get(ENDPOINTS[family_of(address)], address) != _row(one, link):
                wrong.append(f"endpoint row of {address} is missing or other")
            route = self._host_route(link, address)
            if not any(route.same_way(other) for other in seen.routes[route.destination]):
                wrong.append(f"route to {address} is missing or other")
            if Neighbour(link.index, address, one.mac) not in seen.neighbours:
                wrong.append(f"neighbour entry of {address} is missing or other")
        if self._tables.get(NAMES, name_key(one)) != NameRow(one.pod):
            wrong.append("name is missing or other")
        wrong += _wrong_shaper(self._links, link, shaping.into_pod(one.bandwidth, one.mtu))
        return wrong

    def _host_route(self, link: Link, address: IPAddress) -> KernelRoute:
        return KernelRoute(
            ip_network(address),
            link.index,
            source=self._facts.routers.get(family_of(address)),
            link_scope=True,
        )


def wrong_inside(inside: Links, one: Attachment) -> list[str]:
    """What on the pod's side is not as it was made, in words."""
    link = inside.link(one.interface)
    if link is None:
        return [f"interface {one.interface} is gone"]
    wrong = [] if link.up else [f"interface {one.interface} is down"]
    there = {item.address for item in inside.addresses(link.index)}
    wrong += [f"address {a} is gone" for a in one.addresses if a not in there]
    routes, neighbours = inside.routes(), inside.neighbours()
    for route in _pod_routes(link.index, one):
        if not any(route.same_way(other) for other in routes):
            wrong.append(f"route to {route.destination} in the pod is gone")
    for entry in _pod_neighbours(link.index, one):
        if entry not in neighbours:
            wrong.append(f"neighbour entry of {entry.address} in the pod is gone")
    wrong += _wrong_shaper(inside, link, shaping.out_of_pod(one.bandwidth, one.mtu))
    return wrong


def name_key(one: Attachment) -> NameKey:
    """Where a pod's name is in the table of names."""
    return NameKey(NameKind.ENDPOINT, one.endpoint_id)


def _wire_inside(inside: Links, index: int, new: Attachment) -> None:
    """The pod's side, while the host side is still down."""
    wanted = [requests.set_up(index)]
    wanted += [
        requests.put_address(Address(index, address, address.max_prefixlen))
        for address in new.addresses
    ]
    wanted += map(requests.put_neighbour, _pod_neighbours(index, new))
    wanted += map(requests.put_route, _pod_routes(index, new))
    try:
        inside.do(*wanted)
    except NetlinkError as refusal:
        if refusal.errno != errno.EACCES:
            raise
        # IPv6 is off in the namespace; all of it can be asked for again
        inside.sysctls.write(f"net/ipv6/conf/{new.interface}/disable_ipv6", "0")
        inside.do(*wanted)
    shape(inside, index, shaping.out_of_pod(new.bandwidth, new.mtu))


def _pod_routes(index: int, one: Attachment) -> Iterator[KernelRoute]:
    for address in one.addresses:
        gateway = GATEWAYS[family_of(address)]
        if gateway.version == 4:
            yield KernelRoute(ip_network(gateway), index, link_scope=True)
        everywhere = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
        yield KernelRoute(everywhere, index, gateway=gateway)


def _pod_neighbours(index: int, one: Attachment) -> list[Neighbour]:
    return [
        Neighbour(index, GATEWAYS[family_of(address)], GATEWAY_MAC) for address in one.addresses
    ]


def _row(one: Attachment, link: Link) -> EndpointRow:
    shaped = shaping.into_pod(one.bandwidth, one.mtu) is not None
    flags = EndpointFlag.SHAPED if shaped else EndpointFlag(0)
    return EndpointRow(ifindex=link.index, id=one.endpoint_id, mac=one.mac, flags=int(flags))


def shape(links: Links, index: int, shaper: Shaper | None) -> None:
    """Shape a device, if it is to be.

    Raises:
        CniError: the kernel can't.
    """
    if shaper is None:
        return
    try:
        links.tc.shape(index, shaper)
    except NetlinkError as refusal:
        if refusal.errno != errno.ENOENT:
            raise
        raise CniError(
            protocol.UNSUPPORTED_FIELD,
            "runtimeConfig.bandwidth",
            "this kernel has no token bucket (CONFIG_NET_SCH_TBF), so podlane can shape no pod",
            "load sch_tbf, or ask for no bandwidth",
        ) from refusal


def _wrong_shaper(links: Links, link: Link, shaper: Shaper | None) -> list[str]:
    """A pod without limits may have qdiscs of its own."""
    if shaper is None or links.tc.shaper(link.index) == shaper:
        return []
    return [f"shaper of {link.name} is missing or other"]
