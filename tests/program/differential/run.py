# SPDX-License-Identifier: Apache-2.0
"""Runs chains: a world, packets, a change of it, packets again, and so on.

A chain begins with fresh tables and has a seed of its own, so any of them can be had again
alone. Must not print.
"""

from __future__ import annotations

import enum
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from random import Random

from dataplane.core.reference import Entry, Fate, FlowQuestion, Place, World, fate_of
from dataplane.model.net import Protocol
from tests.program.differential import cluster
from tests.program.differential.frames import destination_of, place_of
from tests.program.differential.labels import GONE, Tally
from tests.program.differential.meant import Meant, meant_of, wrong
from tests.program.differential.node import Stage
from tests.program.differential.questions import questions
from tests.program.differential.talks import (
    Talk,
    begun,
    may_start_anew,
    reply,
    starts_anew,
    wrong_later,
)
from tests.program.differential.worlds import Maker
from tests.program.quick import Seen

# Packets of a chain, worlds of it, and questions that are asked of one world.
CHAIN, WORLDS, QUESTIONS = 3_000, 6, 130
# So many packets a member miss one of a set by chance once in e^20 times.
PICKS = 20
TALKS = 60

Client = tuple[object, str, Protocol]


class Step(enum.Enum):
    """Which packet of a flow."""

    FIRST = enum.auto()
    REPLY = enum.auto()
    LATER = enum.auto()
    MISSED = enum.auto()  # none of many first packets


@dataclass(frozen=True, slots=True)
class Difference:
    """What the programs did otherwise; worlds: the chain's up to this one."""

    why: str
    step: Step
    worlds: tuple[World, ...]
    meant: Meant
    sport: int
    chain: int = 0
    is_small: bool = False


