# SPDX-License-Identifier: Apache-2.0
"""`podlane lab demo`, what `make demo` runs: a lab from its birth to its end, told as it goes.

Brings a lab up, asks every Service, shows the datapath's own counters and drops, changes
a Service's backends under load, and takes all down, whatever happens.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from cli import drops, lab_views, services
from cli.render import PIPE_WIDTH, Column, View, show, socket_text
from dataplane.lab import change, check, inside, settle, state, up
from dataplane.lab.check import Report
from dataplane.lab.cluster import Lab, Wish
from dataplane.lab.judge import Verdict
from dataplane.lab.load import Load
from dataplane.lab.question import PROTOCOLS, Outcome
from dataplane.lab.state import LabFiles
from dataplane.lab.world import pod_name
from dataplane.model.net import IPAddress
from dataplane.model.objects import Pod, Service, ServicePort, ServiceType
from dataplane.sources.kinds import Workload
from dataplane.sources.selection import PodIndex

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "shop.yaml"
_NAME = "demo"
_STEADY_SECONDS = 1.0
_MORE_PODS = 2


class _Steps:
    """Steps as they go: a moving line on a terminal; when one ends, a line with its time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")
        self._words, self._began = "", 0.0

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end(failed=error is not None)
        self._status.stop()

    def say(self, words: str) -> None:
        """The step before has ended; this one begins."""
        self._end(failed=False)
        self._words, self._began = words, time.monotonic()
        self._status.update(words)

    def _end(self, failed: bool) -> None:
        if self._words:
            seconds = time.monotonic() - self._began
            mark = "failed" if failed else f"{seconds:5.2f} s"
            self._console.print(f"  {mark}  {self._words}", markup=False)
            self._words = ""


