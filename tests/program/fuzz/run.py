# SPDX-License-Identifier: Apache-2.0
"""Runs rounds of packets, and makes the shortest sequence out of one that failed.

A round begins with fresh tables and has a seed of its own, so any round can be had again
alone. Must not print.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.program.fuzz.judge import HOOKS, Judge, name_of
from tests.program.fuzz.maker import Maker
from tests.program.fuzz.shapes import Shapes
from tests.program.fuzz.stage import Case, Count, Stage
from tests.program.quick import Seen

ROUND = 20_000
Packet = tuple[Case, bytes]
Counted = Counter[tuple[Case, int, int]]  # by action and reason
Kind = tuple[str, int, str, str]
Kinds = dict[Kind, Packet]
Tally = Counter[Kind]  # hook, family, action, reason


@dataclass(frozen=True, slots=True)
class Failure:
    """What was wrong with the last of these packets, and what came out of it."""

    why: str
    packets: tuple[Packet, ...]
    seen: Seen


@dataclass(slots=True)
class Outcome:
    """Of one round. `kinds`: the shortest packet that came to each line of the tally."""

    tally: Tally = field(default_factory=Counter)
    failure: Failure | None = None
    kinds: Kinds = field(default_factory=dict)


def run_round(stage: Stage, shapes: Shapes, seed: str, packets: int, roomy: bool) -> Outcome:
    """That many packets, or fewer if one fails."""
    maker, judge, outcome = Maker(seed, shapes), Judge(roomy), Outcome()
    stage.forget()
    sent: list[Packet] = []
    shortest: dict[tuple[Case, int, int], Packet] = {}
    counted: Counted = Counter()
    for _ in range(packets):
        case, frame = packet = maker.next()
        sent.append(packet)
        seen = stage.run(case, frame)
        kind = case, seen.action, seen.reason
        counted[kind] += 1
        if kind not in shortest or len(frame) < len(shortest[kind][1]):
            shortest[kind] = packet
        why = judge.wrong(case, case.meets(frame), seen)
        if why:
            outcome.failure = Failure(why, tuple(sent), seen)
            break
        maker.take(case, frame, seen)
    for (case, action, reason), number in counted.items():
        name = (case.hook, int(case.family), name_of("action", action), name_of("drop", reason))
        outcome.tally[name] += number
        keep_shortest(outcome.kinds, {name: shortest[case, action, reason]})
    if outcome.failure is None:
        outcome.failure = _wrong_counters(stage, counted, sent)
    return outcome


def keep_shortest(kinds: Kinds, more: Kinds) -> None:
    """Take over packets of new kinds, and shorter ones."""
    for kind, packet in more.items():
        if kind not in kinds or len(packet[1]) < len(kinds[kind][1]):
            kinds[kind] = packet


def replay(stage: Stage, packets: Sequence[Packet], roomy: bool) -> Failure | None:
    """These packets in this order on fresh tables; the first failure."""
    judge = Judge(roomy)
    stage.forget()
    counted: Counted = Counter()
    for number, (case, frame) in enumerate(packets, 1):
        seen = stage.run(case, frame)
        counted[case, seen.action, seen.reason] += 1
        why = judge.wrong(case, case.meets(frame), seen)
        if why:
            return Failure(why, tuple(packets[:number]), seen)
    return _wrong_counters(stage, counted, packets)


def shrink(stage: Stage, failure: Failure, roomy: bool, seconds: float = 30) -> Failure:
    """A shorter sequence that fails too, and a last packet with fewer bytes of its own."""
    ends = time.monotonic() + seconds
    best = replay(stage, failure.packets[-1:], roomy) or failure
    size = len(best.packets) // 2
    while size and time.monotonic() < ends:
        at = 0
        while at < len(best.packets) - 1 and time.monotonic() < ends:
            fewer = best.packets[:at] + best.packets[min(at + size, len(best.packets) - 1) :]
            found = replay(stage, fewer, roomy)
            if found:
                best = found
            else:
                at += size
        size //= 2
    case, frame = best.packets[-1]
    at = len(frame)
    while at > case.least and time.monotonic() < ends:
        at -= 1
        for shorter in (frame[:at], frame[:at] + b"\0" + frame[at + 1 :]):
            found = replay(stage, (*best.packets[:-1], (case, shorter)), roomy)
            if found and found.why == best.why:
                best, frame = found, shorter
                break
    return best


def _wrong_counters(stage: Stage, counted: Counted, sent: Sequence[Packet]) -> Failure | None:
    """Each reason that a verdict gave, and no other, has grown its hook's counter by one."""
    meant: Count = Counter()
    for (case, _, reason), number in counted.items():
        if reason:
            meant[case.tables, HOOKS[case.hook], reason] += number
    was = stage.drops()
    if was == meant:
        return None
    why = f"drop counters: {was - meant} too many, {meant - was} missing"
    return Failure(why, tuple(sent), Seen(0, 0, 0, 0, 0, b""))
