# SPDX-License-Identifier: Apache-2.0
"""Random objects, biased to the corners of the contract, and random changes of them.

A Service is made with a plan of its own for endpoints (all ready, draining, hinted, ...), so
that each rule decides often. Must not know what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple

from dataplane.core.reference import World
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.objects import (
    EndpointSlice,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from tests.program.differential import cluster

SERVICES = 12
PORT_NAMES = ("", "web", "dns")
PORTS = (80, 81, 53, 30001)
NODE_PORTS = (0, 30001, 30002, 30003, 30004, 30005, 30006)
TARGETS = (8080, 8081, 5353)
PROTOCOLS = (*cluster.PROTOCOLS, *cluster.PROTOCOLS, Protocol.TCP)
# What a pod may name as hostIP: of the node, loopback, and what is another's.
HOST_IPS = [
    cluster.OWN, cluster.OWN, cluster.OWN_SECOND, cluster.LOOPBACK,
    cluster.EXTERNALS[0], cluster.FAR_SERVER, cluster.PEERS["two"],
]  # fmt: skip
CREATED = ("", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
TYPES = (
    ServiceType.CLUSTER_IP, ServiceType.CLUSTER_IP, ServiceType.NODE_PORT, ServiceType.NODE_PORT,
    ServiceType.LOAD_BALANCER, ServiceType.LOAD_BALANCER, ServiceType.LOAD_BALANCER,
    ServiceType.HOST_PORT,
)  # fmt: skip


class State(NamedTuple):
    """Conditions of an endpoint."""

    ready: bool
    serving: bool
    terminating: bool


READY, UNREADY, SERVING = (
    State(True, True, False),
    State(False, False, False),
    State(False, True, False),
)
DRAINING, ENDING = State(False, True, True), State(False, False, True)

# What the endpoints of a Service may be, together.
PLANS: dict[str, tuple[State, ...]] = {
    "ready": (READY,),
    "mixed": (READY, UNREADY, SERVING, DRAINING, ENDING),
    "draining": (DRAINING, SERVING, ENDING),
    "unusable": (UNREADY, SERVING, ENDING),
    "mostly ready": (READY, READY, READY, DRAINING),
}
HINTS = ("none", "none", "zone", "zone", "node", "both", "gaps")
PLACES = ("any", "any", "any", "local", "remote", "one", "odd", "empty")


class Maker:
    """Makes objects from one source of randomness."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def world(self) -> World:
        """A node with objects."""
        rng = self._rng
        families = rng.choice([tuple(Family)] * 6 + [(Family.V4,), (Family.V6,)])
        services = tuple(self.service(number) for number in range(SERVICES))
        slices = tuple(piece for s in services for piece in self.slices(s))
        own = (*cluster.OWN.values(), *cluster.OWN_SECOND.values())
        return World(
            node=cluster.HERE,
            services=services,
            slices=slices,
            nodes=cluster.NODES,
            addresses=tuple(a for a in own if a.version in families),
            routers={f: a for f, a in cluster.ROUTER.items() if f in families},
            families=families,
            zone=rng.choice(["east", "east", "west", ""]),
            pod_cidrs=cluster.POD_CIDRS,
            pods=frozenset(pod[f] for pod in cluster.PODS for f in families),
            cluster_cidrs=cluster.CLUSTER_CIDRS,
            service_cidrs=cluster.SERVICE_CIDRS,
            node_port_ranges=rng.choice(cluster.NODE_PORT_RANGES),
            localhost_node_ports=rng.random() < 0.5,
            masquerade_all=rng.random() < 0.3,
            non_masquerade_cidrs=cluster.KEPT_CIDRS,
            vxlan=rng.random() < 0.6,
            masquerade_ports=cluster.MASQUERADE_PORTS,
            vxlan_port=cluster.VXLAN_PORT,
        )

    def changed(self, world: World) -> World:
        """The world with some of its objects changed, as seen by one batch of a source."""
        rng = self._rng
        services, slices = list(world.services), list(world.slices)
        for at in rng.sample(range(len(services)), rng.randrange(2, 7)):
            service = services[at]
            theirs = [s for s in slices if _owner(s) == (service.namespace, service.name)]
            match rng.randrange(5):
                case 0:  # another Service of that name, with other endpoints
                    services[at] = service = self.service(at)
                    slices = [s for s in slices if s not in theirs] + list(self.slices(service))
                case 1:  # the same Service with other endpoints
                    slices = [s for s in slices if s not in theirs] + list(self.slices(service))
                case 2:  # its settings
                    services[at] = self._settings(service)
                case _ if theirs:  # some of its endpoints change state, or go
                    piece = rng.choice(theirs)
                    slices[slices.index(piece)] = self._aged(piece)
        return replace(world, services=tuple(services), slices=tuple(slices))

    # ---- Services ----
    def service(self, number: int) -> Service:
        """One of the cluster's Services; its name is its number's, all else is chance."""
        rng = self._rng
        kind = rng.choice(TYPES)
        namespace, name = ("a", "b")[number % 2], f"s{number}"
        made = rng.choice(CREATED)
        if kind is ServiceType.HOST_PORT:
            asked = self._some(HOST_IPS, 0.6)
            port = ServicePort("", rng.choice(PROTOCOLS), rng.choice((30001, 8888, 8889)))
            return Service(
                namespace, name, kind, (), (port,), asked, created=made,
                families=tuple(f for f in Family if rng.random() < 0.8),
            )  # fmt: skip
        ports = self._ports(kind is not ServiceType.CLUSTER_IP)
        plain = Service(namespace, name, kind, self._cluster_ips(number), ports, created=made)
        return self._settings(plain)

    def _cluster_ips(self, number: int) -> tuple[IPAddress, ...]:
        rng = self._rng
        pair = cluster.CLUSTER_IPS[number]
        if rng.random() < 0.06:  # another's, or of no range
            pair = rng.choice([*cluster.CLUSTER_IPS, cluster.STRAY_CLUSTER_IP])
        families = rng.choice([tuple(Family)] * 5 + [(Family.V4,), (Family.V6,), ()])
        return tuple(pair[f] for f in families)

    def _ports(self, exposed: bool) -> tuple[ServicePort, ...]:
        rng = self._rng
        found: dict[tuple[Protocol, int], ServicePort] = {}
        names = list(PORT_NAMES)
        rng.shuffle(names)
        for name in names[: rng.choice([1, 1, 2, 3])]:
            protocol, number = rng.choice(PROTOCOLS), rng.choice(PORTS)
            node_port = rng.choice(NODE_PORTS) if exposed else 0
            if not any(p.node_port == node_port and p.protocol is protocol for p in found.values()):
                found.setdefault((protocol, number), ServicePort(name, protocol, number, node_port))
        return tuple(found.values())

    def _settings(self, service: Service) -> Service:
        """The same Service with other addresses and policies."""
        rng = self._rng
        if service.type is ServiceType.HOST_PORT:
            return service
        balanced = service.type is ServiceType.LOAD_BALANCER
        externals = [*cluster.EXTERNALS, cluster.OWN, cluster.CLUSTER_IPS[0]]
        return replace(
            service,
            external_ips=self._some(externals, 0.4),
            load_balancer_ips=self._some(cluster.BALANCERS, 0.9) if balanced else (),
            source_ranges=tuple(rng.sample(cluster.SOURCE_RANGES, rng.choice([0, 0, 1, 2, 3])))
            if balanced
            else (),
            internal_local=rng.random() < 0.3,
            external_local=rng.random() < 0.45,
            affinity_seconds=rng.choice([0, 0, 0, 0, 60]),
            skipped=rng.choice([""] * 15 + ["service.kubernetes.io/service-proxy-name"]),
        )

    def _some(self, pairs: list[cluster.Pair], chance: float) -> tuple[IPAddress, ...]:
        rng = self._rng
        if rng.random() >= chance:
            return ()
        pair = rng.choice(pairs)
        return tuple(pair[f] for f in Family if rng.random() < 0.9)

    # ---- slices ----
    def slices(self, service: Service) -> Iterator[EndpointSlice]:
        """The slices of one Service: none, one or several a family, that may overlap."""
        rng = self._rng
        plan, hints, where = rng.choice(list(PLANS)), rng.choice(HINTS), rng.choice(PLACES)
        own = dict.fromkeys((p.name, p.protocol) for p in service.ports)
        for family in Family:
            for number in range(rng.choice([1, 1, 1, 2, 2, 3])):
                ports = [
                    SlicePort(name, protocol, rng.choice(TARGETS))
                    for name, protocol in own
                    if rng.random() < 0.95
                ]
                if rng.random() < 0.2:
                    stranger = rng.choice(PORT_NAMES), rng.choice(PROTOCOLS)
                    if stranger not in own:
                        ports.append(SlicePort(*stranger, rng.choice(TARGETS)))
                rng.shuffle(ports)
                yield EndpointSlice(
                    service.namespace,
                    f"{service.name}-{int(family)}-{number}",
                    service.name,
                    family,
                    tuple(ports),
                    tuple(self._endpoints(family, PLANS[plan], hints, where)),
                )

    def _endpoints(
        self, family: Family, states: tuple[State, ...], hints: str, where: str
    ) -> Iterator[SliceEndpoint]:
        rng = self._rng
        local = [(pod[family], cluster.HERE) for pod in cluster.PODS]
        remote = [
            (pod[family], ("two", "three")[at // 3]) for at, pod in enumerate(cluster.REMOTE_PODS)
        ]
        odd = [
            (cluster.OWN[family], cluster.HERE),
            (cluster.PEERS["two"][family], "two"),
            (cluster.FAR_SERVER[family], ""),
            (cluster.KEPT_SERVER[family], ""),
            (cluster.PODS[3][family], ""),  # a pod of this node that its slice does not place
        ]
        choices: dict[str, Callable[[], list[tuple[IPAddress, str]]]] = {
            "any": lambda: rng.sample(local + remote, rng.randrange(1, 6)),
            "local": lambda: rng.sample(local, rng.randrange(1, 4)),
            "remote": lambda: rng.sample(remote, rng.randrange(1, 4)),
            "one": lambda: rng.sample(local, 1),
            "odd": lambda: rng.sample(odd + local, rng.randrange(1, 4)),
            "empty": list,
        }
        for address, node in choices[where]():
            zone, place = self._hints(hints, node)
            if node == cluster.HERE and rng.random() < 0.12:
                node = ""  # its slice does not place it, another may
            yield SliceEndpoint(
                address, *rng.choice(states), node_name=node, zone_hints=zone, node_hints=place
            )

    def _hints(self, hints: str, node: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        rng = self._rng
        zones = rng.choice([("east",), ("west",), ("east", "west")])
        nodes = rng.choice([(node or "two",), (cluster.HERE,), ("two", "three")])
        match hints:
            case "zone":
                return zones, ()
            case "node":
                return (), nodes
            case "both":
                return zones, nodes
            case "gaps":
                return (zones if rng.random() < 0.7 else ()), (nodes if rng.random() < 0.7 else ())
        return (), ()

    def _aged(self, piece: EndpointSlice) -> EndpointSlice:
        """Some endpoints in another state, some gone."""
        rng = self._rng
        kept = [
            _in(e, rng.choice(PLANS["mixed"])) if rng.random() < 0.5 else e
            for e in piece.endpoints
            if rng.random() < 0.75
        ]
        return replace(piece, endpoints=tuple(kept))


def _in(endpoint: SliceEndpoint, state: State) -> SliceEndpoint:
    return replace(
        endpoint, ready=state.ready, serving=state.serving, terminating=state.terminating
    )


def _owner(piece: EndpointSlice) -> tuple[str, str]:
    return piece.namespace, piece.service
