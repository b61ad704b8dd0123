# SPDX-License-Identifier: Apache-2.0
"""What a control plane gives Services: families, ClusterIPs, node ports, load-balancer addresses.

Pure. A Service gets all that it needs or is left out whole, with the field that was in
the way. What it had before it keeps; what a manifest asks for is never given to another.
Must not know pods.

Source: the API server's allocators (ranges for hand-picked values first, one node port
for TCP and UDP of one port number) and its rules for dual-stack Services.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

from dataplane.model.net import Family, IPAddress, IPNetwork, family_of
from dataplane.model.objects import ObjectKey, Problem, Service, ServicePort, ServiceType
from dataplane.sources.services import ServiceManifest

SERVICE_RANGES: Mapping[Family, IPNetwork] = {
    Family.V4: IPv4Network("10.96.0.0/16"),
    Family.V6: IPv6Network("fd00:10:96::/112"),
}
LOAD_BALANCER_RANGES: Mapping[Family, IPNetwork] = {
    Family.V4: IPv4Network("198.51.100.0/24"),
    Family.V6: IPv6Network("2001:db8:1b::/64"),
}
NODE_PORTS = range(30_000, 32_768)

# Values below these are given only on request, or when all others are taken.
_FIRST_ADDRESS = 257
_FIRST_NODE_PORT = 30_086
_MOST_TRIED = 65_536

_T = TypeVar("_T", bound=Hashable)


class _LeftOut(Exception):
    """A Service that can't be served: the field in the way, and why."""

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"{field}: {reason}")


class _Pool(Generic[_T]):
    """Values, each of one Service at a time."""

    def __init__(self, name: str, candidates: Iterable[_T], avoid: Iterable[_T]) -> None:
        self.name = name
        self.holders: dict[_T, ObjectKey] = {}
        self._candidates = iter(candidates)
        self._avoid = frozenset(avoid)

    def claim(self, value: _T, holder: ObjectKey, field: str) -> _T:
        if value in self.holders:
            raise _LeftOut(field, f"{value} is {self.holders[value]}'s")
        self.holders[value] = holder
        return value

    def any(self, holder: ObjectKey, field: str) -> _T:
        """The next value that nobody has or asked for."""
        for value in self._candidates:
            if value not in self.holders and value not in self._avoid:
                self.holders[value] = holder
                return value
        raise _LeftOut(field, f"all of {self.name} is taken; use fewer Services")

    def release(self, holder: ObjectKey) -> None:
        for value in [value for value, owner in self.holders.items() if owner == holder]:
            del self.holders[value]


@dataclass(frozen=True, slots=True)
class _Pools:
    addresses: Mapping[Family, _Pool[IPAddress]]
    node_ports: _Pool[int]
    load_balancers: Mapping[Family, _Pool[IPAddress]]

    def release(self, holder: ObjectKey) -> None:
        self.node_ports.release(holder)
        for pool in (*self.addresses.values(), *self.load_balancers.values()):
            pool.release(holder)


def allocate(
    manifests: Sequence[ServiceManifest],
    cluster: Sequence[Family],
    previous: Mapping[ObjectKey, Service],
) -> tuple[tuple[Service, ...], tuple[str, ...], tuple[Problem, ...]]:
    """The Services with all that they were given, in order; notes; those left out.

    Args:
        cluster: the cluster's families, the primary one first.
    """
    pools = _pools(manifests, cluster, previous.values())
    served: dict[ObjectKey, Service] = {}
    notes: list[str] = []
    problems: list[Problem] = []
    # Whoever asks for nothing but what it has comes first: nothing can take that away.
    for manifest in sorted(manifests, key=lambda m: not _keeps(m, previous.get(m.key))):
        before = previous.get(manifest.key)
        try:
            served[manifest.key] = _allocate(manifest, cluster, before, pools, notes)
        except _LeftOut as left:
            pools.release(manifest.key)
            problems.append(Problem(str(manifest.key), left.field, left.reason))
    preferred = sum(1 for m in manifests if not m.family_policy and m.key in served)
    if len(cluster) > 1 and preferred:
        notes.append(
            f"{preferred} Services without ipFamilyPolicy are PreferDualStack: the lab is dual-stack"
        )
    return tuple(served[m.key] for m in manifests if m.key in served), tuple(notes), tuple(problems)


