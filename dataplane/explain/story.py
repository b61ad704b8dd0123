# SPDX-License-Identifier: Apache-2.0
"""A finding in words: the rule's name, and the packet's way in steps with the entries used.

Pure. Must not know more than the finding and the scene: what is said here was seen.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataplane.abi.layout import abi
from dataplane.explain.ask import Finding, Member
from dataplane.explain.questions import place
from dataplane.explain.scene import MADE_UP, Scene
from dataplane.explain.trials import DROP, FORWARD, PASS, REJECT, Trial
from dataplane.model.constants import BackendFlag, FrontendKind, ServiceFlag
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.rows import BackendRow, BackendSet

_LISTED = 12  # backends that a step names before it counts
_POLICY = {
    FrontendKind.CLUSTER_IP: ("internalTrafficPolicy", ServiceFlag.INTERNAL_LOCAL),
    FrontendKind.NODE_PORT: ("externalTrafficPolicy", ServiceFlag.EXTERNAL_LOCAL),
    FrontendKind.LOAD_BALANCER: ("externalTrafficPolicy", ServiceFlag.EXTERNAL_LOCAL),
    FrontendKind.EXTERNAL_IP: ("externalTrafficPolicy", ServiceFlag.EXTERNAL_LOCAL),
}


def service(finding: Finding, scene: Scene) -> str:
    """namespace/name:port of the Service port that has the frontend; empty for none."""
    return scene.service(finding.frontend[1].service_id) if finding.frontend else ""


def backends(finding: Finding) -> tuple[str, ...]:
    """All that may be picked, sorted."""
    found = sorted({(m.row.address, m.row.port) for m in finding.reached})
    return tuple(place(*one) for one in found)


def reason(finding: Finding, scene: Scene) -> str:
    """The rule that decided, in words."""
    said = finding.first.said
    if finding.verdict in (REJECT, DROP):
        return drop_text(said.reason)
    if finding.verdict == PASS:
        if finding.frontend is None:
            return "no Service has this address and port"
        return "left to the node's own stack"
    return f"{_policy(finding)}; {_source_rule(finding)}"


def _policy(finding: Finding) -> str:
    kind = _kind(finding)
    name, local = _POLICY.get(FrontendKind(kind), ("", ServiceFlag(0)))
    bound = bool(finding.service and local and finding.service.flags & local)
    title = _kind_text(kind)
    if finding.chosen == "local":
        return f"{title}, {name} Local: this node's endpoints"
    if bound:
        return f"{title}, {name} Local binds outside senders only: all endpoints"
    return f"{title}, {name} Cluster: all endpoints" if name else f"{title}: its pod"


def _source_rule(finding: Finding) -> str:
    if finding.from_node:
        return "the kernel gives the socket an address of this node"
    if not finding.masquerade:
        return "the sender keeps its address"
    if all(m.row.address == finding.question.source for m in finding.members):
        return "a pod that reaches itself is seen under the node's address"
    return "the sender is seen under the node's address"


def steps(finding: Finding, scene: Scene) -> tuple[str, ...]:
    """The packet's way, a sentence a step."""
    return tuple(_steps(finding, scene))


def _steps(finding: Finding, scene: Scene) -> Iterator[str]:
    yield _enters(finding, scene)
    yield _frontend(finding, scene)
    if finding.service is not None:
        yield _sets(finding)
    if finding.verdict == FORWARD:
        yield from _forward(finding, scene)
    elif finding.verdict in (REJECT, DROP):
        yield _refusal(finding)
    elif finding.from_node:
        yield "verdict: the call goes on as it is"
    else:
        yield from _hidden_from_world(finding)
        yield from _way(finding.first, scene, finding.question.address)


def _enters(finding: Finding, scene: Scene) -> str:
    asked = finding.question
    if finding.from_node:
        call = "connect()" if asked.protocol is Protocol.TCP else "sendto()"
        to = f"{place(asked.address, asked.port)}/{asked.protocol.name}"
        return f"{finding.program}: a process of node {scene.node} at {asked.source} calls {call} to {to}"
    packet = f"{place(asked.source, finding.first.number)} > {place(asked.address, asked.port)}"
    packet += f"/{asked.protocol.name}"
    if finding.program.startswith("from_pod"):
        pod = scene.pods.get(asked.source)
        who = f"leaves pod {pod}" if pod else "leaves a pod"
        who += f" of node {scene.node}"
    else:
        who = f"enters node {scene.node} from outside by its uplink"
    return f"{finding.program}: {packet} {who}"


