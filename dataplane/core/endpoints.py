# SPDX-License-Identifier: Apache-2.0
"""Which endpoints of its slices a Service port uses, by kube-proxy's rules.

Cluster policy: the ready ones, narrowed by topology hints; if none is ready, those that
serve and terminate. Local policy: the same among this node's, without hints. Must not
know ids, maps or Services. Source: Kubernetes pkg/proxy/topology.go, KEP-1669, KEP-2433.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dataplane.model.constants import BackendFlag
from dataplane.model.net import IPAddress, Protocol
from dataplane.model.objects import EndpointSlice, SliceEndpoint

# Plain ints: arithmetic on IntFlag is many times slower, and this is done for each endpoint.
LISTED = int(BackendFlag.LISTED)
SERVING = int(BackendFlag.SERVING)
SELECTABLE = int(BackendFlag.SELECTABLE)
LOCAL = int(BackendFlag.LOCAL)
IN_CLUSTER = int(BackendFlag.IN_CLUSTER)
IN_LOCAL = int(BackendFlag.IN_LOCAL)

Place = int
"""An address and port of one family in one number: address << 16 | port."""


def place_of(address: IPAddress, port: int) -> Place:
    """The place of a backend."""
    return int(address) << 16 | port


@dataclass(slots=True)
class Selection:
    """All endpoints listed for a Service port, and which of them new flows may choose.

    listed: place to (address, port, enum backend_flag).
    """

    listed: dict[Place, tuple[IPAddress, int, int]]
    cluster: list[Place]
    local: list[Place]


def select(
    slices: Iterable[EndpointSlice],
    port: str,
    protocol: Protocol,
    node: str,
    zone: str,
    wants_local: bool,
) -> Selection:
    """Chooses for one Service port among slices of its Service and family.

    Args:
        slices: in an order that does not change by itself.
        port: the Service port's name, empty if it has none.
        node, zone: of the node that asks; an empty zone is none.
        wants_local: whether a Local policy needs the second set.
    """  # fmt: skip
    found: dict[Place, tuple[SliceEndpoint, int]] = {}
    for piece in slices:
        number = _number(piece, port, protocol)
        if not number:
            continue
        for endpoint in piece.endpoints:
            place = int(endpoint.address) << 16 | number
            if place in found:
                endpoint = _merge(found[place][0], endpoint, node)
            found[place] = endpoint, number
    cluster = _usable([(place, e) for place, (e, _) in found.items()], node, zone, topology=True)
    local: list[Place] = []
    if wants_local:
        here = [(place, e) for place, (e, _) in found.items() if e.node_name == node]
        local = _usable(here, node, zone, topology=False)
    in_cluster, in_local = set(cluster), set(local)
    listed: dict[Place, tuple[IPAddress, int, int]] = {}
    for place, (endpoint, number) in found.items():
        flags = LISTED
        if endpoint.serving or endpoint.ready:
            flags |= SERVING
        if place in in_cluster:
            flags |= SELECTABLE | IN_CLUSTER
        if place in in_local:
            flags |= SELECTABLE | IN_LOCAL
        if endpoint.node_name == node:
            flags |= LOCAL
        listed[place] = endpoint.address, number, flags
    return Selection(listed, cluster, local)


def _number(piece: EndpointSlice, port: str, protocol: Protocol) -> int:
    for candidate in piece.ports:
        if candidate.name == port and candidate.protocol is protocol:
            return candidate.port
    return 0


def _merge(a: SliceEndpoint, b: SliceEndpoint, node: str) -> SliceEndpoint:
    """One endpoint listed twice: the better state counts, and this node's claim to it."""
    best = max(a, b, key=_worth)
    if node in (a.node_name, b.node_name) and best.node_name != node:
        best = replace(best, node_name=node)
    return best


def _worth(endpoint: SliceEndpoint) -> int:
    if endpoint.ready:
        return 3
    return endpoint.serving + (endpoint.serving and endpoint.terminating)


Candidates = Sequence[tuple[Place, SliceEndpoint]]


def _usable(candidates: Candidates, node: str, zone: str, topology: bool) -> list[Place]:
    ready = [pair for pair in candidates if pair[1].ready]
    if ready:
        return [place for place, _ in (_near(ready, node, zone) if topology else ready)]
    return [place for place, e in candidates if e.serving and e.terminating]


def _near(ready: Candidates, node: str, zone: str) -> Candidates:
    """Hints count only if every ready endpoint has some and one names us: all or nothing."""
    if all(e.node_hints for _, e in ready):
        near = [pair for pair in ready if node in pair[1].node_hints]
        if near:
            return near
    if zone and all(e.zone_hints for _, e in ready):
        near = [pair for pair in ready if zone in pair[1].zone_hints]
        if near:
            return near
    return ready
