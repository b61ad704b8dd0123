# SPDX-License-Identifier: Apache-2.0
"""Flows that have begun: their later packets, and their replies.

Must not know how tables or programs come to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from dataplane.core.reference import Entry, Fate, Place, Verdict, World, fate_of
from dataplane.core.reference.model import reference_of
from dataplane.core.reference.places import Where, where_is
from dataplane.kernel.prelude import Setup
from dataplane.model.net import Protocol
from tests.program.differential import cluster
from tests.program.differential.frames import (
    ACK,
    SYN,
    Sent,
    destination_of,
    key_of,
    place_of,
    source_of,
    source_port_of,
)
from tests.program.differential.meant import (
    BACKEND_GONE,
    NAMES,
    PASS,
    POD,
    WORLD,
    Meant,
    Onward,
    shown,
    wrong_refusal,
    wrong_way,
)
from tests.program.differential.node import Stage, device_of
from tests.program.quick import Seen, Way


@dataclass(slots=True, eq=False)
class Talk:
    """A flow, and what its first packet became.

    fate: of its backend in this world. where: the destination of its first packet was then.
    """

    meant: Meant
    where: Where
    sport: int
    place: bytes
    source: bytes
    source_port: int
    fate: Fate = Fate.KEEPS
    moved: bool = False  # what it was sent to is a Service's since, or another's
    rerouted: bool = False  # no Service's, and its way has become another
    _later: Sent | None = None

    @property
    def later(self) -> Sent:
        """A packet that comes after the first."""
        if self._later is None:
            asked = self.meant.question
            self._later = Sent(
                cluster.MACS_FROM_POD if asked.entry is Entry.POD else cluster.MACS_FROM_UPLINK,
                asked.source, asked.destination, asked.port, asked.protocol, ACK,
            )  # fmt: skip
        return self._later

    @property
    def backend(self) -> Place:
        """Where it goes."""
        return place_of(self.place)

    def changes(self, world: World) -> None:
        """The world is another one."""
        service = self.meant.answer.service
        frontend = reference_of(world).frontend(self.meant.question)
        self.moved = frontend is not None and frontend.name != service
        self.rerouted |= (
            not service and where_is(world, self.meant.question.destination) != self.where
        )
        if service and self.fate is not Fate.GONE:
            self.fate = fate_of(world, service, self.meant.question, self.backend)


def begun(meant: Meant, sport: int, seen: Seen, world: World) -> Talk | None:
    """The flow of a packet that was right; None if it has none that is known here."""
    if meant.answer.verdict not in (Verdict.FORWARD, Verdict.PASS) or not meant.question.opens:
        return None
    if seen.action == PASS:
        return None
    family, frame = meant.sent.family, seen.frame
    return Talk(
        meant, where_is(world, meant.question.destination), sport,
        destination_of(frame, family), source_of(frame, family), source_port_of(frame, family),
    )  # fmt: skip


def starts_anew(talk: Talk) -> bool:
    """Whether its next packet is the first of a flow again: only TCP can be told of an end."""
    return talk.fate is not Fate.KEEPS and talk.meant.question.protocol is not Protocol.TCP


def may_start_anew(talk: Talk) -> bool:
    """Whether it may be: UDP is asked ten times a second whom it asks."""
    return talk.moved and talk.meant.question.protocol is Protocol.UDP


def wrong_later(talk: Talk, frame: bytearray, seen: Seen, world: World) -> str:
    """A later packet goes where the first went, or is refused if that is gone."""
    if talk.fate is Fate.GONE:
        if seen.reason != BACKEND_GONE:
            return f"{NAMES[seen.reason]}, not BACKEND_GONE (a later packet)"
        return wrong_refusal(talk.meant, seen)
    if seen.reason:
        return f"{NAMES[seen.reason]} for a later packet"
    place = destination_of(seen.frame, talk.meant.sent.family)
    if place != talk.place:
        return f"a later packet went to {shown(place)}, not {shown(talk.place)}"
    way = talk.meant.ways[talk.place]
    onward = Onward(talk.source, talk.source_port, way.action, way.device)
    why = wrong_way(onward, talk.later, frame, talk.sport, seen, world.masquerade_ports)
    return why and f"a later packet: {why}"


def reply(stage: Stage, talk: Talk, world: World) -> str | None:
    """Sends a reply from where the flow went; what is wrong, None if none can come."""
    asked = talk.meant.question
    address, port = talk.backend
    way = _way_back(stage, talk, world)
    if way is None or (asked.entry is Entry.OUTSIDE and not talk.meant.answer.service):
        return None
    sent = Sent(
        cluster.MACS_FROM_POD, address, ip_address(talk.source), talk.source_port, asked.protocol,
        SYN | ACK,
    )  # fmt: skip
    frame = sent.by(port)
    seen = stage.quick(way, frame)
    if seen.reason:
        return f"{NAMES[seen.reason]} for a reply"
    place = destination_of(seen.frame, sent.family)
    if place != key_of(asked.source, talk.sport):
        return f"a reply went to {shown(place)}"
    action, device = POD, talk.meant.device
    if asked.entry is Entry.OUTSIDE:
        action, device = WORLD, cluster.UPLINK
    onward = Onward(asked.destination.packed, asked.port, action, device)
    why = wrong_way(onward, sent, frame, port, seen, world.masquerade_ports)
    return why and f"a reply: {why}"


def _way_back(stage: Stage, talk: Talk, world: World) -> Way | None:
    """By which hook and device a backend's reply comes."""
    address, family = talk.backend[0], talk.meant.sent.family
    match where_is(world, address):
        case Where.POD:
            return stage.way("from_pod", family, device_of(Entry.POD, address))
        case Where.OTHER_PODS if world.vxlan:
            node = next(n for n in world.nodes if any(address in c for c in n.pod_cidrs))
            outer = cluster.PEERS[node.name][min(world.families)]
            tunnel = Setup(tunnel=(outer, cluster.VNI))
            return stage.way("from_overlay", family, cluster.OVERLAY, tunnel)
        case Where.OTHER_PODS | Where.WORLD | Where.PEER:
            return stage.way("from_uplink", family, cluster.UPLINK)
    return None