def _frontend(finding: Finding, scene: Scene) -> str:
    asked = finding.question
    wanted = f"{place(asked.address, asked.port)}/{asked.protocol.name}"
    if finding.frontend is None:
        return f"frontends: no entry for {wanted}"
    key, row = finding.frontend
    if not key.protocol:
        return f"frontends: {key.address} is a Service's address, but no port {wanted} is there"
    kind = _kind_text(row.kind)
    return (
        f"frontends: {wanted} is {kind} of {service(finding, scene)} (Service id {row.service_id})"
    )


def _sets(finding: Finding) -> str:
    row = finding.service
    assert row is not None
    cluster, local = BackendSet.parse(row.cluster), BackendSet.parse(row.local)
    words = f"services: {_count(cluster.count)} in its Cluster set"
    flags = [_flag_text(flag) for flag in ServiceFlag if row.flags & flag]
    if row.flags & (ServiceFlag.INTERNAL_LOCAL | ServiceFlag.EXTERNAL_LOCAL):
        words += f", {_count(local.count)} in its Local set (this node's)"
    return words + (f"; {', '.join(flags)}" if flags else "")


def _forward(finding: Finding, scene: Scene) -> Iterator[str]:
    chosen = BackendSet.parse(getattr(finding.service, finding.chosen))
    span = f"{chosen.base} to {chosen.base + chosen.count - 1}" if chosen.count > 1 else chosen.base
    yield (
        f"slots: the {finding.chosen.capitalize()} set is read, {_count(chosen.count)} at"
        f" {span} (epoch {chosen.epoch})"
    )
    named = [_member(m, scene) for m in finding.members[:_LISTED]]
    more = len(finding.members) - len(named)
    yield f"backends: {', '.join(named)}" + (f" and {more} more" if more else "")
    picked = finding.first.said.backend_id
    one = next(m for m in finding.members if m.id == picked)
    if finding.from_node:
        yield from _called(finding, one)
        return
    yield from _translation(finding, one)
    if scene.is_node(one.row.address):
        yield "the backend is this node itself: its stack sees the sender's own address"
    yield from _way(finding.first, scene, one.row.address)
    yield from _unlike(finding, one)


def _member(member: Member, scene: Scene) -> str:
    pod = scene.pods.get(member.row.address)
    where = "on this node" if member.row.flags & BackendFlag.LOCAL else "elsewhere"
    text = f"{place(member.row.address, member.row.port)} (id {member.id}, {where}"
    return text + (f", pod {pod})" if pod else ")")


def _translation(finding: Finding, one: Member) -> Iterator[str]:
    flow = finding.first.flow
    seen = finding.first.seen
    words = f"backend {one.id} is chosen for source port {finding.first.number}"
    if len(finding.members) > 1:
        words += "; other source ports choose among the same set"
    yield words
    if flow is None:
        return
    before = f"{place(flow.client, flow.client_port)} > {place(flow.frontend, flow.frontend_port)}"
    after = f"{place(seen.source, seen.source_port)} > {place(seen.target, seen.target_port)}"
    hidden = " (source is an address of this node)" if seen.source != flow.client else ""
    yield f"flows: remembered both ways; {before} becomes {after}{hidden}"


def arrival(
    finding: Finding, scene: Scene, came: str, backend: BackendRow | None, taken: bool
) -> Iterator[str]:
    """What another node does with a packet that was sent on to it.

    Args:
        finding: of that node; without members, since its own choice is not asked about.
        came: how it comes, and from whom.
        backend: the one chosen there, if the packet met a Service again.
        taken: whether the destination is only taken to be a pod there.
    """
    trial, asked = finding.first, finding.question
    before = f"{place(asked.source, trial.number)} > {place(asked.address, asked.port)}"
    yield f"{finding.program}: {before}/{asked.protocol.name} comes {came}"
    if taken:
        yield f"endpoints: nobody told of {asked.address}, so it is taken to be a pod there"
    if finding.frontend is not None:
        yield _frontend(finding, scene)
    elif number := trial.said.service_id:
        yield f"services: {scene.service(number)} (Service id {number}), as it came to that node"
    if finding.service is not None:
        yield _sets(finding)
    if finding.verdict in (REJECT, DROP):
        yield _refusal(finding)
        return
    if backend is not None:
        yield f"backend {trial.said.backend_id} is chosen: {place(backend.address, backend.port)}"
    seen = trial.seen
    after = f"{place(seen.source, seen.source_port)} > {place(seen.target, seen.target_port)}"
    if after != before:
        yield f"flows: remembered both ways; {before} becomes {after}"
    yield from _way(trial, scene, seen.target)


