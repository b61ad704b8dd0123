# SPDX-License-Identifier: Apache-2.0
"""What the Service maps must mean, said from scratch and slowly, and what maps do mean.

The second opinion on dataplane.core.desired: it shares no code with it but the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from dataplane.core.frontends import Settings
from dataplane.model.constants import BackendFlag, FrontendKind, ServiceFlag
from dataplane.model.net import Family, IPAddress, IPNetwork
from dataplane.model.objects import (
    EndpointSlice,
    Object,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
)
from dataplane.model.rows import FrontendKey
from tests.unit.fakes import FakeMaps

Place = tuple[IPAddress, int]


@dataclass(slots=True)
class Meaning:
    """Tables without ids.

    frontends: to kind and name of the Service port. services: name to Cluster and Local
    set, flags, affinity seconds. ranges: name to who may ask, if not all.
    backends: (name, address, port) to flags.
    """

    frontends: dict[FrontendKey, tuple[int, str]] = field(default_factory=dict)
    services: dict[str, tuple[frozenset[Place], frozenset[Place], int, int]] = field(
        default_factory=dict
    )
    backends: dict[tuple[str, IPAddress, int], int] = field(default_factory=dict)
    ranges: dict[str, frozenset[IPNetwork]] = field(default_factory=dict)


def meaning_of(maps: FakeMaps) -> Meaning:
    """What a reader of the maps understands."""
    meaning = Meaning()
    names = maps.names()
    for family in Family:
        for key, row in maps.frontends(family).items():
            name = "" if row.kind == FrontendKind.ADDRESS else names[row.service_id]
            meaning.frontends[key] = row.kind, name
        for backend in maps.backends(family).values():
            if backend.flags:
                place = names[backend.service_id], backend.address, backend.port
                assert place not in meaning.backends
                meaning.backends[place] = backend.flags
    for number, name in names.items():
        family = Family(int(name[-1]))
        record = maps.services().get(number)
        cluster, local, flags, affinity = (
            (record.cluster, record.local, record.flags, record.affinity_seconds)
            if record
            else (0, 0, 0, 0)
        )
        sets = [
            frozenset((b.address, b.port) for b in maps.members(word, family))
            for word in (cluster, local)
        ]
        assert name not in meaning.services
        flags &= ~ServiceFlag.RANGES_ODD
        if record and flags & ServiceFlag.SOURCE_RANGES:
            meaning.ranges[name] = maps.admitted(number, record, family)
        meaning.services[name] = sets[0], sets[1], flags, affinity
    return meaning


def meaning_for(objects: Iterable[Object], settings: Settings) -> Meaning:
    """What the maps must mean for these objects."""
    objects = list(objects)
    services = sorted(
        (o for o in objects if isinstance(o, Service)),
        key=lambda s: (s.created, s.namespace, s.name),
    )
    services = [s for s in services if not s.skipped and s.type in _TYPES]
    slices = sorted(
        (o for o in objects if isinstance(o, EndpointSlice)), key=lambda s: (s.namespace, s.name)
    )
    meaning = Meaning()
    whole: dict[IPAddress, Service] = {}
    for service in services:
        for address in service.cluster_ips:
            if _in_service_range(address, settings):
                whole.setdefault(address, service)
    for address in whole:
        meaning.frontends[FrontendKey(address, 0, 0)] = int(FrontendKind.ADDRESS), ""
    for kind in _KINDS:
        for service in services:
            for port, family, name in _ports(service, settings):
                for address, number in _asked(service, port, kind, settings):
                    if address.version != family:
                        continue
                    if kind is FrontendKind.CLUSTER_IP and whole.get(address) is not service:
                        continue
                    key = FrontendKey(address, number, int(port.protocol))
                    meaning.frontends.setdefault(key, (int(kind), name))
    for service in services:
        for port, family, name in _ports(service, settings):
            _backends(meaning, service, port, family, name, slices, settings)
    return meaning


_TYPES = {ServiceType.CLUSTER_IP, ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER}
_KINDS = (
    FrontendKind.CLUSTER_IP,
    FrontendKind.NODE_PORT,
    FrontendKind.LOAD_BALANCER,
    FrontendKind.EXTERNAL_IP,
)


def _in_service_range(address: IPAddress, settings: Settings) -> bool:
    if address.version not in settings.families:
        return False
    ranges = [r for r in settings.service_cidrs if r.version == address.version]
    return not ranges or any(address in r for r in ranges)


def _ports(service: Service, settings: Settings) -> Iterable[tuple[ServicePort, Family, str]]:
    for port in service.ports:
        for family in settings.families:
            if any(a.version == family for a in service.cluster_ips):
                text = f"{service.namespace}/{service.name}:{port.name or port.port}"
                yield port, family, f"{text}/{port.protocol.name}/{int(family)}"


def _asked(
    service: Service, port: ServicePort, kind: FrontendKind, settings: Settings
) -> list[Place]:
    if kind is FrontendKind.CLUSTER_IP:
        addresses = [a for a in service.cluster_ips if _in_service_range(a, settings)]
    elif kind is FrontendKind.LOAD_BALANCER:
        addresses = list(service.load_balancer_ips)
    elif kind is FrontendKind.EXTERNAL_IP:
        addresses = list(service.external_ips)
    else:
        if not port.node_port or service.type is ServiceType.CLUSTER_IP:
            return []
        primary = {a.version: a for a in reversed(settings.addresses)}
        found = list(primary.values())
        for version in primary:
            ranges = [r for r in settings.node_port_ranges if r.version == version]
            if ranges:
                found = [a for a in found if a.version != version]
                found += [a for a in settings.addresses if any(a in r for r in ranges)]
        found = [a for a in found if not a.is_loopback]
        loopback = ip_address("127.0.0.1")
        if settings.localhost_node_ports and 4 in settings.families:
            found += [loopback for r in settings.node_port_ranges[:1] if loopback in r]
        return [(a, port.node_port) for a in found]
    return [(a, port.port) for a in addresses]


def _backends(
    meaning: Meaning,
    service: Service,
    port: ServicePort,
    family: Family,
    name: str,
    slices: list[EndpointSlice],
    settings: Settings,
) -> None:
    listed: dict[Place, list[SliceEndpoint]] = {}
    for piece in slices:
        if (piece.namespace, piece.service) != (service.namespace, service.name):
            continue
        if piece.family is not family:
            continue
        for candidate in piece.ports:
            if (candidate.name, candidate.protocol) == (port.name, port.protocol):
                for endpoint in piece.endpoints:
                    listed.setdefault((endpoint.address, candidate.port), []).append(endpoint)

    def is_local(place: Place) -> bool:
        return any(e.node_name == settings.node for e in listed[place])

    def best(place: Place) -> SliceEndpoint:
        for good in (
            lambda e: e.ready,
            lambda e: e.serving and e.terminating,
            lambda e: e.serving,
            lambda e: True,
        ):
            for endpoint in listed[place]:
                if good(endpoint):
                    return endpoint
        raise AssertionError

    def usable(places: list[Place]) -> list[Place]:
        ready = [p for p in places if best(p).ready]
        return ready or [p for p in places if best(p).serving and best(p).terminating]

    everywhere = usable(list(listed))
    ready = [p for p in everywhere if best(p).ready]
    cluster = everywhere
    for hints, own in ((_node_hints, settings.node), (_zone_hints, settings.zone)):
        if ready and own and all(hints(best(p)) for p in ready):
            near = [p for p in ready if own in hints(best(p))]
            if near:
                cluster = near
                break
    outside = service.type is not ServiceType.CLUSTER_IP or bool(service.external_ips)
    external_local = service.external_local and outside
    local: list[Place] = []
    if service.internal_local or external_local:
        local = usable([p for p in listed if is_local(p)])
    flags = (
        (ServiceFlag.INTERNAL_LOCAL if service.internal_local else 0)
        | (ServiceFlag.EXTERNAL_LOCAL if external_local else 0)
        | (ServiceFlag.AFFINITY if service.affinity_seconds else 0)
    )
    ranges = _ranges(service, family, settings)
    if ranges:
        flags |= ServiceFlag.SOURCE_RANGES
        meaning.ranges[name] = ranges
    meaning.services[name] = (
        frozenset(cluster), frozenset(local), int(flags), service.affinity_seconds
    )  # fmt: skip
    for place in listed:
        state = BackendFlag.LISTED
        if best(place).serving or best(place).ready:
            state |= BackendFlag.SERVING
        if place in cluster:
            state |= BackendFlag.SELECTABLE | BackendFlag.IN_CLUSTER
        if place in local:
            state |= BackendFlag.SELECTABLE | BackendFlag.IN_LOCAL
        if is_local(place):
            state |= BackendFlag.LOCAL
        meaning.backends[name, *place] = int(state)


def _ranges(service: Service, family: Family, settings: Settings) -> frozenset[IPNetwork]:
    ranges = {r for r in service.source_ranges if r.version == family}
    if ranges & {ip_network("0.0.0.0/0"), ip_network("::/0")}:
        return frozenset()
    primary = next((a for a in settings.addresses if a.version == family), None)
    if primary and any(primary in r for r in ranges):
        ranges |= {ip_network(a) for a in service.load_balancer_ips if a.version == family}
    return frozenset(ranges)


def _node_hints(endpoint: SliceEndpoint) -> tuple[str, ...]:
    return endpoint.node_hints


def _zone_hints(endpoint: SliceEndpoint) -> tuple[str, ...]:
    return endpoint.zone_hints
