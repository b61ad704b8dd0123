# SPDX-License-Identifier: Apache-2.0
"""One question to the programs, by several trials: what becomes of the flow, and what could.

A trial tells one backend. Which set was read is found by emptying one and trying again;
each of its places is then offered alone, so that every backend is seen to be reached; and
trials from other source ports (or other sockets) must choose nothing else. Must not judge
by rules of its own: they stand in the programs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from dataplane.core.plan import BACKENDS, SERVICES, SLOTS
from dataplane.explain.questions import Question
from dataplane.explain.scene import Needs, Scene
from dataplane.explain.scratch import Scratch
from dataplane.explain.trials import FORWARD, Trial, Trials
from dataplane.model.errors import Contradiction
from dataplane.model.rows import (
    BackendRow,
    BackendSet,
    FrontendKey,
    FrontendRow,
    ServiceRow,
    SlotRow,
)

SETS = ("cluster", "local")
# Trials of one flow with other source ports, or other sockets.
_OTHERS = 17
# Places that are offered alone; of a larger set the others are only read.
_MOST_ALONE = 128


@dataclass(frozen=True, slots=True)
class Member:
    """A backend of the set that the packet read; trial if its place was offered alone."""

    place: int
    id: int
    row: BackendRow
    trial: Trial | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What the programs did. chosen names the set of `service`; members are sorted by place."""

    question: Question
    program: str
    first: Trial
    frontend: tuple[FrontendKey, FrontendRow] | None
    service: ServiceRow | None = None
    chosen: str = ""
    members: tuple[Member, ...] = ()

    @property
    def verdict(self) -> str:
        """What becomes of the flow."""
        return self.first.verdict

    @property
    def from_node(self) -> bool:
        """Whether it starts at a socket of the node."""
        return not self.program.startswith(("from_pod", "from_uplink"))

    @property
    def hidden(self) -> tuple[Member, ...]:
        """The backends that see an address of this node in place of the sender's."""
        source = self.question.source
        return tuple(
            m for m in self.reached if m.trial is not None and m.trial.seen.source != source
        )

    @property
    def reached(self) -> tuple[Member, ...]:
        """The members but for those that the node has no way to."""
        return tuple(m for m in self.members if m.trial is None or m.trial.verdict == FORWARD)

    @property
    def masquerade(self) -> bool:
        """Whether the Service's rules hide the sender.

        A pod that may pick itself is hidden from itself alone: that is no rule of the flow's
        unless it can pick nobody else.
        """
        others = [m for m in self.hidden if m.row.address != self.question.source]
        outside = self.program.startswith("from_uplink") and bool(self.hidden)
        itself = bool(self.members) and len(self.hidden) == len(self.reached)
        return bool(others) or outside or itself