def run(name: str, wish: Wish) -> int:
    """The demo; 0 if all was answered as it should be and no request failed."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    files = LabFiles(name or _NAME)
    if not name:
        # The demo's own lab: one that was killed must not stand in the next one's way.
        with state.locked(files):
            state.destroy(files)
    what = ", ".join(Path(path).name for path in wish.paths)
    _title(console, f"podlane demo: {what}, {wish.nodes} nodes, {wish.mode}, {wish.family}")
    try:
        with _Steps(console) as steps:
            lab = up.up(files, wish, steps.say)
        lab_views.tell(lab)
        return 0 if _show(console, lab) else 1
    finally:
        with state.locked(files):
            state.destroy(files)
        console.print("\nThe lab is gone: its namespaces, links, mounts and processes.")


def _title(console: Console, words: str) -> None:
    console.print(f"\n[bold]{words}[/bold]" if console.is_terminal else f"\n{words}")


def _show(console: Console, lab: Lab) -> bool:
    _title(
        console, "Every Service asked from a pod of each node, from outside, and pods from nodes"
    )
    with _Steps(console) as steps:
        report = check.run(lab, steps.say)
    show(_ANSWERS, _answers(report), "table")
    failed = [verdict for verdict in report.verdicts if not verdict.ok]
    for verdict in failed[:10]:
        console.print(f"  FAILED {socket_text(verdict.row.address, verdict.row.number)}:"
                      f" {'; '.join(verdict.why)}", markup=False)  # fmt: skip
    console.print(f"  {len(report.verdicts) - len(failed)} of {len(report.verdicts)} rows are fine")
    _counters(console, lab)
    return _scale(console, lab) and report.ok


# ---- who answered whom ----


@dataclass(frozen=True, slots=True)
class _Answers:
    """All rows of a Service port, or of all pods asked from nodes, in one."""

    what: str
    type: str
    requests: int
    answered: int
    by: dict[str, int]


_ANSWERS = View(
    columns=(
        Column("  SERVICE", lambda a: f"  {a.what}"),
        Column("TYPE", lambda a: a.type),
        Column("ANSWERED", lambda a: f"{a.answered}/{a.requests}", number=True),
        Column("BY", lambda a: ", ".join(f"{pod} {n}" for pod, n in sorted(a.by.items()))),
    ),
    nothing="nothing in these manifests can be asked",
)


def _answers(report: Report) -> list[_Answers]:
    asked: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in report.verdicts:
        row = verdict.row
        if row.outcome is not Outcome.ANSWERED:
            continue
        what = f"{row.namespace}/{row.name}:{row.port}/{row.protocol.name}"
        key = ("pods, from each node", "Pod") if row.type == "Pod" else (what, row.type)
        asked.setdefault(key, []).append(verdict)
    found = []
    for (what, type_), verdicts in asked.items():
        by: Counter[str] = Counter()
        for verdict in verdicts:
            by.update(verdict.by)
        found.append(
            _Answers(
                what=what,
                type=type_,
                requests=sum(v.row.requests for v in verdicts),
                answered=sum(v.answered for v in verdicts),
                by={} if type_ == "Pod" else dict(by),
            )
        )
    return found


# ---- the datapath's own words ----


def _counters(console: Console, lab: Lab) -> None:
    node = lab.world.nodes[0].name
    with settle.maps_of(lab, node) as maps:
        _title(console, f"{node}$ podlane services")
        show(services.VIEW, services.rows(maps), "table")
        _title(console, f"{node}$ podlane drops   (after a request to a port that no Service has)")
        _provoke(lab, node)
        show(drops.VIEW, drops.rows(maps), "table")


def _provoke(lab: Lab, node: str) -> None:
    """A drop with a name: a pod asks a ClusterIP at a port that its Service does not have."""
    sender = next((p for p in lab.runnable() if p.node_name == node and not p.host_network), None)
    addresses = [address for service in lab.world.services for address in service.cluster_ips]
    if sender is not None and addresses:
        place = lab.files.pod_netns(sender.namespace, sender.name)
        inside.run(
            place, [str(inside.STAND_IN), "client", "0"], f"drop tcp {addresses[0]} 9 1 500\n"
        )


# ---- a change under load ----


@dataclass(frozen=True, slots=True)
class _Subject:
    """A Service port and the workload behind it."""

    service: Service
    port: ServicePort
    workload: Workload

    @property
    def addresses(self) -> list[tuple[IPAddress, int]]:
        return [(address, self.port.port) for address in self.service.cluster_ips]


def _subject(lab: Lab) -> _Subject | None:
    """What can be scaled and asked: with the most pods, so that going down shows too."""
    found: list[_Subject] = []
    workloads = change.inputs(lab.files).workloads
    for service in sorted(lab.world.services, key=lambda s: (s.namespace, s.name)):
        ports = [port for port in service.ports if port.protocol in PROTOCOLS]
        if not ports or service.internal_local or service.type is ServiceType.HEADLESS:
            continue
        found += [
            _Subject(service, ports[0], workload)
            for workload in workloads
            if workload.kind == "Deployment"
            and workload.replicas
            and PodIndex([workload.template]).select(service)
        ]
    return max(found, key=lambda subject: subject.workload.replicas, default=None)


def _senders(lab: Lab, subject: _Subject) -> list[Pod]:
    """A pod of each node that no change to the subject touches."""
    found: dict[str, Pod] = {}
    behind = {pod_name(pod) for pod in PodIndex(lab.world.pods).select(subject.service)}
    for pod in sorted(lab.runnable(), key=pod_name):
        if not pod.host_network and pod_name(pod) not in behind:
            found.setdefault(pod.node_name, pod)
    return list(found.values())


def _prefixed(prefix: str, say: change.Say) -> change.Say:
    return lambda words: say(prefix + words)


def _scale(console: Console, lab: Lab) -> bool:
    subject = _subject(lab)
    senders = _senders(lab, subject) if subject else []
    if subject is None or not senders:
        _title(console, "No Deployment of these manifests is behind a Service that others can ask")
        return True
    workload, service = subject.workload, subject.service
    more = workload.replicas + _MORE_PODS
    stations = (more, 1, workload.replicas) if workload.replicas > 1 else (more, 1)
    _title(
        console,
        f"{workload.namespace}/{workload.name} scaled to {', to '.join(map(str, stations))},"
        f" while pods of {len(senders)} nodes ask {service.namespace}/{service.name}",
    )
    places = [lab.files.pod_netns(pod.namespace, pod.name) for pod in senders]
    load = Load(places, subject.port.protocol, subject.addresses)
    with _Steps(console) as steps:
        try:
            for replicas in stations:
                time.sleep(_STEADY_SECONDS)
                words = f"{replicas} pod{'s' * (replicas > 1)}: "
                change.scale(lab.files, workload, replicas, _prefixed(words, steps.say))
            time.sleep(_STEADY_SECONDS)
        finally:
            outcome = load.stop()
    answered = ", ".join(f"{pod} {count}" for pod, count in sorted(outcome.by.items()))
    failed = sum(outcome.failures.values())
    console.print(f"  {outcome.requests} requests, {failed} failed", markup=False)
    console.print(f"  answered by {answered}", markup=False)
    for reason, count in outcome.failures.items():
        console.print(f"  FAILED {count} times: {reason}", markup=False)
    return failed == 0 and outcome.requests > 0