def _had(service: Service) -> set[object]:
    ports = {port.node_port for port in service.ports} | {service.health_check_node_port}
    return {*service.cluster_ips, *(ports - {0})}


def _keeps(manifest: ServiceManifest, before: Service | None) -> bool:
    return before is not None and _had(manifest.service) <= _had(before)


def _pools(
    manifests: Sequence[ServiceManifest], cluster: Sequence[Family], previous: Iterable[Service]
) -> _Pools:
    services = [*previous, *(manifest.service for manifest in manifests)]
    addresses = [a for s in services for a in (*s.cluster_ips, *s.load_balancer_ips)]
    addresses += [m.load_balancer_ip for m in manifests if m.load_balancer_ip]
    ports = [p.node_port for s in services for p in s.ports]
    ports += [s.health_check_node_port for s in services]
    return _Pools(
        {f: _Pool(str(SERVICE_RANGES[f]), _service_addresses(f), addresses) for f in cluster},
        _Pool(
            f"{NODE_PORTS[0]}-{NODE_PORTS[-1]}",
            [*range(_FIRST_NODE_PORT, NODE_PORTS.stop), *range(NODE_PORTS.start, _FIRST_NODE_PORT)],
            ports,
        ),
        {
            f: _Pool(str(LOAD_BALANCER_RANGES[f]), _usable(LOAD_BALANCER_RANGES[f], 1), addresses)
            for f in cluster
        },
    )


def _service_addresses(family: Family) -> Iterator[IPAddress]:
    network = SERVICE_RANGES[family]
    yield from _usable(network, _FIRST_ADDRESS)
    for number in range(1, _FIRST_ADDRESS):
        yield network[number]


def _usable(network: IPNetwork, first: int) -> Iterator[IPAddress]:
    for number in range(first, min(network.num_addresses - 1, _MOST_TRIED)):
        yield network[number]


def _allocate(
    manifest: ServiceManifest,
    cluster: Sequence[Family],
    before: Service | None,
    pools: _Pools,
    notes: list[str],
) -> Service:
    service = manifest.service
    if service.type is ServiceType.EXTERNAL_NAME:
        return service
    families = _families(manifest, cluster)
    if service.type is ServiceType.HEADLESS:
        return replace(service, families=families)
    exposed = service.type is ServiceType.NODE_PORT or (
        service.type is ServiceType.LOAD_BALANCER and manifest.allocate_node_ports
    )
    load_balancer = service.type is ServiceType.LOAD_BALANCER
    return replace(
        service,
        families=families,
        cluster_ips=tuple(_cluster_ip(service, f, before, pools) for f in families),
        ports=_node_ports(service, exposed, before, pools.node_ports),
        health_check_node_port=_health_port(service, before, pools.node_ports),
        load_balancer_ips=(
            tuple(_load_balancer_ip(manifest, f, before, pools, notes) for f in families)
            if load_balancer
            else ()
        ),
    )


def _families(manifest: ServiceManifest, cluster: Sequence[Family]) -> tuple[Family, ...]:
    wanted = manifest.service.families
    default = "PreferDualStack" if len(cluster) > 1 else "SingleStack"
    policy = manifest.family_policy or default
    if policy == "RequireDualStack" and len(cluster) < 2:
        raise _LeftOut(
            "spec.ipFamilyPolicy", f"RequireDualStack, but the lab has {_words(cluster)} only"
        )
    served = tuple(family for family in wanted if family in cluster)
    if len(served) < len(wanted) and (policy != "PreferDualStack" or not served):
        raise _LeftOut(
            "spec.ipFamilies", f"asks for {_words(wanted)}; the lab has {_words(cluster)} only"
        )
    if policy == "SingleStack":
        if len(wanted) > 1:
            raise _LeftOut(
                "spec.ipFamilyPolicy", f"SingleStack, but {_words(wanted)} are asked for"
            )
        return served or (cluster[0],)
    return (*served, *(family for family in cluster if family not in served))


