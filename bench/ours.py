# SPDX-License-Identifier: Apache-2.0
"""Our side of a pair: pods of a lab, wired by its agents, with the load tool in them.

The lab is brought up by the command that users have. Pods' stand-in servers are stopped where
the load tool's own server needs their port.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import yaml

from bench.load import Target
from dataplane.lab.state import LabFiles, processes
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import IPAddress
from tests.cluster.net import inside
from tests.cluster.podlane import PODLANE
from tests.cluster.services import NAMESPACE, PORT, cluster_ip


@dataclass(frozen=True, slots=True)
class Lab:
    """A running lab."""

    files: LabFiles

    def place(self, pod: str) -> Path:
        """The network namespace of a pod."""
        return self.files.pod_netns(NAMESPACE, pod)

    def address(self, pod: str) -> IPAddress:
        """The pod's IPv4 address."""
        for info in self._eth0(pod)["addr_info"]:
            if info["family"] == "inet":
                return IPv4Address(info["local"])
        raise BadEnvironment(f"pod {pod}", "it has no IPv4 address", "see `podlane lab status`")

    def mtu(self, pod: str) -> int:
        """The MTU of the pod's eth0."""
        return int(self._eth0(pod)["mtu"])

    def target(self, client: str, address: IPAddress, span: int = 1) -> Target:
        """A client in a pod, at the load server's port."""
        return Target(self.place(client), address, PORT, span)

    def stop_stand_in(self, pod: str) -> None:
        """Frees the pod's ports: its stand-in is the only process in it."""
        for pid in processes(self.place(pod)):
            os.kill(pid, signal.SIGTERM)

    def _eth0(self, pod: str) -> dict[str, Any]:
        command = inside(self.place(pod), "ip", "-json", "address", "show", "dev", "eth0")
        found: list[dict[str, Any]] = json.loads(subprocess.check_output(command))
        return found[0]


def podlane(*words: str) -> None:
    """Runs our command; what it says is shown only if it fails."""
    done = subprocess.run(
        [PODLANE, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise BadEnvironment(f"podlane {' '.join(words)}", done.stdout.strip()[-2000:])


@contextmanager
def lab(objects: Sequence[dict[str, Any]], nodes: int, mode: str = "vxlan") -> Iterator[Lab]:
    """A lab of its own name with these objects, taken down again."""
    name = f"bench-{secrets.token_hex(3)}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as manifest:
        yaml.dump_all(objects, manifest, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper))
        manifest.flush()
        try:
            podlane(
                "lab", "up", "-f", manifest.name, "--name", name, "--nodes", str(nodes),
                "--mode", mode, "--family", "ipv4",
            )  # fmt: skip
            yield Lab(LabFiles(name))
        finally:
            podlane("lab", "down", "--name", name)


def pod(name: str, node: str) -> dict[str, Any]:
    """A pod on a node of the lab."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
    }


def service(number: int, app: str) -> dict[str, Any]:
    """The number-th ClusterIP Service, in front of the pod `app`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"service-{number}", "namespace": NAMESPACE},
        "spec": {
            "clusterIP": str(cluster_ip(number)),
            "selector": {"app": app},
            "ports": [{"port": PORT, "targetPort": PORT}],
        },
    }
