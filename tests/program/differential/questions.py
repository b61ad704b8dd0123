# SPDX-License-Identifier: Apache-2.0
"""Flows to ask a world: at each door of its Services, beside them, and where none is.

Must not know what is right.
"""

from __future__ import annotations

from random import Random

from dataplane.core.reference import Entry, FlowQuestion, World
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.objects import Service, ServiceType
from tests.program.differential import cluster

_BEHIND = frozenset(cluster.BEHIND.values())

Target = tuple[IPAddress, int, Protocol, Service | None]


def questions(world: World, rng: Random, number: int) -> list[FlowQuestion]:
    """About as many flows, each once."""
    asked = [t for s in world.services for t in _doors(world, s, rng)]
    beside = _beside(world, rng)
    found: dict[FlowQuestion, None] = {}
    for _ in range(number):
        address, port, protocol, service = rng.choice(asked if rng.random() < 0.8 else beside)
        if address.version in world.families:
            source, entry = _sender(rng, Family(address.version), service)
            # what is behind the node is the stack's, which the model doesn't know for pods
            if source is not None and (entry is Entry.OUTSIDE or address not in _BEHIND):
                found[FlowQuestion(source, address, port, protocol, entry)] = None
    return list(found)


def _doors(world: World, service: Service, rng: Random) -> list[Target]:
    found: list[Target] = []
    host_port = service.type is ServiceType.HOST_PORT
    own = list(world.addresses) if not service.external_ips or not host_port else []
    for port in service.ports:
        plain = [*service.cluster_ips, *service.external_ips, *service.load_balancer_ips]
        found += [(a, port.port, port.protocol, service) for a in plain]
        # load balancers are asked more, for they have the more rules
        found += [(a, port.port, port.protocol, service) for a in service.load_balancer_ips] * 2
        if port.node_port:
            asked = [*own, *cluster.LOOPBACK.values()]
            found += [(a, port.node_port, port.protocol, service) for a in asked]
        if host_port:
            asked = [*own, *cluster.LOOPBACK.values()]
            found += [(a, port.port, port.protocol, service) for a in asked]
        other = rng.choice(cluster.PROTOCOLS)
        found += [(a, port.port, other, service) for a in service.cluster_ips]
    return found


def _beside(world: World, rng: Random) -> list[Target]:
    """Where no Service port is, or another kind of address."""
    found: list[Target] = []

    def put(pair: cluster.Pair, *ports: int) -> None:
        found.extend(
            (a, port, rng.choice(cluster.PROTOCOLS), None) for a in pair.values() for port in ports
        )

    for pair in rng.sample(cluster.CLUSTER_IPS, 4):
        put(pair, 4444)
    put(cluster.UNASSIGNED, 80, 53)
    put(cluster.STRAY_CLUSTER_IP, 80)
    put(cluster.GHOST, 80, 53)
    put(cluster.NOWHERE, 80, 53)
    put(cluster.GROUP, 5353)
    put(cluster.NULL, 80)
    put(cluster.LOOPBACK, 80)
    put(cluster.BEHIND, 80)
    put(cluster.GATEWAYS, 80)
    low, high = world.masquerade_ports
    put(cluster.OWN, 22, 30001, 50000, low - 1, low, high, high + 1)
    put(cluster.OWN_SECOND, 22, 60000)
    put(cluster.ROUTER, 30002, 50000)
    put(cluster.PEERS["two"], 22, 30001)
    put(cluster.FAR_SERVER, 443)
    put(cluster.KEPT_SERVER, 443)
    put(rng.choice(cluster.PODS), 8080)
    put(rng.choice(cluster.REMOTE_PODS), 8080)
    for pair in (cluster.OWN, cluster.PEERS["three"]):
        found += [(a, cluster.VXLAN_PORT, Protocol.UDP, None) for a in pair.values()] * 2
    return found


def _sender(rng: Random, family: Family, service: Service | None) -> tuple[IPAddress | None, Entry]:
    if rng.random() < 0.5:
        return rng.choice(cluster.PODS)[family], Entry.POD
    dice = rng.random()
    if service is not None and service.source_ranges and dice < 0.25:
        own = [a for a in service.load_balancer_ips if a.version == family]
        return (rng.choice(own) if own else None), Entry.OUTSIDE
    if dice < 0.04:
        nobody = cluster.NULL, cluster.LOOPBACK, cluster.LINK
        strange = rng.choice([*nobody, cluster.PODS[0], cluster.GROUP])
        return strange[family], Entry.OUTSIDE
    if dice < 0.1:
        return cluster.FOREIGN_POD[family], Entry.OUTSIDE
    return rng.choice(cluster.OUTSIDERS)[family], Entry.OUTSIDE
