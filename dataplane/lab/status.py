# SPDX-License-Identifier: Apache-2.0
"""A lab in words and tables: what it holds, whether it is well, what a check found.

Must not change anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from dataplane.lab import wire
from dataplane.lab.check import Report
from dataplane.lab.cluster import Lab
from dataplane.lab.expect import pod_name
from dataplane.lab.judge import Verdict, endpoint_text
from dataplane.model.objects import Service, ServiceType

_PIPE_WIDTH = 10_000


@dataclass(frozen=True, slots=True)
class Status:
    """A lab as it is now. agents: node to whether it answers; servers: pod to whether it runs."""

    lab: Lab
    agents: dict[str, bool]
    servers: dict[str, bool]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return all(self.agents.values()) and all(self.servers.values())

    def as_json(self) -> dict[str, Any]:
        """What `lab status -o json` prints."""
        lab = self.lab
        return {
            "name": lab.files.name,
            "mode": lab.mode,
            "family": lab.family,
            "nodes": [
                {
                    "name": node.name,
                    "addresses": [str(a) for a in node.addresses],
                    "podCIDRs": [str(c) for c in node.pod_cidrs],
                    "agent": self.agents[node.name],
                    "config": str(lab.files.node(node.name).config),
                    "log": str(lab.files.node(node.name).log),
                }
                for node in lab.world.nodes
            ],
            "pods": [
                {
                    "namespace": pod.namespace,
                    "name": pod.name,
                    "node": pod.node_name,
                    "addresses": [str(a) for a in pod.addresses],
                    "ports": [
                        f"{number}/{protocol.name}"
                        for protocol, number in lab.world.stand_ins[pod_name(pod)]
                    ],
                    "runs": self.servers.get(pod_name(pod), False),
                }
                for pod in sorted(lab.world.pods, key=pod_name)
            ],
            "services": [_service(one) for one in _sorted(lab.world.services)],
            "notes": list(lab.assigned.notes),
            "problems": list(self.problems),
            "ok": self.ok,
        }


def look(lab: Lab) -> Status:
    """How a lab is now."""
    agents = {node.name: wire.answers(lab.files, node.name) for node in lab.world.nodes}
    servers = {
        pod_name(pod): not lab.world.stand_ins[pod_name(pod)]
        or bool(wire.stand_ins(lab.files, wire.key_of(pod), pod.host_network))
        for pod in lab.runnable()
    }
    return Status(lab, agents, servers, problems(lab))


def problems(lab: Lab) -> tuple[str, ...]:
    """What is not served, by the control plane's words and the agents'."""
    found = [str(problem) for problem in lab.assigned.problems]
    for node in lab.world.nodes:
        found += wire.agent_problems(lab.files, node.name)
    return tuple(dict.fromkeys(found))


def tell(lab: Lab, out: TextIO) -> None:
    """Notes and problems, for people."""
    for word in lab.assigned.notes:
        out.write(f"note: {word}\n")
    for word in problems(lab):
        out.write(f"not served: {word}\n")


def show(found: Status, out: TextIO) -> None:
    """The status as tables."""
    lab = found.lab
    out.write(f"lab {lab.files.name}: mode {lab.mode}, family {lab.family}\n\n")
    nodes = _table("NODE", "ADDRESSES", "POD RANGES", "AGENT")
    for node in lab.world.nodes:
        nodes.add_row(
            node.name,
            _words(node.addresses),
            _words(node.pod_cidrs),
            "ready" if found.agents[node.name] else "does not answer",
        )
    pods = _table("POD", "NODE", "ADDRESSES", "PORTS", "SERVER")
    for pod in sorted(lab.world.pods, key=pod_name):
        ports = lab.world.stand_ins[pod_name(pod)]
        pods.add_row(
            pod_name(pod),
            pod.node_name or "none",
            _words(pod.addresses),
            _words(f"{number}/{protocol.name}" for protocol, number in ports),
            "runs" if found.servers.get(pod_name(pod)) else "does not run",
        )
    services = _table("SERVICE", "TYPE", "CLUSTER-IP", "EXTERNAL", "PORTS")
    for one in _sorted(lab.world.services):
        services.add_row(
            f"{one.namespace}/{one.name}",
            one.type.value,
            _words(one.cluster_ips) or "none",
            _words((*one.load_balancer_ips, *one.external_ips)),
            _words(_ports(one)),
        )
    for table in (nodes, pods, services):
        _print(table, out)
        out.write("\n")
    tell(lab, out)


def show_report(report: Report, out: TextIO) -> None:
    """What a check found: a row each, those that are not fine with why."""
    table = _table("SERVICE", "PORT", "FROM", "TO", "ANSWERED", "BY", "CLIENT", "")
    for verdict in report.verdicts:
        table.add_row(*_cells(verdict))
    _print(table, out)


def _cells(verdict: Verdict) -> Iterable[str]:
    row = verdict.row
    source = row.source
    yield f"{row.namespace}/{row.name}" + (" (pod)" if row.type == "Pod" else "")
    yield f"{row.port}/{row.protocol.name}"
    yield source.name if source.name == source.node else f"{source.name} at {source.node}"
    yield endpoint_text(row.address, row.number)
    yield f"{verdict.answered}/{row.requests}"
    yield ", ".join(f"{pod} {count}" for pod, count in sorted(verdict.by.items()))
    yield ", ".join(verdict.clients)
    yield "ok" + (f": {verdict.note}" if verdict.note else "") if verdict.ok else "FAILED: " + (
        "; ".join(verdict.why)
    )


def _service(service: Service) -> dict[str, Any]:
    return {
        "namespace": service.namespace,
        "name": service.name,
        "type": service.type.value,
        "clusterIPs": [str(a) for a in service.cluster_ips],
        "loadBalancerIPs": [str(a) for a in service.load_balancer_ips],
        "externalIPs": [str(a) for a in service.external_ips],
        "ports": [
            {
                "name": port.name,
                "protocol": port.protocol.name,
                "port": port.port,
                "nodePort": port.node_port,
            }
            for port in service.ports
        ],
        "healthCheckNodePort": service.health_check_node_port,
    }


def _ports(service: Service) -> Iterable[str]:
    for port in service.ports:
        at = f":{port.node_port}" if port.node_port else ""
        yield f"{port.port}{at}/{port.protocol.name}"


def _sorted(services: Iterable[Service]) -> list[Service]:
    shown = (s for s in services if s.type is not ServiceType.EXTERNAL_NAME)
    return sorted(shown, key=lambda s: (s.namespace, s.name))


def _words(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _print(table: Table, out: TextIO) -> None:
    console = Console(file=out, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)
