# SPDX-License-Identifier: Apache-2.0
"""One question to the programs, by several runs: what becomes of the flow, and what could.

A run tells one backend. Which set the packet read is found by emptying the others and
running again; each of its places is then offered alone, so that every backend is seen
to be reached; and runs from other source ports must choose nothing else. Must not judge
by rules of its own: they stand in the programs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from dataplane.abi.layout import abi
from dataplane.core.plan import BACKENDS, SERVICES, SLOTS
from dataplane.explain import frames
from dataplane.explain.frames import Seen
from dataplane.explain.questions import Question
from dataplane.explain.scene import OUTSIDE_MAC, POD_MAC, UPLINK_MAC, Needs, Scene
from dataplane.explain.scratch import Scratch
from dataplane.kernel.testrun import Outcome
from dataplane.model.errors import Contradiction
from dataplane.model.flow import Flow, FlowKey
from dataplane.model.net import Family
from dataplane.model.rows import (
    BackendRow,
    BackendSet,
    FrontendKey,
    FrontendRow,
    ServiceRow,
    SlotRow,
)

GATEWAY_MAC = bytes.fromhex("0a706c000002")
SETS = ("cluster", "local")
FIRST_PORT = 20000  # outside the masquerade range
_PORTS = tuple(FIRST_PORT + 1297 * n for n in range(16))
# Places that are offered alone; of a larger set the others are only read.
_MOST_ALONE = 128

PROGRAMS = tuple(f"{hook}_{family:d}" for hook in ("from_pod", "from_uplink") for family in Family)
FORWARD, REJECT, DROP, PASS = "forward", "reject", "drop", "pass"


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: what the program said, the packet afterwards, the flow that it remembered."""

    port: int
    outcome: Outcome
    seen: Seen
    flow: Flow | None


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
    verdict: str
    frontend: tuple[FrontendKey, FrontendRow] | None
    service: ServiceRow | None = None
    chosen: str = ""
    members: tuple[Member, ...] = ()

    @property
    def hidden(self) -> tuple[Member, ...]:
        """The backends that see an address of this node in place of the sender's."""
        source = self.question.source
        return tuple(m for m in self.members if m.trial and m.trial.seen.source != source)

    @property
    def masquerade(self) -> bool:
        """Whether the Service's rules hide the sender.

        A pod that may pick itself is hidden from itself alone: that is no rule of the flow's
        unless it can pick nobody else.
        """
        others = [m for m in self.hidden if m.row.address != self.question.source]
        return bool(others) or (bool(self.members) and len(self.hidden) == len(self.members))


class Asker:
    """Asks the programs of one copy."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        actions, flags = abi(Family.V4).enum("action"), abi(Family.V4).enum("flow_flag")
        self._answer, self._drop = actions["ACTION_ANSWER"], actions["ACTION_DROP"]
        self._nat_dst = flags["FLOW_NAT_DST"]

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
        first = self._run(question, FIRST_PORT)
        finding = Finding(
            question,
            program_for(question, scene.in_cluster(question.source)),
            first,
            self._verdict(first.outcome),
            scene.frontend(question.address, question.port, question.protocol),
        )
        number = self._service(finding)
        row = self._scratch.get(SERVICES, number) if number else None
        if not isinstance(row, ServiceRow):
            return finding
        finding = replace(finding, service=row)
        if finding.verdict != FORWARD:
            return finding
        chosen = self._set_in_use(question, number, row)
        members = self._members(question, number, row, chosen)
        self._check_other_ports(question, members)
        return replace(finding, chosen=chosen, members=members)

    def _service(self, finding: Finding) -> int:
        """The Service port's id, 0 for none; the programs' word goes before the table's."""
        named = finding.first.outcome.verdict.service_id
        in_table = finding.frontend[1].service_id if finding.frontend else 0
        if named and named != in_table:
            raise Contradiction(
                str(finding.question), f"a run met Service {named}, the frontends say {in_table}"
            )
        return in_table

    # ---- runs ----
    def _run(self, question: Question, port: int) -> Trial:
        scene = self._scratch.scene
        inside = scene.in_cluster(question.source)
        macs = (GATEWAY_MAC, POD_MAC) if inside else (UPLINK_MAC, OUTSIDE_MAC)
        source, target = (question.source, port), (question.address, question.port)
        frame = frames.build(macs, question.protocol, source, target)
        outcome = self._scratch.run(program_for(question, inside), frame)
        key = FlowKey(
            question.source, question.address, port, question.port, int(question.protocol)
        )
        flow = self._scratch.flow(question.family, key)
        return Trial(port, outcome, frames.read(outcome.packet), flow)

    def _verdict(self, outcome: Outcome) -> str:
        said = outcome.verdict
        if said.action == self._answer:
            return REJECT
        if said.action == self._drop or not said.action:
            return DROP
        return FORWARD if said.flow_flags & self._nat_dst else PASS

    # ---- sets ----
    def _set_in_use(self, question: Question, number: int, row: ServiceRow) -> str:
        """The set without which the flow does not go on."""
        used = []
        for name in SETS:
            emptied = replace(row, **{name: 0})
            if emptied == row:
                continue
            with self._scratch.changed([(SERVICES, number, emptied)]):
                if self._verdict(self._run(question, FIRST_PORT).outcome) != FORWARD:
                    used.append(name)
        if len(used) != 1:
            raise Contradiction(str(question), f"the flow reads {' and '.join(used) or 'no'} set")
        return used[0]

    def _members(
        self, question: Question, number: int, row: ServiceRow, chosen: str
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
        tried = [self._alone(question, number, row, whole, m) for m in members[:_MOST_ALONE]]
        return tuple(sorted((*tried, *members[_MOST_ALONE:]), key=lambda m: m.place))

    def _alone(
        self, question: Question, number: int, row: ServiceRow, whole: BackendSet, member: Member
    ) -> Member:
        """The member with a run of a set that has only its place."""
        word = int(BackendSet(member.place, 1, whole.epoch))
        narrow = replace(row, cluster=word, local=word)
        with self._scratch.changed([(SERVICES, number, narrow)]):
            trial = self._run(question, FIRST_PORT)
        if trial.outcome.verdict.backend_id != member.id:
            got = trial.outcome.verdict.backend_id
            raise Contradiction(str(question), f"a set of backend {member.id} alone led to {got}")
        return replace(member, trial=trial)

    def _check_other_ports(self, question: Question, members: tuple[Member, ...]) -> None:
        known = {member.id for member in members}
        for port in _PORTS:
            got = self._run(question, port).outcome.verdict.backend_id
            if got not in known:
                raise Contradiction(
                    str(question), f"source port {port} led to backend {got}, not of the set"
                )


def program_for(question: Question, inside: bool) -> str:
    """Where the sender's packets enter the node."""
    return f"{'from_pod' if inside else 'from_uplink'}_{int(question.family)}"
