# SPDX-License-Identifier: Apache-2.0
"""The story goes on: what left one node, byte for byte, to the programs of the next.

The answer to a question stays the first node's; what others do with the packet is steps.
Each node is a copy of its own, made when a packet first goes there. Must not judge by rules
of its own: where a packet goes on is what the programs said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dataplane.abi.layout import abi
from dataplane.core.plan import BACKENDS, ROUTES, SERVICES
from dataplane.explain import frames, story
from dataplane.explain.ask import Finding
from dataplane.explain.frames import Seen
from dataplane.explain.questions import Question, place
from dataplane.explain.scene import (
    ENDPOINTS,
    NODE,
    OUTSIDE_MAC,
    UPLINK_MAC,
    Change,
    Scene,
    host_key,
)
from dataplane.explain.scratch import Scratch
from dataplane.explain.trials import DROP, FIRST_PORT, FORWARD, REJECT, PacketTrials, Trial
from dataplane.kernel.bundle import Bundle
from dataplane.model.constants import RouteFlag, RouteKind
from dataplane.model.errors import BadInput
from dataplane.model.net import Family, IPAddress, Protocol, family_of
from dataplane.model.objects import Node
from dataplane.model.rows import BackendRow, NodeRow, ServiceRow

_ENTRIES = tuple(
    f"{hook}_{family:d}" for hook in ("from_overlay", "from_uplink") for family in Family
)
# Nodes that one story follows: the backends of a large Service are on all of them, and alike.
_WAYS = 3
# Nodes after one another: a NodePort asked of another node, served at a third, is two.
_FURTHER = 4
# Nodes that one call makes a copy of. Each costs 0.15 s of CPU and 0.3 s a thousand Services,
# and a batch of 30 flows has 2 s for all: it follows to few nodes, and to none of many rows.
_COPIES = 8
_COPIES_OF_BATCH = 2
_ROWS_OF_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Leg:
    """A packet on its way from one node to the next; vni is 0 without the overlay."""

    sender: Scene
    node: str
    packet: bytes
    protocol: Protocol
    vni: int = 0
    outer: IPAddress | None = None


class Hops:
    """The other nodes of one call."""

    def __init__(
        self, bundle: Bundle, scenes: Callable[[str], Scene] | None, most: int = _COPIES
    ) -> None:
        """scenes: of a node by its name; None if no other node can be known here.

        most: nodes that copies are made of (see copies).
        """
        self._bundle, self._scenes, self._most = bundle, scenes, most
        self._copies: dict[str, Scratch | str] = {}

    def close(self) -> None:
        """Let go of all copies."""
        for copy in self._copies.values():
            if isinstance(copy, Scratch):
                copy.close()
        self._copies.clear()

    def steps(self, finding: Finding, scene: Scene) -> Iterator[str]:
        """What follows the first node's steps: a way to each node that a backend is on.

        Reads the rows that the question needed, so it is called while they are there.
        """
        ways = list(_ways(finding, scene))
        for said, leg in ways[:_WAYS]:
            if said:
                yield said
            yield from self._follow(leg, _FURTHER)
        if rest := [leg.node for _, leg in ways[_WAYS:]]:
            some = ", ".join(rest[:_WAYS]) + (" and others" if len(rest) > _WAYS else "")
            yield f"other backends are on {len(rest)} more nodes, not followed here: {some}"

    def _follow(self, leg: Leg, further: int) -> Iterator[str]:
        copy = self._copy(leg.node)
        if isinstance(copy, str):
            yield f"it goes on at node {leg.node}{copy}"
            return
        there, before = copy.scene, frames.read(leg.packet)
        source = _pod_source(leg, there, before)
        target = _pod_target(leg, there, before)
        with copy.changed([*source, *target]):
            finding = self._arrive(copy, leg, before)
            number = finding.first.said.backend_id
            row = copy.get(BACKENDS[finding.question.family], number) if number else None
            backend = row if isinstance(row, BackendRow) else None
            came = f"from node {leg.sender.node} by the uplink"
            if leg.vni:
                came = (
                    f"from node {leg.sender.node} ({leg.outer}) through the overlay, VNI {leg.vni}"
                )
            for step in story.arrival(finding, there, came, backend, bool(target)):
                yield f"node {leg.node}, {step}"
            onward = _leg(finding.first, there, leg.protocol)
        if onward is None or finding.verdict in (REJECT, DROP):
            return
        if further:
            yield from self._follow(onward, further - 1)
        else:
            yield f"it goes on at node {onward.node}, and is followed no further"

    def _arrive(self, copy: Scratch, leg: Leg, before: Seen) -> Finding:
        hook = "from_overlay" if leg.vni else "from_uplink"
        program = f"{hook}_{family_of(before.source):d}"
        tunnel = (leg.outer, leg.vni) if leg.outer is not None else None
        trial = PacketTrials(copy).put(program, leg.packet, leg.protocol, tunnel)
        asked = Question(before.source, before.target, before.target_port, leg.protocol)
        frontend = copy.scene.frontend(asked.address, asked.port, asked.protocol)
        row = copy.get(SERVICES, number) if (number := trial.said.service_id) else None
        service = row if isinstance(row, ServiceRow) else None
        return Finding(asked, program, trial, frontend, service)

    def _copy(self, node: str) -> Scratch | str:
        """The node's copy, or why there is none."""
        if node not in self._copies:
            self._copies[node] = self._made(node)
        return self._copies[node]

    def _made(self, node: str) -> Scratch | str:
        if self._scenes is None:
            return ", whose maps are not on this one: ask explain there"
        if sum(isinstance(one, Scratch) for one in self._copies.values()) >= self._most:
            return f", not followed: this call goes to {self._most} others; ask for one flow alone"
        try:
            return self._load(self._scenes(node))
        except BadInput as error:
            return f", which is not known: {error}"

    def _load(self, scene: Scene) -> Scratch:
        return Scratch(self._bundle, scene, _ENTRIES)


