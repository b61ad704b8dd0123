# SPDX-License-Identifier: Apache-2.0
"""What `lab check` asks, and what each answer should be: objects to rows. Pure.

From a pod of every node and from the node itself to every Service port of each family, at
each of its addresses; from one of the node's hostNetwork pods to its ClusterIPs; from outside
to what a Service's type opens; from every node to every pod. Who may answer is what the
slices say by kube-proxy's rules (core.endpoints), never what the kernel holds. Must not send
anything or know addresses that are in no object but the underlay's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from dataplane.core.endpoints import Selection, select
from dataplane.core.frontends import is_served
from dataplane.lab.question import PROTOCOLS, Answerer, Outcome, Row, Source, SourceKind
from dataplane.lab.topology import OUTSIDE, outside_address
from dataplane.lab.world import World, address_of, pod_name
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, IPAddress, family_of
from dataplane.model.objects import Node, Pod, Service, ServicePort, ServiceType

_PER_BACKEND, _LEAST, _MOST = 16, 8, 1024
"""Requests: 16 a backend miss none of up to 64 backends but once in 10 million rows."""


def rows(world: World) -> list[Row]:
    """All rows, Services first, in the order of their names."""
    found: list[Row] = []
    for service in sorted(world.services, key=lambda s: (s.namespace, s.name)):
        if service.type is ServiceType.HEADLESS and not service.skipped:
            found += _headless_rows(world, service)
        elif is_served(service):
            for port in service.ports:
                if port.protocol in PROTOCOLS:
                    found += _port_rows(world, service, port)
    for pod in sorted(world.pods, key=pod_name):
        found += _pod_rows(world, pod)
    return found


def _families(world: World, service: Service) -> list[Family]:
    return [f for f in world.families if any(family_of(a) is f for a in service.cluster_ips)]


def _select(
    world: World, service: Service, port: ServicePort, family: Family, node: Node
) -> Selection:
    slices = [
        piece
        for piece in world.by_service.get((service.namespace, service.name), ())
        if piece.family is family
    ]
    return select(slices, port.name, port.protocol, node.name, node.zone, wants_local=True)


class _Door(NamedTuple):
    """An address and port beside the ClusterIPs at which a Service port may be asked."""

    address: IPAddress
    number: int
    is_node_port: bool = False
    is_guarded: bool = False
    """Whether loadBalancerSourceRanges stand before it, whoever asks."""


def _doors(
    world: World, service: Service, port: ServicePort, node: Node, family: Family
) -> Iterator[_Door]:
    """External and load-balancer addresses, and NodePorts at a node's own.

    A range guards load-balancer addresses of its family, also one that is an external address too.
    """
    guarded = any(r.version == family for r in service.source_ranges)
    balanced = [a for a in service.load_balancer_ips if family_of(a) is family]
    for address in service.external_ips:
        if family_of(address) is family and address not in balanced:
            yield _Door(address, port.port)
    for address in balanced:
        yield _Door(address, port.port, is_guarded=guarded)
    if port.node_port and service.type is not ServiceType.CLUSTER_IP:
        for address in world.settings(node).node_port_addresses(family):
            yield _Door(address, port.node_port, is_node_port=True)


def _port_rows(world: World, service: Service, port: ServicePort) -> Iterator[Row]:
    for family in _families(world, service):
        for node in world.nodes:
            asked = _Asked(world, service, port, family, node)
            doors = list(_doors(world, service, port, node, family))
            yield from asked.by_pod(doors)
            yield from asked.by_node(doors)
            yield from asked.from_outside(doors)


class _Asked:
    """The rows of one Service port in one family that enter by one node."""

    def __init__(
        self, world: World, service: Service, port: ServicePort, family: Family, node: Node
    ) -> None:
        self._world, self._service, self._port = world, service, port
        self._family, self._node = family, node
        self._chosen = _select(world, service, port, family, node)
        own = [_Door(a, port.port) for a in service.cluster_ips if family_of(a) is family]
        self._cluster_ips = own

    def by_pod(self, doors: Iterable[_Door]) -> Iterator[Row]:
        """From a pod of the node: what is for outside binds it no more than the node."""
        found = _sender(self._world, self._node, self._family, _places(self._chosen, False))
        if found is None:
            return
        pod, source = found
        address = address_of(pod, self._family)
        hidden = not self._service.external_local
        for door in self._cluster_ips:
            yield self._row(source, address, door, self._service.internal_local, pod)
        for door in doors:
            yield self._row(source, address, door, False, pod, hidden)

    def by_node(self, doors: Iterable[_Door]) -> Iterator[Row]:
        """From the node itself to all addresses, from a host pod to its ClusterIPs.

        What it is for outside binds no node: externalTrafficPolicy Local counts for others.
        """
        node = self._node
        origin = Source(SourceKind.NODE, node.name, node.name)
        address = next((a for a in node.addresses if family_of(a) is self._family), None)
        host_pods = [p for p in self._world.pods if p.host_network and p.node_name == node.name]
        origins = [origin]
        if host_pods:
            first = min(map(pod_name, host_pods))
            origins.append(Source(SourceKind.POD, node.name, first))
        for source in origins:
            for door in self._cluster_ips:
                row = self._row(source, address, door, self._service.internal_local)
                yield self._by_socket(row)
        for door in doors:
            yield self._by_socket(self._row(origin, address, door, False))

    def from_outside(self, doors: Iterable[_Door]) -> Iterator[Row]:
        """From beyond the underlay to what it leads to this node."""
        source = Source(SourceKind.OUTSIDE, self._node.name, OUTSIDE)
        address = outside_address(self._family)
        for door in doors:
            if door.is_node_port or self._world.entries.get(door.address) == self._node.name:
                yield self._row(source, address, door, self._service.external_local)

    def _by_socket(self, row: Row) -> Row:
        """Whatever it asks for, the node talks to its backend by an address of its own."""
        own = self._world.node_addresses(self._node.name)
        answerers = tuple(replace(answerer, clients=own) for answerer in row.answerers)
        return replace(row, answerers=answerers, by_socket=True)

    def _row(
        self, source: Source, client: IPAddress | None, door: _Door, local: bool,
        sender: Pod | None = None, hidden: bool = False,
    ) -> Row:  # fmt: skip
        """client: the sender's address. hidden: whether it is a pod's that no backend may see."""
        service, port, node = self._service, self._port, self._node
        places = _places(self._chosen, local)
        outcome = Outcome.ANSWERED
        if not _places(self._chosen, False):
            outcome = Outcome.REFUSED
        elif door.is_guarded and not any(client in r for r in service.source_ranges if client):
            outcome = Outcome.SHUT_OUT
        elif not places:
            outcome = Outcome.DROPPED
        if outcome is not Outcome.ANSWERED:
            places = []
        return Row(
            namespace=service.namespace,
            name=service.name,
            port=port.port,
            protocol=port.protocol,
            family=self._family,
            type=service.type.value,
            source=source,
            address=door.address,
            number=door.number,
            entry=node.name,
            outcome=outcome,
            answerers=tuple(
                answerer
                for at, to in places
                for answerer in _answerers(
                    self._world, service, self._family, at, to, node, sender, local, hidden
                )
            ),
            requests=_requests(len(places)) if places else 2,
            every=not service.affinity_seconds,
            counted=ServiceName(
                service.namespace,
                service.name,
                port.name or str(port.port),
                port.protocol,
                self._family,
            ),
        )


def _places(chosen: Selection, local: bool) -> list[tuple[IPAddress, int]]:
    return [chosen.listed[place][:2] for place in (chosen.local if local else chosen.cluster)]


def _requests(backends: int) -> int:
    return min(max(_PER_BACKEND * backends, _LEAST), _MOST)


def _answerers(
    world: World, service: Service, family: Family, address: IPAddress, port: int,
    node: Node, sender: Pod | None, local: bool, hidden: bool = False,
) -> Iterator[Answerer]:  # fmt: skip
    """The pods at an endpoint's address (host pods may share one), or a host outside."""
    targets = {
        endpoint.target
        for piece in world.by_service.get((service.namespace, service.name), ())
        for endpoint in piece.endpoints
        if endpoint.address == address
    }
    pods = [p for p in world.by_address.get(address, ()) if not p.host_network]
    if not pods:
        pods = [
            p
            for p in world.by_address.get(address, ())
            if pod_name(p) in targets or not any(targets)
        ]
    for pod in pods:
        clients = _clients(world, family, pod, node, sender, local, hidden)
        yield Answerer(pod_name(pod), pod.node_name, address, port, clients)
    if not pods:
        clients = world.node_addresses(node.name)
        yield Answerer(OUTSIDE, "", address, port, clients)


