# SPDX-License-Identifier: Apache-2.0
"""From a question and the model's answer to the packet that is sent and what may come of it.

Must not know how tables or programs come to it.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from dataplane.core.reference import Answer, Entry, FlowQuestion, Verdict, World, answer, rules
from dataplane.core.reference.places import Where, where_is
from dataplane.model.net import Family, IPAddress, Protocol
from tests.program.differential import cluster
from tests.program.differential.frames import (
    ACK,
    HOP_LIMIT,
    RST,
    SYN,
    Sent,
    destination_of,
    key_of,
    source_of,
    source_port_of,
    wrong_copy,
)
from tests.program.differential.labels import REASONS, Label, labels_of
from tests.program.differential.node import device_of
from tests.program.fuzz.sight import ETHERNET, HOPS, ICMP_OF
from tests.program.quick import Seen
from tests.program.result import Action, Drop

PASS, DROP, POD, TUNNEL, NATIVE, WORLD, ANSWER = (
    int(Action[f"ACTION_{name}"])
    for name in ("PASS", "DROP", "POD", "TUNNEL", "NATIVE", "WORLD", "ANSWER")
)
# tc verdicts: TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
RETVAL = {PASS: 0xFFFFFFFF, DROP: 2}
REDIRECT = 7

NAMES = {int(drop): drop.name.removeprefix("DROP_") for drop in Drop}
NUMBERS = {name: number for number, name in NAMES.items()}
BACKEND_GONE = NUMBERS["BACKEND_GONE"]


class Onward(NamedTuple):
    """One way on that is allowed. port None: any of the masquerade range; -1: the sender's."""

    source: bytes
    port: int | None
    action: int
    device: int


class Meant(NamedTuple):
    """A question, ready to be sent again and again."""

    question: FlowQuestion
    answer: Answer
    sent: Sent
    device: int
    hook: str
    reason: int
    ways: dict[bytes, Onward]  # by where the packet goes
    labels: tuple[Label, ...]


def meant_of(world: World, question: FlowQuestion) -> Meant:
    """What the model says, and the packet."""
    got = answer(world, question)
    from_pod = question.entry is Entry.POD
    reason = 0
    if got.verdict in (Verdict.REJECT, Verdict.DROP):
        reason = NUMBERS.get(REASONS[got.rule], -1)
    ways = {}
    for packet in got.packets:
        action, device = _leads_to(world, question, got, packet.destination)
        port = None if packet.source_port is None else -1
        onward = Onward(packet.source.packed, port, action, device)
        ways[key_of(packet.destination, packet.port)] = onward
    flags = SYN if question.opens else ACK
    return Meant(
        question,
        got,
        Sent(
            cluster.MACS_FROM_POD if from_pod else cluster.MACS_FROM_UPLINK,
            question.source, question.destination, question.port, question.protocol, flags,
        ),
        device_of(question.entry, question.source),
        "from_pod" if from_pod else "from_uplink",
        reason,
        ways,
        tuple(labels_of(world, question, got)),
    )  # fmt: skip


def _leads_to(world: World, question: FlowQuestion, got: Answer, to: IPAddress) -> tuple[int, int]:
    """The action towards an address, and the device."""
    where = where_is(world, to)
    if got.verdict is Verdict.PASS and not question.opens:
        return PASS, 0
    if where is Where.POD:
        return POD, device_of(Entry.POD, to)
    if got.verdict is Verdict.PASS and (
        question.entry is Entry.OUTSIDE or got.rule in (rules.LINK, rules.HOST, rules.OTHER_PROXY)
    ):
        return PASS, 0
    if where is Where.HERE:
        return PASS, 0
    if where is Where.OTHER_PODS:
        return (TUNNEL, cluster.OVERLAY) if world.vxlan else (NATIVE, cluster.UPLINK)
    return WORLD, cluster.UPLINK


def wrong(meant: Meant, frame: bytes | bytearray, sport: int, seen: Seen, world: World) -> str:
    """What the programs did otherwise than the model says; "" if nothing."""
    if seen.reason != meant.reason:
        was = NAMES.get(seen.reason, str(seen.reason)) if seen.reason else _action(seen.action)
        return f"{was}, not {_wanted(meant)}"
    if meant.answer.verdict is Verdict.DROP:
        return (
            "" if seen.action == DROP and seen.retval == 2 else f"{_action(seen.action)}, not DROP"
        )
    if meant.answer.verdict is Verdict.REJECT:
        return wrong_refusal(meant, seen)
    place = destination_of(seen.frame, meant.sent.family)
    onward = meant.ways.get(place)
    if onward is None:
        return (
            f"went to {shown(place)}, which is none of {', '.join(sorted(map(shown, meant.ways)))}"
        )
    return wrong_way(onward, meant.sent, frame, sport, seen, world.masquerade_ports)


def wrong_way(
    onward: Onward,
    sent: Sent,
    frame: bytes | bytearray,
    sport: int,
    seen: Seen,
    masquerade_ports: tuple[int, int],
) -> str:
    """What is wrong with a packet that goes on to the right place."""
    family = sent.family
    if (seen.action, seen.retval) != (onward.action, RETVAL.get(onward.action, REDIRECT)):
        return f"{_action(seen.action)} ({seen.retval:#x}), not {_action(onward.action)}"
    if onward.device and seen.ifindex != onward.device:
        return f"by device {seen.ifindex}, not {onward.device}"
    if source_of(seen.frame, family) != onward.source:
        return f"source is {_address(source_of(seen.frame, family))}, not {_address(onward.source)}"
    port = source_port_of(seen.frame, family)
    if onward.port is None:
        if not masquerade_ports[0] <= port <= masquerade_ports[1]:
            return f"source port {port} is not of the masquerade range"
    elif port != (sport if onward.port < 0 else onward.port):
        return f"source port {port}, not {sport if onward.port < 0 else onward.port}"
    hops = HOP_LIMIT - (onward.action != PASS)
    if seen.frame[HOPS[family]] != hops:
        return f"{seen.frame[HOPS[family]]} hops left, not {hops}"
    return wrong_copy(seen.frame, frame, family, sent.protocol)


def wrong_refusal(meant: Meant, seen: Seen) -> str:
    """A refusal is said to the sender: TCP by a reset, all others by ICMP."""
    if seen.action != ANSWER or seen.retval != REDIRECT:
        return f"{_action(seen.action)}, not an answer"
    family, frame, source = meant.sent.family, seen.frame, meant.question.source.packed
    if seen.ifindex != meant.device:
        return f"answered by device {seen.ifindex}"
    if frame[meant.sent.l4 - len(source) : meant.sent.l4] != source:
        return "not answered to the sender"
    protocol = frame[ETHERNET + (9 if family is Family.V4 else 6)]
    if meant.question.protocol is Protocol.TCP:
        is_reset = protocol == Protocol.TCP and frame[meant.sent.l4 + 13] & RST
        return "" if is_reset else "answered by other than a reset"
    return "" if protocol == ICMP_OF[family] else "answered by other than ICMP"


# ---- words ----
def _action(number: int) -> str:
    return Action(number).name.removeprefix("ACTION_") if number else "no verdict"


def _wanted(meant: Meant) -> str:
    rule = meant.answer.rule
    return f"{REASONS.get(rule, meant.answer.verdict.value)} ({rule.name})"


def shown(place: bytes) -> str:
    """A place as `destination_of` gives it, for people."""
    return f"{_address(place[:-2])} port {place[-2] << 8 | place[-1]}"


def _address(packed: bytes) -> str:
    return str(ip_address(packed))
