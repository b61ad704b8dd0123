# SPDX-License-Identifier: Apache-2.0
"""Which addresses and ports a Service asks for on this node, and who gets a contested one.

Two Services may ask for one frontend. A ClusterIP goes before a NodePort, this before a
load-balancer address, this before an external IP, this before a pod's hostPort; among
equals the older Service wins, then the first by name. A Service that loses the whole
ClusterIP loses its ports too.
Must not know endpoints, ids or maps.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import NamedTuple

from dataplane.model.constants import FrontendKind
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol, family_of
from dataplane.model.objects import Problem, Service, ServicePort, ServiceType
from dataplane.model.rows import FrontendKey

SERVED = (
    ServiceType.CLUSTER_IP,
    ServiceType.NODE_PORT,
    ServiceType.LOAD_BALANCER,
    ServiceType.HOST_PORT,
)
LOOPBACK = IPv4Address("127.0.0.1")
_LOOPBACKS = IPv4Network("127.0.0.0/8")
_LOOPBACK_V6 = IPv6Address("::1")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the Service tables of one node depend on besides objects.

    Args:
        node: the node's name, as slices say it.
        families: those that the node has; others are ignored.
        addresses: the node's own, the first of a family is its primary one.
        zone: label topology.kubernetes.io/zone; empty is none.
        node_port_ranges: nodePortAddresses; a family without a range is served on the
            primary address.
        localhost_node_ports: NodePorts on 127.0.0.1, too, if a range covers it.
        service_cidrs: where ClusterIPs come from; a family without a range takes any.
        direct_return: other nodes send their clients on to this node's endpoints.
    """

    node: str
    families: tuple[Family, ...]
    addresses: tuple[IPAddress, ...]
    zone: str = ""
    node_port_ranges: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    localhost_node_ports: bool = False
    direct_return: bool = False

    def node_port_addresses(self, family: Family) -> tuple[IPAddress, ...]:
        """The addresses of this node on which NodePorts are served; of IPv6 never loopback.

        What comes to loopback from outside is dropped before: only the node's own sockets,
        which are translated before their packets are made, are served there.
        """
        own = self.own_addresses(family)
        ranges = [r for r in self.node_port_ranges if r.version == family]
        if not ranges:
            return own[:1]
        if self.localhost_node_ports and family is Family.V4:
            own = (*own, LOOPBACK)
        return tuple(a for a in own if any(a in r for r in ranges))

    def own_addresses(self, family: Family) -> tuple[IPAddress, ...]:
        """The addresses of this node in one family, the primary one first; never loopback."""
        return tuple(a for a in self.addresses if a.version == family and not a.is_loopback)

    def host_port_addresses(
        self, family: Family, asked: tuple[IPAddress, ...] = ()
    ) -> tuple[IPAddress, ...]:
        """Where a pod's host port is served: at those asked for, if any, that are this node's.

        Another's address would be taken from whoever means the other: CNI's portmap looks at
        local destinations alone, too. Like it, a port that asks for none is on IPv4 loopback
        besides, for the node's own sockets.
        """
        own = self.own_addresses(family)
        if not asked:
            return (*own, LOOPBACK) if family is Family.V4 else own
        loopback = _LOOPBACKS if family is Family.V4 else (_LOOPBACK_V6,)
        return tuple(a for a in asked if a in own or a in loopback)


class Claim(NamedTuple):
    """Who asks for a frontend, in the order in which claims win. owner is None for a whole
    address, which belongs to no single port."""

    kind: FrontendKind
    created: str
    namespace: str
    name: str
    owner: ServiceName | None

    @property
    def service(self) -> tuple[str, str]:
        return self.namespace, self.name


class Claims:
    """All claims by frontend."""

    def __init__(self) -> None:
        self._by_key: dict[FrontendKey, list[Claim]] = {}

    def of(self, key: FrontendKey) -> list[Claim]:
        """Claims of one frontend, the winner first."""
        return self._by_key.get(key, [])

    def first(self, key: FrontendKey) -> Claim | None:
        """The winner."""
        claims = self._by_key.get(key)
        return claims[0] if claims else None

    def replace(
        self, old: Mapping[FrontendKey, Claim], new: Mapping[FrontendKey, Claim]
    ) -> Iterator[tuple[FrontendKey, list[Claim]]]:
        """Puts one Service's claims in place of its old ones.

        Yields each frontend whose claims changed, with the claims that others have on it.
        """
        for key, claim in old.items():
            if new.get(key) != claim:
                claims = self._by_key[key]
                claims.remove(claim)
                yield key, claims
                if not claims:
                    del self._by_key[key]
        for key, claim in new.items():
            if old.get(key) != claim:
                claims = self._by_key.setdefault(key, [])
                yield key, claims[:]
                insort(claims, claim)


def is_served(service: Service) -> bool:
    """Whether a proxy serves this Service at all."""
    return service.type in SERVED and not service.skipped


