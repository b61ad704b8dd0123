# SPDX-License-Identifier: Apache-2.0
"""A cluster's control plane as one pure function: manifests in, everything assigned out.

Nodes with pod ranges, pods with nodes and addresses, Services with theirs, EndpointSlices.
Applied again it keeps all that it gave before. What can't be served is named as a
Problem and left out; the rest is served. Must not do I/O or know what runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from dataplane.lab.controlplane_objects import (
    Json,
    node_object,
    pod_object,
    service_object,
    slice_object,
)
from dataplane.lab.controlplane_pods import place
from dataplane.lab.controlplane_services import allocate
from dataplane.lab.topology import NodePlace
from dataplane.model.net import Family, IPNetwork, Protocol, family_of
from dataplane.model.objects import EndpointSlice, Node, Pod, Problem, Service
from dataplane.sources.manifests import Manifests
from dataplane.sources.selection import PodIndex, selects, slices_for, target_number

CLUSTER_RANGES = {
    Family.V4: IPv4Network("10.244.0.0/16"),
    Family.V6: IPv6Network("fd00:10:244::/48"),
}
"""What the nodes' pod ranges are parts of: clusterCIDRs."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A lab's objects, complete. families: the lab's, the primary one first.

    notes say what was chosen for the user; problems are those of the manifests, then
    what could not be assigned.
    """

    families: tuple[Family, ...]
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def to_manifests(self) -> list[Json]:
        """Node, Service, EndpointSlice and Pod objects in Kubernetes' JSON, in this order."""
        return [
            *(node_object(node) for node in self.nodes),
            *(service_object(service) for service in self.services),
            *(slice_object(piece) for piece in self.slices),
            *(pod_object(pod) for pod in self.pods),
        ]


def stand_in_ports(
    pod: Pod, services: Iterable[Service], slices: Iterable[EndpointSlice]
) -> tuple[tuple[Protocol, int], ...]:
    """What a pod must answer on, sorted: ports of its containers, of Services that select it,
    and of slices that name its address."""
    found = {(port.protocol, port.port) for port in pod.ports}
    for service in services:
        if service.namespace == pod.namespace and selects(service, pod):
            numbers = ((port.protocol, target_number(port, pod)) for port in service.ports)
            found |= {(protocol, number) for protocol, number in numbers if number}
    name = f"{pod.namespace}/{pod.name}"
    for piece in slices:
        for endpoint in piece.endpoints:
            # Pods on a node's own network share its addresses.
            mine = endpoint.target == name or not (endpoint.target or pod.host_network)
            if mine and endpoint.address in pod.addresses:
                found |= {(port.protocol, port.port) for port in piece.ports}
    return tuple(sorted(found))


def pod_range(number: int, family: Family) -> IPNetwork:
    """The pod range of the n-th node, from 1."""
    if family is Family.V4:
        return IPv4Network(f"10.244.{number}.0/24")
    return IPv6Network(f"fd00:10:244:{number}::/64")


def assign(
    manifests: Manifests,
    places: Sequence[NodePlace],
    families: Sequence[Family],
    previous: Assigned | None = None,
) -> Assigned:
    """Give everything in `manifests` what a control plane would.

    Args:
        places: the nodes, each with its name and addresses.
        families: the lab's, the primary one first.
        previous: what was assigned before, which stays where it still fits.
    """
    families = tuple(families)
    nodes = _nodes(manifests, places, families)
    before = previous or Assigned(families, (), (), (), ())
    pods, pod_notes, pod_problems = place(manifests, nodes, families, before.pods)
    services, service_notes, service_problems = allocate(
        manifests.services, families, {service.key: service for service in before.services}
    )
    own_slices, slice_notes = _given_slices(manifests, services)
    slices, slice_problems = _slices(services, own_slices, pods, nodes)
    strangers = [n.name for n in manifests.nodes if n.name not in {node.name for node in nodes}]
    node_notes = (
        (f"Nodes {', '.join(strangers)} are not used: the lab has its own",) if strangers else ()
    )
    return Assigned(
        families,
        nodes,
        pods,
        services,
        slices,
        (*service_notes, *pod_notes, *slice_notes, *node_notes),
        (*manifests.problems, *service_problems, *pod_problems, *slice_problems),
    )


def _nodes(
    manifests: Manifests, places: Sequence[NodePlace], families: Sequence[Family]
) -> tuple[Node, ...]:
    """The lab's nodes; one of the same name in the manifests lends its zone."""
    zones = {node.name: node.zone for node in manifests.nodes}
    return tuple(
        Node(
            place.name,
            tuple(a for family in families for a in place.addresses if family_of(a) is family),
            pod_cidrs=tuple(pod_range(number, family) for family in families),
            zone=zones.get(place.name, ""),
        )
        for number, place in enumerate(places, 1)
    )


def _given_slices(
    manifests: Manifests, services: Sequence[Service]
) -> tuple[tuple[EndpointSlice, ...], tuple[str, ...]]:
    """Slices that users wrote. Those of a Service with a selector are the lab's to make."""
    selecting = {(s.namespace, s.name) for s in services if s.selector}
    given = tuple(s for s in manifests.slices if (s.namespace, s.service) not in selecting)
    left = len(manifests.slices) - len(given)
    note = f"{left} EndpointSlices of Services with a selector are not used: the lab makes them"
    return given, (note,) if left else ()


def _slices(
    services: Sequence[Service],
    given: Sequence[EndpointSlice],
    pods: Sequence[Pod],
    nodes: Sequence[Node],
) -> tuple[tuple[EndpointSlice, ...], tuple[Problem, ...]]:
    index = PodIndex(pods)
    zones = {node.name: node.zone for node in nodes if node.zone}
    taken = {(piece.namespace, piece.name) for piece in given}
    slices = list(given)
    problems: list[Problem] = []
    for service in services:
        if service.selector and service.families:
            made, missing = slices_for(service, service.families, index, zones, taken)
            taken |= {(piece.namespace, piece.name) for piece in made}
            slices += made
            problems += missing
    return tuple(slices), tuple(problems)