def copies(scene: Scene, questions: int) -> int:
    """To how many other nodes a call follows."""
    if questions == 1:
        return _COPIES
    small = sum(len(rows) for rows in scene.tables.values()) <= _ROWS_OF_BATCH
    return _COPIES_OF_BATCH if small else 0


def _ways(finding: Finding, scene: Scene) -> Iterator[tuple[str, Leg]]:
    """A leg to each node that the flow may go on to, the chosen one first; with what to say."""
    if finding.verdict in (REJECT, DROP):
        return
    protocol, followed = finding.question.protocol, set()
    if (leg := _first_leg(finding, scene)) is not None:
        followed.add(leg.node)
        yield "", leg
    for one in finding.members:
        if one.trial is None or one.trial.verdict != FORWARD or not one.trial.packet:
            continue
        leg = _leg(one.trial, scene, protocol)
        if leg is not None and leg.node not in followed:
            followed.add(leg.node)
            to = place(one.row.address, one.row.port)
            yield f"were backend {one.id} chosen, {to}, it would go on at node {leg.node}", leg


def _first_leg(finding: Finding, scene: Scene) -> Leg | None:
    if finding.first.packet:
        return _leg(finding.first, scene, finding.question.protocol)
    return _call_leg(finding, scene)


def _leg(trial: Trial, scene: Scene, protocol: Protocol) -> Leg | None:
    """The packet as it left, if that is to another node."""
    actions, flags = abi(Family.V4).enum("action"), abi(Family.V4).enum("flow_flag")
    said, to = trial.said, trial.said.hop
    if said.action == actions["ACTION_WORLD"]:
        to = trial.seen.target
    elif said.action not in (actions["ACTION_TUNNEL"], actions["ACTION_NATIVE"]):
        return None
    node = scene.nodes.get(to) if to is not None else None
    if node is None or to is None or node == scene.node:
        return None
    if said.action != actions["ACTION_TUNNEL"]:
        return Leg(scene, node, trial.packet, protocol)
    direct = bool(said.flow_flags & flags["FLOW_DIRECT"])
    return _by_overlay(scene, node, trial.packet, protocol, to, direct=direct)


def _by_overlay(
    scene: Scene, node: str, packet: bytes, protocol: Protocol, hop: IPAddress, *, direct: bool
) -> Leg | None:
    """bpf/abi.h: the VNI after that of pods is direct return's."""
    own = scene.tables[NODE[family_of(frames.read(packet).source)]][0]
    outer = scene.tables[NODE[family_of(hop)]][0]
    if not (isinstance(own, NodeRow) and isinstance(outer, NodeRow)):
        return None
    return Leg(scene, node, packet, protocol, own.vni + direct, outer.primary)


def _call_leg(finding: Finding, scene: Scene) -> Leg | None:
    """The first packet of a call, which the kernel sends: to a pod of another node by its route."""
    asked, seen = finding.question, finding.first.seen
    found = scene.route(seen.target)
    if found is None or found[1].hop is None or scene.endpoint(seen.target) is not None:
        return None
    row, own = found[1], scene.tables[NODE[asked.family]][0]
    node = scene.nodes.get(found[1].hop)
    if node is None or node == scene.node or not isinstance(own, NodeRow):
        return None
    source = own.router if asked.source.is_loopback else asked.source
    macs = (UPLINK_MAC, OUTSIDE_MAC)
    ends = (source, FIRST_PORT), (seen.target, seen.target_port)
    frame = frames.build(macs, asked.protocol, *ends)
    if row.kind == RouteKind.TUNNEL:
        assert row.hop is not None
        return _by_overlay(scene, node, frame, asked.protocol, row.hop, direct=False)
    return Leg(scene, node, frame, asked.protocol) if row.kind == RouteKind.NATIVE else None


def _pod_source(leg: Leg, there: Scene, before: Seen) -> list[Change]:
    """The way back to a sender that is a pod of the node it came from, whatever the podCIDRs say."""
    source = before.source
    if leg.sender.endpoint(source) is None:
        return []
    changes: list[Change] = []
    if there.endpoint(source) is not None:
        changes.append((ENDPOINTS[family_of(source)], source, None))
    found = there.route(source)
    hop = found[1].hop if found else None
    if hop is None or there.nodes.get(hop) != leg.sender.node:
        addresses = tuple(a for a, name in there.nodes.items() if name == leg.sender.node)
        way = there.way(source, Node(leg.sender.node, addresses=addresses), int(RouteFlag.CLUSTER))
        changes.append((ROUTES[family_of(source)], host_key(source), way))
    return changes


def _pod_target(leg: Leg, there: Scene, before: Seen) -> list[Change]:
    """A plain destination in the cluster that nobody told of, as on the first node."""
    target = before.target
    known = there.endpoint(target) is not None or there.is_node(target)
    served = there.frontend(target, before.target_port, leg.protocol) is not None
    if known or served or not there.in_cluster(target):
        return []
    return [(ENDPOINTS[family_of(target)], target, there.new_endpoint(family_of(target)))]
