# SPDX-License-Identifier: Apache-2.0
"""All questions of one call: the copy made once, each question answered and compared.

The reference model is a second opinion on every answer; where the two differ, one of them
is wrong, and that is said. Must not read manifests or print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

from dataplane.core import reference
from dataplane.core.reference import Entry, FlowQuestion, World
from dataplane.explain import calls, story, trials
from dataplane.explain.ask import Asker, Finding
from dataplane.explain.calls import calling
from dataplane.explain.hops import Hops, copies
from dataplane.explain.questions import Question, place
from dataplane.explain.scene import Needs, Scene
from dataplane.explain.scratch import Scratch
from dataplane.explain.trials import FIRST_PORT, FORWARD, PASS, PacketTrials
from dataplane.kernel.bundle import Bundle
from dataplane.model.constants import FrontendKind, NodeFlag, ServiceFlag
from dataplane.model.net import Protocol
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
    bundle: Bundle,
    scene: Scene,
    world: World | None,
    questions: Sequence[Question],
    cgroup: Path | None = None,
    elsewhere: Callable[[str], Scene] | None = None,
) -> Iterator[Explained]:
    """Answers in the order of the questions.

    Call it in a network namespace without sockets (kernel.netns.run_apart).

    Args:
        world: for the reference model; None where there are no objects to make one from.
        cgroup: folder of cgroup2 in which the node's calls get one; None finds it.
        elsewhere: the scene of another node, by name, so that stories go on there; raises
            BadInput if nobody knows it. None where only this node's maps are there.
    """
    asked = [q for q in questions if not is_beyond_programs(q, scene)]
    ours = [q for q in asked if scene.is_node(q.source)]
    programs = {program_of(q, scene) for q in asked}
    with ExitStack() as undo:
        scratch = Scratch(bundle, scene, programs)
        undo.callback(scratch.close)
        caller = undo.enter_context(calling(scratch, bundle, cgroup)) if ours else None
        asker = Asker(scratch, PacketTrials(scratch), caller)
        hops = Hops(bundle, elsewhere, copies(scene, len(questions)))
        undo.callback(hops.close)
        for question in questions:
            yield answer(asker, question, world, hops)


def is_beyond_programs(question: Question, scene: Scene) -> bool:
    """Whether no program sees the flow begin: the kernel lets none see SCTP's connect()."""
    return question.protocol is Protocol.SCTP and scene.is_node(question.source)


def program_of(question: Question, scene: Scene) -> str:
    """The program that a question is put to."""
    if scene.is_node(question.source):
        return calls.program_for(question)
    return trials.program_for(question, scene.in_cluster(question.source))


def answer(asker: Asker, question: Question, world: World | None, hops: Hops) -> Explained:
    """One question to the programs, and the reference model's word on it."""
    scene = asker.scene
    if is_beyond_programs(question, scene):
        why = "SCTP has no hook at connect(), so the node's own SCTP reaches no Service"
        step = f"no program is asked: {why}"
        return Explained(question, Answer(PASS, (), False, "", why, (step,)))
    needs = scene.needs(question)
    with asker.changed(needs):
        finding = asker.ask(question)
        steps = (*story.steps(finding, scene), *hops.steps(finding, scene))
        return _explained(finding, scene, world and _with(world, needs), steps)


def _explained(
    finding: Finding, scene: Scene, world: World | None, steps: tuple[str, ...]
) -> Explained:
    ours = Answer(
        finding.verdict,
        story.backends(finding),
        masquerade(finding, scene),
        story.service(finding, scene),
        story.reason(finding, scene),
        steps,
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


def masquerade(finding: Finding, scene: Scene) -> bool:
    """Whether the Service translation hides the sender behind an address of this node.

    Backends that are the node itself see the sender whatever the rules say
    (docs/decisions/0010), so where all are, what the rules say stands in the tables alone.

    A socket's partner is chosen before it has a source, which the kernel then takes from this
    node's addresses. So what the rules ask of the node's own flows is so; all but a pod's
    host port, and a ClusterIP asked from an address of the cluster ranges: these they leave alone.
    """
    if finding.verdict != FORWARD or finding.frontend is None:
        return False
    if finding.from_node:
        return _kind_hides(finding, scene)
    ends_here = all(scene.is_node(one.row.address) for one in finding.reached)
    return _is_marked(finding, scene) if ends_here else finding.masquerade


def _kind_hides(finding: Finding, scene: Scene) -> bool:
    """Whether the kind of the frontend lets this sender be hidden."""
    assert finding.frontend is not None
    kind = finding.frontend[1].kind
    if kind == FrontendKind.HOST_PORT:
        return False
    if kind != FrontendKind.CLUSTER_IP or scene.has(NodeFlag.MASQUERADE_ALL):
        return True
    return not scene.in_cluster(finding.question.source)


def _is_marked(finding: Finding, scene: Scene) -> bool:
    """Whether the tables say that packets like this one are hidden."""
    assert finding.frontend is not None
    assert finding.service is not None
    if finding.frontend[1].kind == FrontendKind.CLUSTER_IP:
        return _kind_hides(finding, scene)
    goes_direct = not scene.in_cluster(finding.question.source) and scene.has(NodeFlag.DIRECT)
    shown = goes_direct or finding.service.flags & ServiceFlag.EXTERNAL_LOCAL
    return not shown and _kind_hides(finding, scene)


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
