# SPDX-License-Identifier: Apache-2.0
"""The datapath as it is meant: from a flow's first packet to what becomes of it.

    1. An address that no packet may have, or that the link alone has.
    2. A Service's frontend: source ranges, traffic policy, endpoints, masquerade.
    3. A ClusterIP without such a port, and addresses that no Service has.

Must not know tables, ids or programs, nor any code that does.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

from dataplane.core.reference import rules
from dataplane.core.reference.endpoints import Endpoints, Usable, endpoints_of
from dataplane.core.reference.frontends import Door, Frontend, Frontends, frontends_of
from dataplane.core.reference.places import (
    GATEWAY,
    Where,
    is_group,
    is_link_local_v6,
    is_nowhere,
    places_of,
    where_is,
)
from dataplane.core.reference.rules import Rule
from dataplane.core.reference.translation import hiding_of, packet_to, takes_short_cut_by_uplink
from dataplane.core.reference.values import (
    Answer,
    Entry,
    FlowQuestion,
    Rewritten,
    Verdict,
    World,
)
from dataplane.model.net import IPAddress, Protocol


def answer(world: World, flow: FlowQuestion) -> Answer:
    """What becomes of a new flow in a world. Worlds are remembered, so ask one for many."""
    return reference_of(world).answer(flow)


@lru_cache(maxsize=16)
def reference_of(world: World) -> Reference:
    """What was read from a world."""
    return Reference(world)


class Reference:
    """A world, with what was read from it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._endpoints: dict[tuple[str, str, str, Protocol, int], Endpoints] = {}

    @cached_property
    def frontends(self) -> Frontends:
        """Who is asked where."""
        return frontends_of(self.world)

    def endpoints(self, frontend: Frontend) -> Endpoints:
        """What a Service port may use."""
        service, port = frontend.service, frontend.port
        key = service.namespace, service.name, port.name, port.protocol, int(frontend.family)
        if key not in self._endpoints:
            self._endpoints[key] = endpoints_of(self.world, frontend)
        return self._endpoints[key]

    def answer(self, flow: FlowQuestion) -> Answer:
        """What becomes of a new flow."""
        return (
            self._beyond_routing(flow)
            or self._of_service(flow)
            or self._without_service(flow)
        )  # fmt: skip

    # ---- 1: addresses that are not routed ----
    def _beyond_routing(self, flow: FlowQuestion) -> Answer | None:
        to, source, asked = flow.destination, flow.source, self.frontend(flow)
        name = asked.name if asked else ""
        if flow.entry is Entry.POD:
            if is_group(to):
                return _drop(rules.MULTICAST)
            if is_nowhere(to) or (to.version == 4 and to == GATEWAY[flow.family]):
                return _drop(rules.IMPOSSIBLE_ADDRESS, name)
            return self._pass(flow, rules.LINK) if is_link_local_v6(to) else None
        if flow.entry is Entry.NODE:
            return None
        if is_group(to) or is_link_local_v6(to):
            return self._pass(flow, rules.LINK)
        # nothing on loopback is for who is outside (proxier.go: block incoming localnet)
        if is_nowhere(to):
            return _drop(rules.IMPOSSIBLE_ADDRESS, name)
        # whoever is asked of as outside, though a slice has its address here, is no pod
        stolen = source in places_of(self.world).pods
        stolen = stolen and self.world.entry_of(source) is not Entry.OUTSIDE
        if is_group(source) or is_nowhere(source) or is_link_local_v6(source) or stolen:
            # the host takes its own broken packets itself
            if to in places_of(self.world).own:
                return self._pass(flow, rules.HOST, name)
            return _drop(rules.IMPOSSIBLE_ADDRESS, name)
        tunnels = self.world.vxlan or self.world.direct_return
        if tunnels and to in places_of(self.world).own and self._is_overlay(flow, to, flow.port):
            # nodes send to each other's primary address, whatever a Service may want there
            if to == self.world.primary(flow.family):
                return self._pass(flow, rules.HOST, name)
            if asked is None:
                # a node that sends elsewhere hides somebody else
                feigned = source in self._of_nodes
                return _drop(rules.OVERLAY_PORT) if feigned else self._pass(flow, rules.HOST)
        return None

    # ---- 2: Services ----
    def frontend(self, flow: FlowQuestion) -> Frontend | None:
        """The Service port that a flow asks."""
        place = flow.destination, flow.port, flow.protocol
        return self.frontends.by_place.get(place)

    def _of_service(self, flow: FlowQuestion) -> Answer | None:
        frontend = self.frontend(flow)
        if frontend is None:
            return None
        endpoints = self.endpoints(frontend)
        # Reject before all: the Service has no usable endpoint anywhere (proxier.go: usesFWChain
        # only with endpoints).
        if not endpoints.cluster.places:
            return Answer(Verdict.REJECT, rules.NO_ENDPOINTS, frontend.name)
        if frontend.door is Door.LOAD_BALANCER and not self._is_admitted(flow, frontend):
            return _drop(rules.SOURCE_RANGES, frontend.name)
        usable, empty = self._usable(flow, frontend, endpoints)
        if not usable.places:
            return _drop(empty, frontend.name)
        if frontend.service.affinity_seconds and flow.remembered in usable.places:
            usable = Usable(frozenset({flow.remembered}), rules.AFFINITY)
        world = self.world
        # whoever asks: a node would believe the address that the client is hidden by
        enters = flow.entry is not Entry.NODE
        if enters and any(self._is_overlay(flow, *place) for place in usable.places):
            return _drop(rules.OVERLAY_PORT, frontend.name)
        if not flow.opens:
            return Answer(Verdict.REJECT, rules.UNKNOWN_FLOW, frontend.name)
        hiding = hiding_of(world, flow, frontend, usable.places)
        packets = tuple(
            packet_to(world, flow, place, place in hiding.hidden)
            for place in sorted(usable.places, key=lambda p: (int(p[0]), p[1]))
        )
        return Answer(
            Verdict.FORWARD, usable.rule, frontend.name,
            usable.places, hiding.masquerade, hiding.hidden, packets,
        )  # fmt: skip

    def _is_admitted(self, flow: FlowQuestion, frontend: Frontend) -> bool:
        """loadBalancerSourceRanges, for everybody; a family without a range is open to all."""
        service, family = frontend.service, flow.family
        ranges = [r for r in service.source_ranges if r.version == family]
        node = self.world.primary(family)
        # all sockets of the node are one client (docs/decisions/0017)
        source = node if node is not None and flow.entry is Entry.NODE else flow.source
        if not ranges or any(source in r for r in ranges):
            return True
        # A node that has the address itself sends from it (proxier.go: allowFromNode).
        inside = node is not None and any(node in r for r in ranges)
        return inside and flow.source in service.load_balancer_ips

    def _usable(
        self, flow: FlowQuestion, frontend: Frontend, endpoints: Endpoints
    ) -> tuple[Usable, Rule]:
        """The endpoints under the policy that binds this sender; the rule if there are none.

        internalTrafficPolicy binds every sender. externalTrafficPolicy binds outside senders:
        pods and the node itself are sent to the Cluster endpoints (the short cut).
        """
        service, local = frontend.service, endpoints.local
        if frontend.door is Door.HOST_PORT:
            return Usable(endpoints.cluster.places, rules.HOST_PORT), rules.NO_ENDPOINTS
        if frontend.door is Door.CLUSTER_IP and service.internal_local:
            if local.rule is rules.EXTERNAL_LOCAL:
                local = Usable(local.places, rules.INTERNAL_LOCAL)
            return local, rules.INTERNAL_LOCAL_EMPTY
        outside = flow.entry is Entry.OUTSIDE
        outside = outside and not takes_short_cut_by_uplink(self.world, flow)
        if frontend.door.is_external and service.external_local and outside:
            return local, rules.EXTERNAL_LOCAL_EMPTY
        return endpoints.cluster, rules.NO_ENDPOINTS

    # ---- 3: what no Service port has ----
    def _without_service(self, flow: FlowQuestion) -> Answer:
        world, to = self.world, flow.destination
        if to in self.frontends.cluster_ips:
            return Answer(Verdict.REJECT, rules.NO_SUCH_PORT)
        where = Where.HERE if to.is_loopback else where_is(world, to)
        if flow.entry is Entry.POD and self._is_overlay(flow, to, flow.port):
            return _drop(rules.OVERLAY_PORT)
        router = to == world.routers.get(flow.family) and flow.entry is Entry.POD
        if where is Where.HERE and (flow.entry is Entry.OUTSIDE or router):
            low, high = world.masquerade_ports
            if low <= flow.port <= high:
                return _drop(rules.MASQUERADE_PORT)
        if where is Where.SERVICES:
            return _drop(rules.UNASSIGNED)
        # what else comes from outside or from the node itself is the host's to judge
        if flow.entry is Entry.POD and where in _NOBODY:
            return _drop(_NOBODY[where])
        return self._pass(flow, _PASSES.get(where, rules.NETWORK))

    def _is_overlay(self, flow: FlowQuestion, address: IPAddress, port: int) -> bool:
        """Whether this is the overlay's port, of the node or of another in VXLAN mode."""
        if flow.protocol is not Protocol.UDP or port != self.world.vxlan_port:
            return False
        own = address in places_of(self.world).own
        return own or (self.world.vxlan and address in self._of_nodes)

    @cached_property
    def _of_nodes(self) -> frozenset[IPAddress]:
        """The addresses of the other nodes."""
        return frozenset(a for node in self.world.nodes for a in node.addresses)

    def _pass(self, flow: FlowQuestion, rule: Rule, name: str = "") -> Answer:
        packet = Rewritten(flow.source, flow.source_port, flow.destination, flow.port)
        # what is of the link stays there; the node's stack may know a segment that we don't
        if flow.opens and rule is not rules.LINK:
            packet = packet_to(self.world, flow, (flow.destination, flow.port), is_hidden=False)
        return Answer(Verdict.PASS, rule, name, packets=(packet,))


_NOBODY = {
    Where.NO_POD: rules.NO_SUCH_POD,
    Where.NO_NODE: rules.NO_SUCH_NODE,
}
_PASSES = {
    Where.HERE: rules.HOST,
    Where.POD: rules.POD,
    Where.OTHER_PODS: rules.POD,
    Where.NO_POD: rules.HOST,
    Where.OTHER_PROXY: rules.OTHER_PROXY,
}


def _drop(rule: Rule, service: str = "") -> Answer:
    return Answer(Verdict.DROP, rule, service)