def _clients(
    world: World, family: Family, pod: Pod, node: Node, sender: Pod | None, local: bool,
    hidden: bool,
) -> frozenset[IPAddress]:  # fmt: skip
    """The client addresses that a pod may see when asked through `node`.

    No translation of the source between pods, but for a pod that reaches itself, and one that
    asks for what is open to outside under the Cluster policy (hidden). VXLAN carries pods'
    packets to pods only: to a host pod on another node they go as the node's. Outside clients
    are kept under the Local policy, and before the node's own servers.
    """
    own = world.node_addresses(node.name)
    if sender is None:
        client = outside_address(family)
        if local:
            return frozenset({client})
        return own | {client} if pod.host_network else own
    address = address_of(sender, family)
    if address is None or address in pod.addresses:
        return own
    if pod.host_network and pod.node_name == node.name:
        return frozenset({address})
    if hidden or (pod.host_network and not world.native):
        return own
    return frozenset({address})


def _sender(
    world: World, node: Node, family: Family, places: Iterable[tuple[IPAddress, int]]
) -> tuple[Pod, Source] | None:
    """A pod of the node to ask from; one that is no endpoint itself, if there is one."""
    endpoints = {address for address, _ in places}
    candidates = [
        pod
        for pod in (*sorted(world.pods, key=pod_name), *world.guests.values())
        if pod.node_name == node.name and not pod.host_network and address_of(pod, family)
    ]
    candidates.sort(key=lambda pod: bool(endpoints.intersection(pod.addresses)))
    if not candidates:
        return None
    return candidates[0], Source(SourceKind.POD, node.name, pod_name(candidates[0]))


