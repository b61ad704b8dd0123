# SPDX-License-Identifier: Apache-2.0
"""All questions of one call: the copy made once, each question answered and compared.

The reference model is a second opinion on every answer; where the two differ, one of them
is wrong, and that is said. Must not read manifests or print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from dataplane.core import reference
from dataplane.core.reference import Entry, FlowQuestion, World
from dataplane.explain import story
from dataplane.explain.ask import FIRST_PORT, Asker, Finding, program_for
from dataplane.explain.questions import Question, place
from dataplane.explain.scene import Needs, Scene
from dataplane.explain.scratch import Scratch
from dataplane.kernel.bundle import Bundle
from dataplane.model.errors import BadInput
from dataplane.model.objects import Node


@dataclass(frozen=True, slots=True)
class Answer:
    """One flow, as `explain -o json` says it."""

    verdict: str
    backends: tuple[str, ...]
    masquerade: bool
    service: str
    reason: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explained:
    """An answer; `differences` says where the reference model's is another, field by field."""

    question: Question
    answer: Answer
    differences: tuple[str, ...] = ()


def explain(
    bundle: Bundle, scene: Scene, world: World | None, questions: Sequence[Question]
) -> Iterator[Explained]:
    """Answers in the order of the questions.

    Call it in a network namespace without sockets (kernel.netns.run_apart).

    Args:
        world: for the reference model; None where there are no objects to make one from.
    """  # fmt: skip
    for question in questions:
        if scene.is_node(question.source):
            why = "it starts on the node itself, whose sockets explain does not drive yet"
            raise BadInput(f"flow {question}", why)
    programs = {program_for(q, scene.in_cluster(q.source)) for q in questions}
    scratch = Scratch(bundle, scene, programs)
    try:
        asker = Asker(scratch)
        for question in questions:
            yield answer(asker, question, world)
    finally:
        scratch.close()


def answer(asker: Asker, question: Question, world: World | None) -> Explained:
    """One question to the programs, and the reference model's word on it."""
    scene = asker.scene
    needs = scene.needs(question)
    with asker.changed(needs):
        finding = asker.ask(question)
        return _explained(finding, scene, world and _with(world, needs))


def _explained(finding: Finding, scene: Scene, world: World | None) -> Explained:
    ours = Answer(
        finding.verdict,
        story.backends(finding),
        finding.masquerade,
        story.service(finding, scene),
        story.reason(finding, scene),
        story.steps(finding, scene),
    )
    if world is None:
        return Explained(finding.question, ours)
    asked = _asked(finding.question, scene)
    second = reference.answer(world, asked)
    theirs = Answer(
        second.verdict.value,
        tuple(place(*one) for one in sorted(second.backends)),
        second.masquerade,
        second.service,
        f"{second.rule.name}: {second.rule.words}",
        (),
    )
    differences = tuple(
        f"{name}: the programs say {_text(here)}, the reference model says {_text(there)}"
        for name in ("verdict", "backends", "masquerade", "service")
        if (here := getattr(ours, name)) != (there := getattr(theirs, name))
    )
    if not differences:
        ours = replace(ours, reason=theirs.reason)
    return Explained(finding.question, ours, differences)


def _text(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _asked(question: Question, scene: Scene) -> FlowQuestion:
    if scene.is_node(question.source):
        entry = Entry.NODE
    else:
        entry = Entry.POD if scene.in_cluster(question.source) else Entry.OUTSIDE
    return FlowQuestion(
        question.source, question.address, question.port, question.protocol, entry, FIRST_PORT
    )


def _with(world: World, needs: Needs) -> World:
    """The world with the plain destination that is taken to be there."""
    if needs.here is not None:
        return replace(world, pods=world.pods | {needs.here})
    if needs.elsewhere is not None:
        somewhere = Node("somewhere", pod_cidrs=(ip_network(needs.elsewhere),))
        return replace(world, nodes=(*world.nodes, somewhere))
    return world
