# SPDX-License-Identifier: Apache-2.0
"""Labs for tests: brought up and taken down by the command that users have.

Must not know how a lab is made; tests that break one do so from outside, as users could.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PODLANE = Path(sys.executable).with_name("podlane")
SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop.yaml"

TWO_WEB = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: web, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: other, labels: {app: other}}
spec:
  containers: [{name: other, image: other, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec:
  selector: {app: other}
  ports: [{port: 80, targetPort: 8080}]
"""
"""Two Services: one with two pods, open to outside; one with one pod."""


@dataclass(frozen=True, slots=True)
class TestLab:
    """A lab that is up."""

    __test__ = False
    name: str
    within: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return Path("/run/podlane-lab") / self.name

    def check(self) -> tuple[int, dict[str, Any]]:
        """`lab check -o json`: its status and what it printed."""
        done = podlane("lab", "check", "--name", self.name, "-o", "json", within=self.within)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def status(self) -> dict[str, Any]:
        done = podlane("lab", "status", "--name", self.name, "-o", "json", within=self.within)
        return dict(json.loads(done.stdout))

    def on_node(self, node: str, *command: str) -> str:
        done = podlane("lab", "node", "--name", self.name, node, "--", *command, within=self.within)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pods(self, prefix: str) -> list[dict[str, Any]]:
        """Pods of the status whose names begin so."""
        return [pod for pod in self.status()["pods"] if pod["name"].startswith(prefix)]


def podlane(
    *words: str, text: str = "", within: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command; it is echoed, so that a failure can be repeated by hand.

    within: a command that runs others, such as nsenter's with its options.
    """
    print("$", *within, "podlane", *words)
    done = subprocess.run(
        [*within, str(PODLANE), *words], input=text, capture_output=True, text=True, check=False
    )
    print(done.stderr, end="")
    return done


def new_name() -> str:
    """A lab's name that no other has."""
    return f"t{secrets.token_hex(4)}"


@contextlib.contextmanager
def lab(manifest: str, *options: str, within: tuple[str, ...] = ()) -> Iterator[TestLab]:
    """A lab from a manifest's text, gone afterwards."""
    name = new_name()
    try:
        done = podlane(
            "lab", "up", "--name", name, "-f", "-", *options, text=manifest, within=within
        )
        assert done.returncode == 0, done.stderr
        yield TestLab(name, within)
    finally:
        podlane("lab", "down", "--name", name, within=within)


def failed(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are not ok."""
    return [row for row in report["services"] if not row["ok"]]