def _headless_rows(world: World, service: Service) -> Iterator[Row]:
    for port in service.ports:
        for family in world.families if port.protocol in PROTOCOLS else ():
            for node in world.nodes:
                chosen = _select(world, service, port, family, node)
                source = _sender(world, node, family, _places(chosen, False))
                if source is None:
                    continue
                pod, origin = source
                for address, number in _places(chosen, False):
                    # To itself a pod's packets stay in it: no program sees them.
                    if address in pod.addresses:
                        continue
                    yield Row(
                        namespace=service.namespace,
                        name=service.name,
                        port=port.port,
                        protocol=port.protocol,
                        family=family,
                        type=service.type.value,
                        source=origin,
                        address=address,
                        number=number,
                        entry=node.name,
                        outcome=Outcome.ANSWERED,
                        answerers=tuple(
                            _answerers(world, service, family, address, number, node, pod, False)
                        ),
                        requests=_LEAST,
                    )


def _pod_rows(world: World, pod: Pod) -> Iterator[Row]:
    """From every node to a pod, on one port a protocol."""
    if pod.host_network:
        return
    for protocol in PROTOCOLS:
        ports = [number for p, number in world.stand_ins.get(pod_name(pod), ()) if p is protocol]
        if not ports:
            continue
        for address in pod.addresses:
            family = family_of(address)
            if family not in world.families:
                continue
            for node in world.nodes:
                own = world.node_addresses(node.name)
                yield Row(
                    namespace=pod.namespace,
                    name=pod.name,
                    port=ports[0],
                    protocol=protocol,
                    family=family,
                    type="Pod",
                    source=Source(SourceKind.NODE, node.name, node.name),
                    address=address,
                    number=ports[0],
                    entry=node.name,
                    outcome=Outcome.ANSWERED,
                    answerers=(Answerer(pod_name(pod), pod.node_name, address, ports[0], own),),
                    requests=_LEAST,
                    by_socket=True,
                )
