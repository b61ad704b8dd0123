# SPDX-License-Identifier: Apache-2.0
"""All that a lab consists of, as objects: what its agents get, and what the lab adds. Pure.

Must not know addresses that are in no object but the underlay's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dataplane.core.frontends import Settings
from dataplane.lab.question import PROTOCOLS
from dataplane.lab.topology import NODE_NETWORKS, OUTSIDE_NETWORKS
from dataplane.model.net import Family, IPAddress, Protocol, family_of
from dataplane.model.objects import EndpointSlice, Node, Pod, Service


@dataclass(frozen=True)
class World:
    """All objects of a lab as its agents get them, and what the lab adds.

    guests: pods that are in no manifest (a node without pods gets one to ask from), by
    node. stand_ins: pod to the (protocol, port)s that it answers on. entries: address of
    a load balancer or an external address to the node that the underlay sends it to.
    """

    families: tuple[Family, ...]
    native: bool
    nodes: tuple[Node, ...]
    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    pods: tuple[Pod, ...]
    guests: Mapping[str, Pod]
    stand_ins: Mapping[str, tuple[tuple[Protocol, int], ...]]
    entries: Mapping[IPAddress, str]

    @cached_property
    def by_service(self) -> dict[tuple[str, str], list[EndpointSlice]]:
        found: dict[tuple[str, str], list[EndpointSlice]] = {}
        for piece in self.slices:
            found.setdefault((piece.namespace, piece.service), []).append(piece)
        return found

    @cached_property
    def by_address(self) -> dict[IPAddress, list[Pod]]:
        found: dict[IPAddress, list[Pod]] = {}
        for pod in (*self.pods, *self.guests.values()):
            for address in pod.addresses:
                found.setdefault(address, []).append(pod)
        return found

    def settings(self, node: Node) -> Settings:
        """Which addresses of a node serve NodePorts, by the agent's own rule."""
        return Settings(node.name, self.families, node.addresses, node.zone)

    def node_addresses(self, name: str) -> frozenset[IPAddress]:
        """A node's addresses and its router addresses."""
        node = next(n for n in self.nodes if n.name == name)
        return frozenset({*node.addresses, *(cidr[1] for cidr in node.pod_cidrs)})


def entries(
    families: Sequence[Family],
    nodes: Sequence[Node],
    services: Iterable[Service],
    slices: Sequence[EndpointSlice],
) -> dict[IPAddress, str]:
    """Which node the underlay sends load-balancer and external addresses to.

    One with an endpoint if the Service is for those only, as a load balancer's health
    checks would find out; else in turn.
    """
    own = {address for node in nodes for address in node.addresses}
    found: dict[IPAddress, str] = {}
    for service in sorted(services, key=lambda s: (s.namespace, s.name)):
        for address in (*service.load_balancer_ips, *service.external_ips):
            family = family_of(address)
            if address in found or address in own or family not in families:
                continue
            willing = [
                node
                for node in nodes
                if not service.external_local
                or any(
                    endpoint.ready and endpoint.node_name == node.name
                    for piece in slices
                    if (piece.namespace, piece.service, piece.family)
                    == (service.namespace, service.name, family)
                    for endpoint in piece.endpoints
                )
            ] or list(nodes)
            found[address] = willing[len(found) % len(willing)].name
    return found


def external_hosts(world: World) -> dict[IPAddress, list[tuple[Protocol, int]]]:
    """Endpoints that are no pods and in no network of the lab, with the ports they have."""
    inner = [
        *(cidr for node in world.nodes for cidr in node.pod_cidrs),
        *NODE_NETWORKS.values(),
        *OUTSIDE_NETWORKS.values(),
    ]
    found: dict[IPAddress, list[tuple[Protocol, int]]] = {}
    for piece in world.slices:
        for endpoint in piece.endpoints:
            address = endpoint.address
            if (
                piece.family in world.families
                and address not in world.by_address
                and not any(address in network for network in inner)
                and not (address.is_loopback or address.is_link_local or address.is_multicast)
            ):
                ports = found.setdefault(address, [])
                ports += [(p.protocol, p.port) for p in piece.ports if p.protocol in PROTOCOLS]
    return found


def pod_name(pod: Pod) -> str:
    """A pod as rows name it."""
    return f"{pod.namespace}/{pod.name}"


def address_of(pod: Pod, family: Family) -> IPAddress | None:
    """A pod's address of a family."""
    return next((a for a in pod.addresses if family_of(a) is family), None)
