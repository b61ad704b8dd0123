# SPDX-License-Identifier: Apache-2.0
"""How a lab, its status and what its check found look as tables. Must not do I/O but print."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

from cli.render import Column, View, show, socket_text
from dataplane.lab import status
from dataplane.lab.check import Report
from dataplane.lab.cluster import Lab
from dataplane.lab.judge import Verdict
from dataplane.lab.status import Status
from dataplane.lab.world import pod_name
from dataplane.model.objects import Node, Pod, Service


def _words(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def tell(lab: Lab) -> None:
    """Notes and problems, on stderr."""
    for word in lab.assigned.notes:
        print(f"note: {word}", file=sys.stderr)
    for word in status.problems(lab):
        print(f"not served: {word}", file=sys.stderr)


def show_status(found: Status, out: TextIO | None = None) -> None:
    """Nodes, pods and Services of a lab."""
    out = out or sys.stdout
    lab = found.lab
    print(f"lab {lab.files.name}: mode {lab.mode}, family {lab.family}\n", file=out)
    show(_nodes(found), lab.world.nodes, "table", out)
    print(file=out)
    show(_pods(found), sorted(lab.world.pods, key=pod_name), "table", out)
    print(file=out)
    show(_SERVICES, status.shown_services(lab.world.services), "table", out)


def show_report(report: Report, out: TextIO | None = None) -> None:
    """What a check found, a row each."""
    show(_ROWS, report.verdicts, "table", out)


def _nodes(found: Status) -> View:
    def agent(node: Node) -> str:
        return "ready" if found.agents[node.name] else "does not answer"

    return View(
        columns=(
            Column("NODE", lambda n: n.name),
            Column("ADDRESSES", lambda n: _words(n.addresses)),
            Column("POD RANGES", lambda n: _words(n.pod_cidrs)),
            Column("AGENT", agent),
        ),
        nothing="no node",
    )


def _pods(found: Status) -> View:
    def ports(pod: Pod) -> str:
        served = found.lab.world.stand_ins[pod_name(pod)]
        return _words(f"{number}/{protocol.name}" for protocol, number in served)

    def server(pod: Pod) -> str:
        return "runs" if found.servers.get(pod_name(pod)) else "does not run"

    return View(
        columns=(
            Column("POD", pod_name),
            Column("NODE", lambda p: p.node_name),
            Column("ADDRESSES", lambda p: _words(p.addresses)),
            Column("PORTS", ports),
            Column("SERVER", server),
        ),
        nothing="no pod",
    )


def _ports(service: Service) -> str:
    return _words(
        f"{port.port}{f':{port.node_port}' if port.node_port else ''}/{port.protocol.name}"
        for port in service.ports
    )


_SERVICES = View(
    columns=(
        Column("SERVICE", lambda s: f"{s.namespace}/{s.name}"),
        Column("TYPE", lambda s: s.type.value),
        Column("CLUSTER-IP", lambda s: _words(s.cluster_ips) or "none"),
        Column("EXTERNAL", lambda s: _words((*s.load_balancer_ips, *s.external_ips))),
        Column("PORTS", _ports),
    ),
    nothing="no Service",
)


def _source(verdict: Verdict) -> str:
    source = verdict.row.source
    return source.name if source.name == source.node else f"{source.name} at {source.node}"


def _what(verdict: Verdict) -> str:
    row = verdict.row
    return f"{row.namespace}/{row.name}" + (" (pod)" if row.type == "Pod" else "")


def _outcome(verdict: Verdict) -> str:
    if verdict.ok:
        return f"ok: {verdict.note}" if verdict.note else "ok"
    return "FAILED: " + "; ".join(verdict.why)


_ROWS = View(
    columns=(
        Column("SERVICE", _what),
        Column("PORT", lambda v: f"{v.row.port}/{v.row.protocol.name}"),
        Column("FROM", _source),
        Column("TO", lambda v: socket_text(v.row.address, v.row.number)),
        Column("ANSWERED", lambda v: f"{v.answered}/{v.row.requests}", number=True),
        Column("BY", lambda v: _words(f"{pod} {n}" for pod, n in sorted(v.by.items()))),
        Column("CLIENT", lambda v: _words(v.clients)),
        Column("", _outcome),
    ),
    nothing="no row: nothing in this lab can be asked",
)
