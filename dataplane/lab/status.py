# SPDX-License-Identifier: Apache-2.0
"""A lab as it is now: what it holds, and whether it is well. Must not change anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dataplane.lab import wire
from dataplane.lab.cluster import Lab
from dataplane.lab.world import pod_name
from dataplane.model.objects import Service, ServiceType


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
            "services": [_service(one) for one in shown_services(lab.world.services)],
            "notes": list(lab.assigned.notes),
            "problems": list(self.problems),
            "ok": self.ok,
        }


def look(lab: Lab) -> Status:
    """How a lab is now."""
    agents = {node.name: wire.answers(lab.files, node.name) for node in lab.world.nodes}
    running = wire.stand_ins(lab.files)
    servers = {
        pod_name(pod): not lab.world.stand_ins[pod_name(pod)] or pod_name(pod) in running
        for pod in lab.runnable()
    }
    return Status(lab, agents, servers, problems(lab))


def problems(lab: Lab) -> tuple[str, ...]:
    """What is not served, by the control plane's words and the agents'."""
    found = [str(problem) for problem in lab.assigned.problems]
    for node in lab.world.nodes:
        found += wire.agent_problems(lab.files, node.name)
    return tuple(dict.fromkeys(found))


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


def shown_services(services: Iterable[Service]) -> list[Service]:
    """Services that have something to show, by name."""
    shown = (s for s in services if s.type is not ServiceType.EXTERNAL_NAME)
    return sorted(shown, key=lambda s: (s.namespace, s.name))
