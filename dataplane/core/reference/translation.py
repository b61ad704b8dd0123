# SPDX-License-Identifier: Apache-2.0
"""Whether the source of a Service's flow is hidden, and the packet as it goes on.

Must not choose backends. Source: Kubernetes pkg/proxy/iptables/proxier.go (KUBE-MARK-MASQ).
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.core.reference.frontends import Door, Frontend
from dataplane.core.reference.places import Where, hides_pods, places_of, where_is
from dataplane.core.reference.values import Entry, FlowQuestion, Place, Rewritten, World
from dataplane.model.net import Family, IPAddress


@dataclass(frozen=True, slots=True)
class Hiding:
    """masquerade: what the rules say of the flow; hidden: the backends that don't see its source.

    A backend that is the node itself sees the source whatever the rules say.
    """

    masquerade: bool
    hidden: frozenset[Place]


def hiding_of(
    world: World, flow: FlowQuestion, frontend: Frontend, backends: frozenset[Place]
) -> Hiding:
    """Towards which of its backends a flow is hidden behind an address of this node."""
    if asks_to_hide(world, flow, frontend):
        # kube-proxy marks them too, but masquerades in POSTROUTING, where what is for the node
        # itself never comes (docs/decisions/0010).
        own = frozenset(b for b in backends if b[0] in places_of(world).own)
        hidden = backends - own
        if goes_direct(world, flow, frontend):
            # The nodes that have the pods answer themselves; what is no pod has no such node.
            nowhere = (Where.PEER, Where.WORLD)
            hidden = frozenset(b for b in hidden if where_is(world, b[0]) in nowhere)
            return Hiding(bool(hidden), hidden)
        if flow.entry is Entry.NODE:
            hidden = backends  # its own address is one of this node, whoever it asks
        return Hiding(bool(backends), hidden)
    # A pod that reaches itself would see its own address as the client's.
    hidden = frozenset(b for b in backends if b[0] == flow.source)
    if frontend.door.is_external and takes_short_cut_by_uplink(world, flow):
        # where the endpoint is elsewhere, nobody else would translate its replies
        near = places_of(world).pods | places_of(world).own
        hidden |= frozenset(b for b in backends if b[0] not in near)
    return Hiding(bool(backends) and hidden == backends, hidden)


def asks_to_hide(world: World, flow: FlowQuestion, frontend: Frontend) -> bool:
    """The rules, whichever backend it becomes."""
    if frontend.door is Door.HOST_PORT:
        return False
    if frontend.door is Door.CLUSTER_IP:
        inside = flow.entry is Entry.POD or any(flow.source in r for r in world.cluster_cidrs)
        return world.masquerade_all or not inside
    if frontend.service.external_local:
        return flow.entry is Entry.NODE
    return True


def goes_direct(world: World, flow: FlowQuestion, frontend: Frontend) -> bool:
    """Whether direct server return is for this flow."""
    inside = frontend.door in (Door.CLUSTER_IP, Door.HOST_PORT)
    return world.direct_return and flow.entry is Entry.OUTSIDE and not inside


def takes_short_cut_by_uplink(world: World, flow: FlowQuestion) -> bool:
    """A pod of another node that comes by the uplink, as pods do in native mode, is no outside
    sender (docs/decisions/0010)."""
    comes = flow.entry is Entry.OUTSIDE and not world.vxlan
    return comes and where_is(world, flow.source) is Where.OTHER_PODS


def packet_to(world: World, flow: FlowQuestion, backend: Place, is_hidden: bool) -> Rewritten:
    """The packet that reaches a backend."""
    address, port = backend
    # beside the Service translation, pods are hidden from the world
    to_world = flow.entry is Entry.POD and hides_pods(world, address)
    if not is_hidden and not to_world:
        return Rewritten(flow.source, flow.source_port, address, port)
    return Rewritten(hidden_behind(world, address), None, address, port)


def hidden_behind(world: World, destination: IPAddress) -> IPAddress:
    """The address that a destination sees: pods see the router, what is beyond them the uplink."""
    family = Family(destination.version)
    primary = world.primary(family)
    if primary is not None and where_is(world, destination) in (Where.WORLD, Where.PEER):
        return primary
    return world.routers.get(family) or primary or destination
