# SPDX-License-Identifier: Apache-2.0
"""Which Service port is asked at an address and port of this node.

Must not know endpoints or who asks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from dataplane.core.reference.values import Place, World
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.objects import Service, ServicePort, ServiceType

LOOPBACK = ip_address("127.0.0.1")
LOOPBACKS = ip_network("127.0.0.0/8"), ip_network("::1/128")

PROXIED = frozenset(
    {
        ServiceType.CLUSTER_IP,
        ServiceType.NODE_PORT,
        ServiceType.LOAD_BALANCER,
        ServiceType.HOST_PORT,
    }
)


class Door(enum.IntEnum):
    """How a Service port is asked, in the order in which doors win (docs/decisions/0003)."""

    CLUSTER_IP = 1
    NODE_PORT = 2
    LOAD_BALANCER = 3
    EXTERNAL_IP = 4
    HOST_PORT = 5

    @property
    def is_external(self) -> bool:
        """Whether externalTrafficPolicy speaks of it."""
        return self not in (Door.CLUSTER_IP, Door.HOST_PORT)


@dataclass(frozen=True, slots=True)
class Frontend:
    """One Service port in one family behind one of its doors."""

    door: Door
    service: Service
    port: ServicePort
    family: Family

    @property
    def name(self) -> str:
        text = self.port.name or self.port.port
        return f"{self.service.namespace}/{self.service.name}:{text}"


@dataclass(slots=True)
class Frontends:
    """All that is asked for on a node: by address, port and protocol; and whole ClusterIPs."""

    by_place: dict[tuple[IPAddress, int, Protocol], Frontend] = field(default_factory=dict)
    cluster_ips: dict[IPAddress, Service] = field(default_factory=dict)


def is_proxied(service: Service) -> bool:
    """Skipped: other proxies' Services, headless ones, ExternalName (proxy/util/utils.go)."""
    return service.type in PROXIED and not service.skipped


def by_age(services: Iterable[Service]) -> list[Service]:
    """The order in which equals win: the older, then the first by name (docs/decisions/0003)."""
    return sorted(services, key=lambda s: (s.created, s.namespace, s.name))


def frontends_of(world: World) -> Frontends:
    """Each frontend with the Service port that has it."""
    found = Frontends()
    services = by_age(filter(is_proxied, world.services))
    for service in services:
        for address in cluster_ips(world, service):
            found.cluster_ips.setdefault(address, service)
    for door in Door:
        for service in services:
            for port in service.ports:
                for address, number in doors(world, service, port, door, found):
                    family = Family(address.version)
                    if family in served_families(world, service):
                        place = address, number, port.protocol
                        found.by_place.setdefault(place, Frontend(door, service, port, family))
    return found


def cluster_ips(world: World, service: Service) -> Iterator[IPAddress]:
    """The ClusterIPs that are what they must be: of the node's families, of the Service ranges."""
    if service.type is ServiceType.HOST_PORT:
        return
    for address in service.cluster_ips:
        ranges = [r for r in world.service_cidrs if r.version == address.version]
        if address.version in world.families and (not ranges or any(address in r for r in ranges)):
            yield address


def served_families(world: World, service: Service) -> set[Family]:
    """kube-proxy is one proxy a family, each serves the Services with a ClusterIP of its family."""
    families = {Family(address.version) for address in service.cluster_ips}
    if service.type is ServiceType.HOST_PORT:
        families = set(service.families)
    return families & set(world.families)


def doors(
    world: World, service: Service, port: ServicePort, door: Door, found: Frontends
) -> Iterator[Place]:
    """Where a Service port may be asked by one kind of door."""
    host_port = service.type is ServiceType.HOST_PORT
    if host_port != (door is Door.HOST_PORT):
        return
    match door:
        case Door.CLUSTER_IP:
            # who loses a ClusterIP loses all its ports on it
            for address in cluster_ips(world, service):
                if found.cluster_ips[address] is service:
                    yield address, port.port
        case Door.NODE_PORT:
            if port.node_port and service.type is not ServiceType.CLUSTER_IP:
                for address in node_port_addresses(world):
                    yield address, port.node_port
        case Door.LOAD_BALANCER:
            for address in service.load_balancer_ips:
                yield address, port.port
        case Door.EXTERNAL_IP:
            for address in service.external_ips:
                yield address, port.port
        case Door.HOST_PORT:
            for address in host_port_addresses(world, service):
                yield address, port.port


def host_port_addresses(world: World, service: Service) -> Iterator[IPAddress]:
    """Where a hostPort is served (CNI's portmap: --dst-type LOCAL; localhost of IPv4 by default).

    external_ips is its hostIP: an address that is not the node's own is nothing to it.
    """
    own = [address for address in world.addresses if not address.is_loopback]
    for asked in service.external_ips:
        if asked in own or any(asked in loopback for loopback in LOOPBACKS):
            yield asked
    if not service.external_ips:
        yield from (*own, LOOPBACK)


def node_port_addresses(world: World) -> Iterator[IPAddress]:
    """Where NodePorts are served (docs: kube-proxy, --nodeport-addresses, primary by default)."""
    for family in world.families:
        own = [a for a in world.addresses if a.version == family and not a.is_loopback]
        ranges = [r for r in world.node_port_ranges if r.version == family]
        if not ranges:
            yield from own[:1]
        for address in own if ranges else ():
            if any(address in r for r in ranges):
                yield address
        # IPv6 loopback never (docs: --iptables-localhost-nodeports is of IPv4)
        loopback = family is Family.V4 and world.localhost_node_ports
        if loopback and any(LOOPBACK in r for r in ranges):
            yield LOOPBACK
