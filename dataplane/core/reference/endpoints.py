# SPDX-License-Identifier: Apache-2.0
"""Which endpoints a Service port may use, under either traffic policy.

Must not know addresses that are asked, or who asks. Sources: Kubernetes
pkg/proxy/endpointslicecache.go and topology.go, KEP-1669, KEP-2433, KEP-3015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dataplane.core.reference import rules
from dataplane.core.reference.frontends import Frontend
from dataplane.core.reference.rules import Rule
from dataplane.core.reference.values import Place, World
from dataplane.model.objects import SliceEndpoint


@dataclass(frozen=True, slots=True)
class Listed:
    """One endpoint of a Service port, as all slices together say."""

    ready: bool
    serves: bool
    terminating: bool
    is_local: bool
    node_hints: tuple[str, ...]
    zone_hints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usable:
    """The endpoints that new flows may choose, and the rule that left them."""

    places: frozenset[Place]
    rule: Rule


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Of one Service port: all that are listed, and those usable under either policy."""

    listed: Mapping[Place, Listed]
    cluster: Usable
    local: Usable


def endpoints_of(world: World, frontend: Frontend) -> Endpoints:
    """Reads the slices for one Service port in one family."""
    seen: dict[Place, list[SliceEndpoint]] = {}
    for place, endpoint in _joined(world, frontend):
        seen.setdefault(place, []).append(endpoint)
    listed = {place: _united(world, several) for place, several in seen.items()}
    here = {place: one for place, one in listed.items() if one.is_local}
    return Endpoints(listed, _cluster(world, listed), _local(here))


def _joined(world: World, frontend: Frontend) -> Iterator[tuple[Place, SliceEndpoint]]:
    """Slices are joined to a Service by label, to its port by port name and protocol; the
    number in the slice counts."""
    service, port = frontend.service, frontend.port
    for piece in sorted(world.slices, key=lambda s: s.name):
        if (piece.namespace, piece.service) != (service.namespace, service.name):
            continue
        if piece.family is not frontend.family:
            continue
        for candidate in piece.ports:
            if (candidate.name, candidate.protocol) == (port.name, port.protocol):
                if candidate.port:
                    for endpoint in piece.endpoints:
                        yield (endpoint.address, candidate.port), endpoint
                break


def _united(world: World, several: list[SliceEndpoint]) -> Listed:
    """An endpoint in several slices counts once, in its best state (docs/decisions/0003); it is
    local if one of them says so (endpointslicecache.go)."""
    states: tuple[Callable[[SliceEndpoint], bool], ...] = (
        lambda e: e.ready,
        lambda e: e.serving and e.terminating,
        lambda e: e.serving,
        lambda e: True,
    )
    best = next(e for state in states for e in several if state(e))
    return Listed(
        ready=best.ready,
        serves=best.serving or best.ready,
        terminating=best.terminating,
        # an endpoint without nodeName is remote
        is_local=bool(world.node) and any(e.node_name == world.node for e in several),
        node_hints=best.node_hints,
        zone_hints=best.zone_hints,
    )


def _cluster(world: World, listed: Mapping[Place, Listed]) -> Usable:
    """The ready ones after topology; if none is ready, those serving and terminating."""
    ready = {place: one for place, one in listed.items() if one.ready}
    if not ready:
        return Usable(_draining(listed), rules.TERMINATING)
    # Hints count all or nothing: every ready endpoint has some, and one names us.
    by_node = {place: one.node_hints for place, one in ready.items()}
    by_zone = {place: one.zone_hints for place, one in ready.items()}
    for hints, own, rule in (
        (by_node, world.node, rules.NODE_HINTS),
        (by_zone, world.zone, rules.ZONE_HINTS),
    ):
        near = frozenset(place for place, names in hints.items() if own and own in names)
        if near and all(hints.values()):
            return Usable(near, rule)
    return Usable(frozenset(ready), rules.CLUSTER_POLICY)


def _local(here: Mapping[Place, Listed]) -> Usable:
    """The same among this node's endpoints, but hints are ignored."""
    ready = frozenset(place for place, one in here.items() if one.ready)
    if ready:
        return Usable(ready, rules.EXTERNAL_LOCAL)
    return Usable(_draining(here), rules.LOCAL_TERMINATING)


def _draining(some: Mapping[Place, Listed]) -> frozenset[Place]:
    """What serves and is neither ready nor terminating is never used."""
    return frozenset(p for p, one in some.items() if one.serves and one.terminating)
