# SPDX-License-Identifier: Apache-2.0
"""Where an address is, as this node sees it: itself, a pod, the cluster, the world.

Must not know Services beyond their addresses.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address, ip_network

from dataplane.core.reference.values import World
from dataplane.model.net import Family, IPAddress, IPNetwork

GATEWAY = {Family.V4: ip_address("169.254.1.1"), Family.V6: ip_address("fe80::1")}
"""The next hop of every pod, on its own link (docs/architecture.md)."""

_V4_THIS_NETWORK = ip_network("0.0.0.0/8")
_V4_BROADCAST = ip_address("255.255.255.255")


class Where(enum.Enum):
    """Where an address is."""

    HERE = enum.auto()  # the node itself
    POD = enum.auto()  # a pod of this node
    NO_POD = enum.auto()  # this node's pod range, no pod has it
    OTHER_PODS = enum.auto()  # another node's pod range
    NO_NODE = enum.auto()  # a cluster range that no node has
    SERVICES = enum.auto()  # a Service range
    OTHER_PROXY = enum.auto()  # the ClusterIP of a Service that another proxy serves
    PEER = enum.auto()  # another node
    WORLD = enum.auto()


class Places:
    """The addresses of one world."""

    def __init__(self, world: World) -> None:
        self.own = world.own()
        self.pods = _local_pods(world, self.own)
        self._ranges = list(_ranges(world, self.own))
        self._known: dict[IPAddress, Where] = {}

    def where(self, address: IPAddress) -> Where:
        """The most specific range that has the address; of equal ones the later in the list."""
        if address not in self._known:
            found = [(r.prefixlen, at) for at, (r, _) in enumerate(self._ranges) if address in r]
            where = self._ranges[max(found)[1]][1] if found else Where.WORLD
            self._known[address] = Where.POD if address in self.pods else where
        return self._known[address]


@lru_cache(maxsize=16)
def places_of(world: World) -> Places:
    """Worlds are remembered, for one is asked often."""
    return Places(world)


def where_is(world: World, address: IPAddress) -> Where:
    """Where an address is."""
    return places_of(world).where(address)


def _ranges(world: World, own: frozenset[IPAddress]) -> Iterator[tuple[IPNetwork, Where]]:
    for kept in world.non_masquerade_cidrs:
        yield kept, Where.WORLD
    for cidr in world.cluster_cidrs:
        yield cidr, Where.NO_NODE
    for cidr in world.service_cidrs:
        yield cidr, Where.SERVICES
    for service in world.services:
        for address in service.cluster_ips if service.skipped else ():
            yield ip_network(address), Where.OTHER_PROXY
    for cidr in world.pod_cidrs:
        yield cidr, Where.NO_POD
    others = [node for node in world.nodes if node.name != world.node]
    for node in others:
        for cidr in node.pod_cidrs:
            yield cidr, Where.OTHER_PODS
    for node in others:
        for address in node.addresses:
            yield ip_network(address), Where.PEER
    for address in own:
        yield ip_network(address), Where.HERE


def _local_pods(world: World, own: frozenset[IPAddress]) -> frozenset[IPAddress]:
    """This node's pods: those that are said, and its endpoints that are not the node itself."""
    endpoints = {
        endpoint.address
        for piece in world.slices
        for endpoint in piece.endpoints
        if endpoint.node_name == world.node and world.node
    }
    return (world.pods | endpoints) - own


def is_world(world: World, address: IPAddress) -> bool:
    """Whether pods' packets to there leave the cluster, by an uplink.

    Outside the cluster ranges and the node itself; other nodes' addresses are world in VXLAN
    mode and not in native.
    """
    where = where_is(world, address)
    return where is Where.WORLD or (where is Where.PEER and world.vxlan)


def hides_pods(world: World, address: IPAddress) -> bool:
    """Whether the world at an address sees the uplink's address in place of a pod's."""
    kept = any(address in r for r in world.non_masquerade_cidrs if r.version == address.version)
    return is_world(world, address) and not kept


def is_group(address: IPAddress) -> bool:
    """Multicast, and IPv4's limited broadcast."""
    return address.is_multicast or address == _V4_BROADCAST


def is_nowhere(address: IPAddress) -> bool:
    """Loopback or unspecified: on no network (RFC 1122 3.2.1.3, RFC 4291 2.5)."""
    return address.is_loopback or address.is_unspecified or (
        address.version == 4 and address in _V4_THIS_NETWORK
    )  # fmt: skip


def is_link_local_v6(address: IPAddress) -> bool:
    """Of the link alone; IPv4's link-local may be routed (a cloud's metadata are there)."""
    return address.version == 6 and address.is_link_local