def _words(families: Sequence[Family]) -> str:
    return " and ".join(f"IPv{int(family)}" for family in families)


def _of(addresses: Iterable[IPAddress], family: Family) -> IPAddress | None:
    return next((address for address in addresses if family_of(address) is family), None)


def _cluster_ip(
    service: Service, family: Family, before: Service | None, pools: _Pools
) -> IPAddress:
    field, pool, network = "spec.clusterIP", pools.addresses[family], SERVICE_RANGES[family]
    wanted = _of(service.cluster_ips, family)
    if wanted is not None:
        if wanted not in network or wanted == network[0]:
            raise _LeftOut(field, f"{wanted} is outside the Service range {network}")
        return pool.claim(wanted, service.key, field)
    kept = _of(before.cluster_ips, family) if before else None
    return _keep_or_any(pool, kept, service.key, field)


def _keep_or_any(pool: _Pool[_T], kept: _T | None, holder: ObjectKey, field: str) -> _T:
    if kept is not None and kept not in pool.holders:
        return pool.claim(kept, holder, field)
    return pool.any(holder, field)


def _node_ports(
    service: Service, exposed: bool, before: Service | None, pool: _Pool[int]
) -> tuple[ServicePort, ...]:
    had = {(p.protocol, p.port): p.node_port for p in before.ports} if before else {}
    mine: dict[int, set[object]] = {}
    by_number: dict[int, int] = {}
    made: list[ServicePort] = []
    for index, port in enumerate(service.ports):
        field = f"spec.ports[{index}].nodePort"
        number = port.node_port
        if not number and exposed:
            number = by_number.get(port.port) or _keep_or_any(
                pool, had.get((port.protocol, port.port)) or None, service.key, field
            )
            mine.setdefault(number, set())
        if number:
            if number not in NODE_PORTS:
                raise _LeftOut(field, f"{number} is not from {NODE_PORTS[0]} to {NODE_PORTS[-1]}")
            if port.protocol in mine.get(number, ()):
                raise _LeftOut(field, f"{number}/{port.protocol.name} is given twice")
            if number not in mine:
                pool.claim(number, service.key, field)
            mine.setdefault(number, set()).add(port.protocol)
            by_number.setdefault(port.port, number)
        made.append(replace(port, node_port=number))
    return tuple(made)


def _health_port(service: Service, before: Service | None, pool: _Pool[int]) -> int:
    field = "spec.healthCheckNodePort"
    if service.type is not ServiceType.LOAD_BALANCER or not service.external_local:
        return 0
    if wanted := service.health_check_node_port:
        if wanted not in NODE_PORTS:
            raise _LeftOut(field, f"{wanted} is not from {NODE_PORTS[0]} to {NODE_PORTS[-1]}")
        return pool.claim(wanted, service.key, field)
    kept = before.health_check_node_port if before else 0
    return _keep_or_any(pool, kept or None, service.key, field)


def _load_balancer_ip(
    manifest: ServiceManifest,
    family: Family,
    before: Service | None,
    pools: _Pools,
    notes: list[str],
) -> IPAddress:
    pool, field = pools.load_balancers[family], "status.loadBalancer"
    kept = _of(before.load_balancer_ips, family) if before else None
    wanted = manifest.load_balancer_ip
    if wanted is not None and family_of(wanted) is family:
        if wanted in LOAD_BALANCER_RANGES[family] and wanted not in pool.holders:
            kept = wanted
        else:
            notes.append(
                f"{manifest.key}: loadBalancerIP {wanted} is taken or outside "
                f"{LOAD_BALANCER_RANGES[family]}; another one is given"
            )
    return _keep_or_any(pool, kept, manifest.key, field)