class Asker:
    """Asks the programs of one copy."""

    def __init__(self, scratch: Scratch, packets: Trials, calls: Trials | None = None) -> None:
        """calls: for flows that start on the node itself; None if none will be asked."""
        self._scratch, self._packets, self._calls = scratch, packets, calls

    @property
    def scene(self) -> Scene:
        """What the copy is filled with."""
        return self._scratch.scene

    def changed(self, needs: Needs) -> AbstractContextManager[None]:
        """The copy with what a question needs."""
        return self._scratch.changed(needs.changes)

    def ask(self, question: Question) -> Finding:
        """What the copy, which has what the question needs, does with it.

        Raises Contradiction if runs of one flow don't agree with the maps.
        """
        scene = self._scratch.scene
        trials = self._calls if scene.is_node(question.source) else self._packets
        if trials is None:
            raise Contradiction(str(question), "explain has no process to make the node's calls")
        first = self._as_sent(trials, question, trials.run(question, 0))
        finding = Finding(
            question,
            trials.program(question),
            first,
            scene.frontend(question.address, question.port, question.protocol),
        )
        number = self._service(finding)
        row = self._scratch.get(SERVICES, number) if number else None
        if not isinstance(row, ServiceRow):
            return finding
        finding = replace(finding, service=row)
        if finding.verdict != FORWARD:
            return finding
        chosen = self._set_in_use(trials, question, number, row)
        members = self._members(trials, question, number, row, chosen)
        _check_others(trials, question, members)
        return replace(finding, chosen=chosen, members=members)

    def _as_sent(self, trials: Trials, question: Question, trial: Trial) -> Trial:
        """The trial with the bytes that the node itself would send, where the copy hides nobody."""
        if not trial.packet or trial.seen.target not in self.scene.unmasked:
            return trial
        with self._scratch.changed(self.scene.masked(trial.seen.target)):
            return replace(trial, packet=trials.run(question, 0).packet)

    def _service(self, finding: Finding) -> int:
        """The Service port's id, 0 for none; the programs' word goes before the table's."""
        named = finding.first.said.service_id
        in_table = finding.frontend[1].service_id if finding.frontend else 0
        if named and named != in_table:
            raise Contradiction(
                str(finding.question), f"a run met Service {named}, the frontends say {in_table}"
            )
        return in_table

    # ---- sets ----
    def _set_in_use(self, trials: Trials, question: Question, number: int, row: ServiceRow) -> str:
        """The set without which the flow does not go on."""
        used = []
        for name in SETS:
            emptied = replace(row, **{name: 0})
            if emptied == row:
                continue
            with self._scratch.changed([(SERVICES, number, emptied)]):
                if trials.run(question, 0).verdict != FORWARD:
                    used.append(name)
        if len(used) != 1:
            raise Contradiction(str(question), f"the flow reads {' and '.join(used) or 'no'} set")
        return used[0]

    def _members(
        self, trials: Trials, question: Question, number: int, row: ServiceRow, chosen: str
    ) -> tuple[Member, ...]:
        whole = BackendSet.parse(getattr(row, chosen))
        members = []
        for place in range(whole.base, whole.base + whole.count):
            slot = self._scratch.get(SLOTS, place)
            if not isinstance(slot, SlotRow):
                raise Contradiction(f"slot {place}", "is in a set and holds nothing")
            backend = self._scratch.get(BACKENDS[question.family], slot.backend_id)
            if not isinstance(backend, BackendRow):
                raise Contradiction(f"backend {slot.backend_id}", "is in a set and holds nothing")
            members.append(Member(place, slot.backend_id, backend))
        # A flow back to its own sender is a rule of its own, so it is always tried.
        members.sort(key=lambda m: (m.row.address != question.source, m.place))
        alone = members[:_MOST_ALONE]
        tried = [self._alone(trials, question, number, row, whole, m) for m in alone]
        return tuple(sorted((*tried, *members[_MOST_ALONE:]), key=lambda m: m.place))

    def _alone(
        self,
        trials: Trials,
        question: Question,
        number: int,
        row: ServiceRow,
        whole: BackendSet,
        member: Member,
    ) -> Member:
        """The member with a trial of a set that has only its place."""
        word = int(BackendSet(member.place, 1, whole.epoch))
        narrow = replace(row, cluster=word, local=word)
        with self._scratch.changed([(SERVICES, number, narrow)]):
            trial = self._as_sent(trials, question, trials.run(question, 0))
        got = trial.said.backend_id
        if trial.verdict == FORWARD and got != member.id:
            raise Contradiction(str(question), f"a set of backend {member.id} alone led to {got}")
        return replace(member, trial=trial)


def _check_others(trials: Trials, question: Question, members: tuple[Member, ...]) -> None:
    known = {member.id for member in members}
    lost = any(member.trial and member.trial.verdict != FORWARD for member in members)
    for number in range(1, _OTHERS):
        trial = trials.run(question, number)
        got = trial.said.backend_id
        if got not in known and not (lost and trial.verdict != FORWARD):
            raise Contradiction(
                str(question), f"trial {number} led to backend {got}, not of the set"
            )
