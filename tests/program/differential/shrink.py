# SPDX-License-Identifier: Apache-2.0
"""From a difference to the few objects and the one packet that show it, as a row for a table.

Must not print.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from dataplane.core.reference import FlowQuestion, Verdict, World
from dataplane.core.reference.model import reference_of
from dataplane.model.objects import EndpointSlice, ObjectKey, Service
from tests.program.differential.frames import destination_of
from tests.program.differential.labels import REASONS
from tests.program.differential.meant import Meant, meant_of, shown, wrong
from tests.program.differential.node import Stage
from tests.program.differential.run import PICKS, Difference, Step
from tests.program.differential.talks import begun, may_start_anew, reply, starts_anew, wrong_later

Worlds = tuple[World, ...]
SECONDS = 20.0
_SPORT = 40000 - 1


def shrink(stage: Stage, difference: Difference) -> Difference:
    """The same kind of difference with as few worlds and objects as possible."""
    question, step = difference.meant.question, difference.step
    fewest = None
    for worlds in (difference.worlds[-1:], difference.worlds[-2:]):
        if shows(stage, worlds, question, step):
            fewest = worlds
            break
    if fewest is None:
        return difference  # it needs the whole chain
    ends = time.monotonic() + SECONDS
    smaller = True
    while smaller and time.monotonic() < ends:
        smaller = False
        for candidate in _smaller(fewest):
            if time.monotonic() > ends:
                break
            if shows(stage, candidate, question, step):
                fewest, smaller = candidate, True
                break
    why = shows(stage, fewest, question, step)
    meant = meant_of(fewest[-1], question)
    return replace(difference, why=why, worlds=fewest, meant=meant, is_small=True)


def shows(stage: Stage, worlds: Worlds, question: FlowQuestion, step: Step) -> str:
    """What is wrong with a packet of this kind in these worlds; "" if nothing."""
    stage.begin(worlds[0])
    first = worlds[0] if step is not Step.FIRST else worlds[-1]
    if step is Step.FIRST and len(worlds) > 1:
        stage.change(worlds[-1])
    meant = meant_of(first, question)
    if step is Step.MISSED:
        return _missed(stage, meant)
    frame = bytes(meant.sent.by(_SPORT))
    seen = stage.run(meant.hook, meant.sent.family, meant.device, frame)
    why = wrong(meant, frame, _SPORT, seen, first)
    if step is Step.FIRST:
        return why
    talk = None if why else begun(meant, _SPORT, seen, first)
    if talk is None:
        return ""
    if len(worlds) > 1:
        stage.change(worlds[-1])
        talk.changes(worlds[-1])
    if talk.rerouted:
        return ""
    if step is Step.REPLY:
        return reply(stage, talk, worlds[-1]) or ""
    later = bytes(talk.later.by(_SPORT))
    seen = stage.run(meant.hook, meant.sent.family, meant.device, later)
    why = "" if starts_anew(talk) else wrong_later(talk, bytearray(later), seen, worlds[-1])
    if starts_anew(talk) or (why and may_start_anew(talk)):
        return wrong(meant_of(worlds[-1], question), later, _SPORT, seen, worlds[-1])
    return why


def _missed(stage: Stage, meant: Meant) -> str:
    if len(meant.ways) < 2:
        return ""
    chosen = set()
    number = 2 * PICKS * len(meant.ways)
    for sport in range(1024, 1024 + number):
        seen = stage.run(meant.hook, meant.sent.family, meant.device, meant.sent.by(sport))
        chosen.add(destination_of(seen.frame, meant.sent.family))
    missed = set(meant.ways) - chosen
    return f"never chosen in {number} packets: {', '.join(map(shown, missed))}" if missed else ""


def _smaller(worlds: Worlds) -> Iterator[Worlds]:
    """Worlds with one thing less in all of them, the largest things first."""
    for candidate in _candidates(worlds):
        if any(
            (now.services, now.slices) != (was.services, was.slices)
            for now, was in zip(candidate, worlds, strict=True)
        ):
            yield candidate


def _candidates(worlds: Worlds) -> Iterator[Worlds]:
    services = list(dict.fromkeys(service.key for w in worlds for service in w.services))
    pieces = list(dict.fromkeys(piece.key for w in worlds for piece in w.slices))
    half = len(services) // 2
    for some in (services[half:], services[:half], *([key] for key in services)):
        yield _change_services(worlds, some, lambda _: None)
    for key in pieces:
        yield _change_pieces(worlds, key, lambda _: None)
    for key in pieces:
        for at in range(max(len(p.endpoints) for w in worlds for p in w.slices if p.key == key)):
            yield _change_pieces(worlds, key, partial(_without_endpoint, at))
    for key in services:
        for simpler in _SIMPLER:
            yield _change_services(worlds, [key], simpler)


def _without_endpoint(at: int, piece: EndpointSlice) -> EndpointSlice:
    return replace(piece, endpoints=piece.endpoints[:at] + piece.endpoints[at + 1 :])


_SIMPLER: tuple[Callable[[Service], Service], ...] = (
    lambda s: replace(s, ports=s.ports[1:]) if len(s.ports) > 1 else s,
    lambda s: replace(s, ports=s.ports[:-1]) if len(s.ports) > 1 else s,
    lambda s: replace(s, external_ips=()),
    lambda s: replace(s, load_balancer_ips=()),
    lambda s: replace(s, source_ranges=()),
    lambda s: replace(s, affinity_seconds=0),
    lambda s: replace(s, internal_local=False),
    lambda s: replace(s, external_local=False),
    lambda s: replace(s, created=""),
)


def _change_services(
    worlds: Worlds, keys: list[ObjectKey], change: Callable[[Service], Service | None]
) -> Worlds:
    """Some Services changed in all worlds, or left out."""
    made = []
    for world in worlds:
        services = (change(s) if s.key in keys else s for s in world.services)
        made.append(replace(world, services=tuple(s for s in services if s is not None)))
    return tuple(made)


def _change_pieces(
    worlds: Worlds, key: ObjectKey, change: Callable[[EndpointSlice], EndpointSlice | None]
) -> Worlds:
    """One slice changed in all worlds, or left out."""
    made = []
    for world in worlds:
        pieces = (change(p) if p.key == key else p for p in world.slices)
        made.append(replace(world, slices=tuple(p for p in pieces if p is not None)))
    return tuple(made)


# ---- words ----
def row(difference: Difference) -> str:
    """A row of a packet table, as Python: what is told, packet in, verdict."""
    meant, world = difference.meant, difference.worlds[-1]
    asked, got = meant.question, meant.answer
    frontend = reference_of(world).frontend(asked)
    what = f"{asked.entry.value} to {frontend.door.name.lower()}" if frontend else asked.entry.value
    told = f"{what}{_STEPS[difference.step]}: {got.rule.words}"
    sent = (
        f"{asked.protocol.name.lower()} {_end(asked.source, difference.sport)} >"
        f" {_end(asked.destination, asked.port)}"
    )
    match got.verdict:
        case Verdict.DROP:
            verdict = f'dropped("{REASONS[got.rule]}")'
        case Verdict.REJECT:
            verdict = f'refused("{REASONS[got.rule]}")'
        case _:
            verdict = f"{got.verdict.value} to {', '.join(sorted(map(shown, meant.ways)))}"
    return f"({told!r},\n {sent!r},\n {verdict})"


_STEPS = {
    Step.FIRST: "",
    Step.REPLY: ", the reply",
    Step.LATER: ", a later packet",
    Step.MISSED: ", again and again",
}


def _end(address: object, port: int) -> str:
    text = str(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def objects(difference: Difference) -> Iterator[str]:
    """The objects that are left, world by world."""
    for number, world in enumerate(difference.worlds, 1):
        if len(difference.worlds) > 1:
            yield f"world {number} of {len(difference.worlds)}:"
        mode = "vxlan" if world.vxlan else "native"
        yield (
            f"node {world.node}: {mode}, zone {world.zone or 'none'}, families"
            f" {', '.join(f'IPv{int(f)}' for f in world.families)},"
            f" masqueradeAll {world.masquerade_all},"
            f" nodePortAddresses {', '.join(map(str, world.node_port_ranges)) or 'default'}"
        )
        yield from map(str, world.services)
        yield from map(str, world.slices)