@dataclass(slots=True)
class Outcome:
    """Of one chain, or of several; seconds are those of all of them together."""

    packets: int = 0
    seconds: float = 0.0
    tally: Tally = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Takes over what came of another."""
        self.packets += other.packets
        self.seconds += other.seconds
        self.tally += other.tally
        self.differences += other.differences


class Chain:
    """One world and what comes after it."""

    def __init__(self, stage: Stage, seed: str) -> None:
        self._stage, self._rng = stage, Random(seed)
        self._maker = Maker(self._rng)
        self.worlds = [self._maker.world()]
        self._ports = iter(range(cluster.CLIENT_PORTS[0], cluster.CLIENT_PORTS[1] + 1))
        self._memories: dict[Client, Place] = {}  # affinity
        self._talks: list[Talk] = []
        self._left: list[Talk] = []
        self.tally: Tally = Counter()
        self._asked: list[Meant] = []
        self._narrowed: dict[tuple[int, Place | None, bool], Meant] = {}
        self._picks: dict[int, Counter[bytes]] = {}
        self.packets = 0

    def run(self, packets: int) -> Difference | None:
        """That many packets, or fewer if one is treated otherwise than the model says."""
        self._stage.begin(self.worlds[0])
        for number in range(WORLDS):
            if number:
                self._change()
            difference = self._ask(packets // WORLDS)
            if difference is not None:
                return difference
        return None

    def _change(self) -> None:
        world = self._maker.changed(self.worlds[-1])
        self.worlds.append(world)
        self._stage.change(world)
        for talk in self._talks:
            talk.changes(world)
        self._talks = [talk for talk in self._talks if not talk.rerouted]
        self._left = [
            talk for talk in self._talks if talk.fate is not Fate.KEEPS or may_start_anew(talk)
        ]
        for client, place in list(self._memories.items()):
            flow = FlowQuestion(place[0], place[0], 0, client[2], Entry.POD)
            if fate_of(world, client[1], flow, place) is Fate.GONE:
                del self._memories[client]

    def _ask(self, packets: int) -> Difference | None:
        world, rng = self.worlds[-1], self._rng
        self._asked = [meant_of(world, q) for q in questions(world, rng, QUESTIONS)]
        self._narrowed, self._picks = {}, defaultdict(Counter)
        # a rule that decides seldom is asked as often as one that decides always
        by_rule: dict[str, list[int]] = defaultdict(list)
        for at, meant in enumerate(self._asked):
            by_rule[meant.answer.rule.name].append(at)
        alike = list(by_rule.values())
        # one is asked so often that each of its backends must be seen
        several = [
            some
            for group in alike
            if (some := [at for at in group if self._is_free(self._asked[at])])
        ]
        often = rng.choice(rng.choice(several)) if several else 0
        for _ in range(packets):
            self.packets += 1
            dice = rng.random()
            if dice < 0.15 and self._talks:
                difference = self._go_on(self._pick_talk())
            else:
                if dice < 0.35 and several:
                    at = often
                elif dice < 0.65:
                    at = int(rng.random() * len(self._asked))
                else:
                    some = alike[int(rng.random() * len(alike))]
                    at = some[int(rng.random() * len(some))]
                difference = self._send(at)
            if difference is not None:
                return difference
        return self._missed()

    # ---- first packets ----
    def _send(self, at: int) -> Difference | None:
        meant, tally = self._meant_now(at), self.tally
        sport = next(self._ports)
        sent = meant.sent
        frame = sent.by(sport)
        seen = self._stage.run(meant.hook, sent.family, meant.device, frame)
        why = wrong(meant, frame, sport, seen, self.worlds[-1])
        if why:
            return self._difference(why, Step.FIRST, meant, sport)
        for label in meant.labels:
            tally[label] += 1
        if meant.ways:
            self._note(at, meant, sport, seen)
        return None

    def _meant_now(self, at: int) -> Meant:
        """A question as it is to be understood with what the node remembers of its sender."""
        meant, rng = self._asked[at], self._rng
        opens = meant.question.protocol is not Protocol.TCP or rng.random() < 0.9
        remembered = None
        if self._memories and meant.answer.service and opens:
            remembered = self._memories.get(_client(meant))
        if opens and remembered is None:
            return meant
        key = at, remembered, opens
        if key not in self._narrowed:
            question = replace(meant.question, remembered=remembered, opens=opens)
            self._narrowed[key] = meant_of(self.worlds[-1], question)
        return self._narrowed[key]

    def _note(self, at: int, meant: Meant, sport: int, seen: Seen) -> None:
        """What follows from a packet: a backend seen, a memory of its sender, a flow."""
        if len(meant.ways) > 1:
            self._picks[at][destination_of(seen.frame, meant.sent.family)] += 1
        self._remember(meant, seen)
        talk = begun(meant, sport, seen, self.worlds[-1])
        if talk is None:
            return
        if len(self._talks) < TALKS:
            self._talks.append(talk)
            return
        # those that a change of the world may move are worth more
        chance = 0.05
        if meant.answer.service:
            chance = 0.1 if meant.question.protocol is Protocol.TCP else 0.5
        at = int(self._rng.random() * TALKS)
        if self._talks[at] not in self._left and self._rng.random() < chance:
            self._talks[at] = talk

    def _remember(self, meant: Meant, seen: Seen) -> None:
        if self._sticks(meant):
            place = destination_of(seen.frame, meant.sent.family)
            self._memories[_client(meant)] = place_of(place)

    def _sticks(self, meant: Meant) -> bool:
        service = meant.answer.service.rpartition(":")[0]
        return bool(service) and any(
            s.affinity_seconds and f"{s.namespace}/{s.name}" == service
            for s in self.worlds[-1].services
        )

    # ---- later packets ----
    def _pick_talk(self) -> Talk:
        """Those whose backend has left come more often, for they are few."""
        rng = self._rng
        if self._left and rng.random() < 0.5:
            few = [talk for talk in self._left if starts_anew(talk)] or self._left
            return few[int(rng.random() * len(few))]
        return self._talks[int(rng.random() * len(self._talks))]

    def _go_on(self, talk: Talk) -> Difference | None:
        world = self.worlds[-1]
        if self._rng.random() < 0.5:
            why = reply(self._stage, talk, world)
            self.tally["packet", "reply"] += why is not None
            return self._difference(why, Step.REPLY, talk.meant, talk.sport) if why else None
        meant = talk.meant
        frame = talk.later.by(talk.sport)
        seen = self._stage.run(meant.hook, meant.sent.family, meant.device, frame)
        if not starts_anew(talk):
            why = wrong_later(talk, frame, seen, world)
            if not may_start_anew(talk):
                self.tally["packet", f"later, {talk.fate.name.lower()}"] += 1
                if talk.fate is Fate.GONE:
                    self.tally[GONE] += 1
                return self._difference(why, Step.LATER, meant, talk.sport) if why else None
            if not why:
                self.tally["packet", "later, of what is another's since"] += 1
                return None
        self._talks.remove(talk)
        self._left.remove(talk)
        anew = meant_of(world, replace(meant.question, remembered=None))
        # what its address and port are now: another Service port than at first has no memory of it
        remembered = self._memories.get(_client(anew))
        if remembered is not None:
            anew = meant_of(world, replace(meant.question, remembered=remembered))
        why = wrong(anew, frame, talk.sport, seen, world)
        self.tally["packet", "later, chosen anew"] += 1
        if why:
            return self._difference(f"chosen anew: {why}", Step.LATER, anew, talk.sport)
        if anew.ways:
            self._remember(anew, seen)
        again = begun(anew, talk.sport, seen, world)
        if again is not None:
            self._talks.append(again)
        return None

    # ---- what is wrong ----
    def _difference(self, why: str, step: Step, meant: Meant, sport: int) -> Difference:
        return Difference(why, step, tuple(self.worlds), meant, sport)

    def _is_free(self, meant: Meant) -> bool:
        """Whether chance alone chooses among several backends."""
        return len(meant.ways) > 1 and not self._sticks(meant)

    def _missed(self) -> Difference | None:
        """A backend that no packet was ever sent to, though so many were."""
        together: dict[tuple[str, frozenset[bytes]], Counter[bytes]] = defaultdict(Counter)
        one: dict[tuple[str, frozenset[bytes]], Meant] = {}
        for at, counted in self._picks.items():
            meant = self._asked[at]
            if self._is_free(meant):
                key = meant.answer.service, frozenset(meant.ways)
                together[key] += counted
                one[key] = meant
        for (service, places), counted in together.items():
            if counted.total() >= PICKS * len(places) and len(counted) < len(places):
                why = f"{service}: a backend was never chosen in {counted.total()} packets"
                return self._difference(why, Step.MISSED, one[service, places], 0)
        return None


def _client(meant: Meant) -> Client:
    return meant.question.source, meant.answer.service, meant.question.protocol


def run_chain(stage: Stage, seed: str, packets: int = CHAIN) -> Outcome:
    """One chain on a stage."""
    began = time.monotonic()
    chain = Chain(stage, seed)
    difference = chain.run(packets)
    return Outcome(
        chain.packets, time.monotonic() - began, chain.tally, [difference] if difference else []
    )