def left_alone(services: Iterable[Service]) -> tuple[IPAddress, ...]:
    """The ClusterIPs that another proxy serves; sorted, each once."""
    found = {address for one in services if one.skipped for address in one.cluster_ips}
    return tuple(sorted(found, key=lambda a: (a.version, a)))


def address_claims(
    service: Service, settings: Settings, problems: set[Problem]
) -> dict[FrontendKey, Claim]:
    """One whole-address claim for each ClusterIP of the node's families."""
    claims: dict[FrontendKey, Claim] = {}
    if service.type is ServiceType.HOST_PORT:
        return claims
    if not service.cluster_ips:
        problems.add(_problem(service, "spec.clusterIP", "no address is assigned"))
    for address in service.cluster_ips:
        if address.version not in settings.families:
            continue
        ranges = [r for r in settings.service_cidrs if r.version == address.version]
        if ranges and not any(address in r for r in ranges):
            words = ", ".join(map(str, ranges))
            problems.add(
                _problem(service, "spec.clusterIP", f"{address} is outside the range {words}")
            )
            continue
        kind = FrontendKind.ADDRESS
        claims[FrontendKey(address, 0, 0)] = Claim(
            kind, service.created, service.namespace, service.name, None
        )
    return claims


def service_ports(
    service: Service, settings: Settings
) -> Iterator[tuple[ServiceName, ServicePort]]:
    """The Service ports to serve, once a family in which the Service has a ClusterIP."""
    host_port = service.type is ServiceType.HOST_PORT
    families = set(service.families if host_port else map(family_of, service.cluster_ips))
    for port in service.ports:
        text = port.name or str(port.port)
        for family in settings.families:
            if family in families:
                yield (
                    ServiceName(service.namespace, service.name, text, port.protocol, family),
                    port,
                )


def port_claims(
    service: Service,
    ports: Iterable[tuple[ServiceName, ServicePort]],
    cluster_ips: Iterable[IPAddress],
    settings: Settings,
    problems: set[Problem],
) -> dict[FrontendKey, Claim]:
    """The claims of the Service's ports; cluster_ips are those that it holds."""
    claims: dict[FrontendKey, Claim] = {}
    cluster_ips = tuple(cluster_ips)
    for owner, port in ports:
        found: list[tuple[IPAddress, int, FrontendKind]] = []
        found += [(a, port.port, FrontendKind.CLUSTER_IP) for a in cluster_ips]
        if port.node_port and service.type is not ServiceType.CLUSTER_IP:
            own = settings.node_port_addresses(owner.family)
            found += [(a, port.node_port, FrontendKind.NODE_PORT) for a in own]
        found += [(a, port.port, FrontendKind.LOAD_BALANCER) for a in service.load_balancer_ips]
        if service.type is ServiceType.HOST_PORT:
            asked = service.external_ips
            own = settings.host_port_addresses(owner.family, asked)
            found = [(a, port.port, FrontendKind.HOST_PORT) for a in own]
            for address in asked:
                if address.version == owner.family and address not in own:
                    why = f"{address} is not an address of this node"
                    problems.add(_problem(service, "hostIP", why))
        else:
            found += [(a, port.port, FrontendKind.EXTERNAL_IP) for a in service.external_ips]
        for address, number, kind in found:
            if address.version != owner.family:
                continue
            key = FrontendKey(address, number, int(port.protocol))
            claim = Claim(kind, service.created, service.namespace, service.name, owner)
            earlier = claims.setdefault(key, claim)
            if earlier.owner != owner:
                first, second = (claim, earlier) if kind < earlier.kind else (earlier, claim)
                claims[key] = first
                problems.add(_taken(service, key, second.kind, first))
    return claims


_FIELDS = {
    FrontendKind.ADDRESS: "spec.clusterIP",
    FrontendKind.CLUSTER_IP: "spec.clusterIP",
    FrontendKind.NODE_PORT: "spec.ports[].nodePort",
    FrontendKind.LOAD_BALANCER: "status.loadBalancer.ingress",
    FrontendKind.EXTERNAL_IP: "spec.externalIPs",
    FrontendKind.HOST_PORT: "hostPort",
}


def lost(service: Service, held: Mapping[FrontendKey, Claim], claims: Claims) -> set[Problem]:
    """A problem for each frontend that another Service has."""
    problems: set[Problem] = set()
    for key, claim in held.items():
        winner = claims.first(key)
        if winner is not None and winner is not claim and winner != claim:
            problems.add(_taken(service, key, claim.kind, winner))
    return problems


def _taken(service: Service, key: FrontendKey, kind: FrontendKind, winner: Claim) -> Problem:
    what = str(key.address)
    if key.protocol:
        host = f"[{what}]" if key.address.version == 6 else what
        what = f"{host}:{key.port}/{Protocol(key.protocol).name}"
    reason = f"{what} is taken by Service {winner.namespace}/{winner.name}"
    return _problem(service, _FIELDS[kind], reason)


def _problem(service: Service, field: str, reason: str) -> Problem:
    return Problem(str(service.key), field, reason)
