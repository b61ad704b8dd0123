# SPDX-License-Identifier: Apache-2.0
"""A cluster's control plane as one pure function: manifests in, everything assigned out.

Nodes with pod ranges, pods with nodes and addresses, Services with theirs, EndpointSlices.
Applied again it keeps all that it gave before. What can't be served is named as a
Problem and left out; the rest is served. Must not do I/O or know what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network

from dataplane.lab.controlplane_pods import place
from dataplane.lab.controlplane_services import allocate
from dataplane.model.errors import BadInput
from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol, family_of
from dataplane.model.objects import EndpointSlice, Node, Pod, Problem, Service
from dataplane.sources.manifests import Manifests
from dataplane.sources.selection import PodIndex, slices_for

CLUSTER_RANGES = {
    Family.V4: IPv4Network("10.244.0.0/16"),
    Family.V6: IPv6Network("fd00:10:244::/48"),
}
"""What the nodes' pod ranges are parts of: clusterCIDRs."""

FAMILIES = {
    "dual": (Family.V4, Family.V6),
    "ipv4": (Family.V4,),
    "ipv6": (Family.V6,),
}
MOST_NODES = 250


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

    def stand_in_ports(self, pod: Pod) -> tuple[tuple[Protocol, int], ...]:
        """What a pod must answer on: the ports of its containers and of Services for it."""
        found = {(port.protocol, port.port) for port in pod.ports}
        target = f"{pod.namespace}/{pod.name}"
        for piece in self.slices:
            for endpoint in piece.endpoints:
                mine = endpoint.target == target or not (endpoint.target or pod.host_network)
                if mine and endpoint.address in pod.addresses:
                    found |= {(port.protocol, port.port) for port in piece.ports}
        return tuple(sorted(found))


def node_name(number: int) -> str:
    """The name of the n-th node, from 1."""
    return f"node-{number}"


def pod_range(number: int, family: Family) -> IPNetwork:
    """The pod range of the n-th node, from 1."""
    if family is Family.V4:
        return IPv4Network(f"10.244.{number}.0/24")
    return IPv6Network(f"fd00:10:244:{number}::/64")


def assign(
    manifests: Manifests,
    underlay: Sequence[Sequence[IPAddress]],
    family: str,
    previous: Assigned | None = None,
) -> Assigned:
    """Give everything in `manifests` what a control plane would.

    Args:
        underlay: the addresses of each node, in the order of nodes.
        family: "dual", "ipv4" or "ipv6".
        previous: what was assigned before, which stays where it still fits.

    Raises:
        BadInput: no such family, or a number of nodes that a lab can't have.
    """
    if family not in FAMILIES:
        raise BadInput("family", f"{family!r} is none of {', '.join(FAMILIES)}")
    if not 1 <= len(underlay) <= MOST_NODES:
        raise BadInput("nodes", f"{len(underlay)} is not from 1 to {MOST_NODES}")
    families = FAMILIES[family]
    nodes = _nodes(manifests, underlay, families)
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
        (*service_notes, *pod_notes, *slice_notes, *node_notes, *_ignored(manifests)),
        (*manifests.problems, *service_problems, *pod_problems, *slice_problems),
    )


def _ignored(manifests: Manifests) -> tuple[str, ...]:
    kinds = ", ".join(f"{kind} ({count})" for kind, count in manifests.ignored.items())
    return (f"Objects of other kinds are not used: {kinds}",) if kinds else ()


def draining(previous: Assigned, now: Assigned) -> Assigned:
    """`now`, with the pods that go as terminating endpoints that still serve.

    What a control plane shows while pods shut down: no new flow is sent to them, and
    those under way go on. Written before `now`, it lets a change go without an error.
    """
    kept = {pod.key for pod in now.pods}
    used = {address for pod in now.pods for address in pod.addresses}
    going = tuple(
        replace(pod, terminating=True)
        for pod in previous.pods
        if pod.key not in kept and (pod.host_network or used.isdisjoint(pod.addresses))
    )
    pods = (*now.pods, *going)
    selecting = {(s.namespace, s.name) for s in now.services if s.selector}
    given = tuple(s for s in now.slices if (s.namespace, s.service) not in selecting)
    slices, _ = _slices(now.services, given, pods, now.nodes)
    return replace(now, pods=pods, slices=slices)


def _nodes(
    manifests: Manifests, underlay: Sequence[Sequence[IPAddress]], families: Sequence[Family]
) -> tuple[Node, ...]:
    """The lab's nodes; one of the same name in the manifests lends its zone."""
    zones = {node.name: node.zone for node in manifests.nodes}
    return tuple(
        Node(
            node_name(number),
            tuple(sorted((a for a in addresses if family_of(a) in families), key=_version)),
            pod_cidrs=tuple(pod_range(number, family) for family in families),
            zone=zones.get(node_name(number), ""),
        )
        for number, addresses in enumerate(underlay, 1)
    )


def _version(address: IPAddress) -> int:
    return address.version


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