def _way(trial: Trial, scene: Scene, to: IPAddress) -> Iterator[str]:
    said = trial.said
    if scene.endpoint(to) is not None:
        pod = scene.pods.get(to)
        yield f"endpoints: {to} is {f'pod {pod}' if pod else 'a pod'} of this node"
    elif (found := scene.route(to)) is not None:
        key, row = found
        yield f"routes: {key.address}/{key.prefix} is {abi(Family.V4).text('route_kind', row.kind)}"
        if to in scene.unmasked:
            yield (
                "routes: outside the cluster, so a pod is hidden behind the node's address on"
                " the way; that is not the Service's doing"
            )
    action = abi(Family.V4).text("action", said.action)
    hop = ""
    if said.hop is not None:
        node = scene.nodes.get(said.hop)
        hop = f" by {said.hop}" + (f" (node {node})" if node else "")
        if said.hop in MADE_UP.values():
            hop = ", and nobody told of which: the copy's next hop is made up"
    yield f"verdict: {action}{hop}"


def _called(finding: Finding, one: Member) -> Iterator[str]:
    seen = finding.first.seen
    words = f"backend {one.id} is chosen for this socket"
    yield words + ("; others choose among the same set" if len(finding.members) > 1 else "")
    yield f"the call goes to {place(seen.target, seen.target_port)} in the frontend's place"
    yield "no packet is translated; the node's own address that the kernel takes is the source"


def _unlike(finding: Finding, one: Member) -> Iterator[str]:
    """Backends towards which the sender is hidden and the one chosen is not, or the reverse."""
    hidden = {m.id for m in finding.hidden}
    for lost in finding.members:
        if lost.trial is None or lost.trial.verdict == FORWARD:
            continue
        why = drop_text(lost.trial.said.reason)
        yield f"backend {lost.id}, {place(lost.row.address, lost.row.port)}, is not reached: {why}"
    other = [m for m in finding.reached if m.trial and (m.id in hidden) != (one.id in hidden)]
    if other:
        names = ", ".join(place(m.row.address, m.row.port) for m in other[:_LISTED])
        words = "is not hidden" if one.id in hidden else "is hidden behind an address of this node"
        yield f"flows: towards {names} the sender {words}"


def _hidden_from_world(finding: Finding) -> Iterator[str]:
    flow, seen = finding.first.flow, finding.first.seen
    if flow is not None and seen.source != flow.client:
        hidden = place(seen.source, seen.source_port)
        yield f"flows: a pod is hidden from the world behind the node's address: it leaves as {hidden}"


def _refusal(finding: Finding) -> str:
    trial = finding.first
    text = drop_text(trial.said.reason)
    if finding.verdict == DROP:
        how = "; the call fails with EPERM" if finding.from_node else ""
        return f"verdict: dropped ({text}){how}"
    if finding.from_node:
        return f"verdict: {text}; the call fails with ECONNREFUSED"
    answer = trial.seen.answer or "an answer"
    return f"verdict: {text}; {answer} goes back to {place(trial.seen.target, trial.number)}"


def drop_text(number: int) -> str:
    """The words beside a drop reason in bpf/abi.h."""
    return abi(Family.V4).text("drop", number)


def _kind(finding: Finding) -> int:
    return finding.frontend[1].kind if finding.frontend else 0


def _kind_text(kind: int) -> str:
    return abi(Family.V4).text("frontend_kind", kind)


def _flag_text(flag: int) -> str:
    return abi(Family.V4).text("service_flag", int(flag))


def _count(number: int) -> str:
    return "1 backend" if number == 1 else f"{number} backends"
