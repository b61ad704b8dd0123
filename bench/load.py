# SPDX-License-Identifier: Apache-2.0
"""Runs build/podlane-bench-load (bench/load.c) inside network namespaces.

A place is the path of a network namespace. Must not make namespaces.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataplane.model.errors import BadEnvironment
from dataplane.model.net import IPAddress
from tests.cluster.net import inside
from tests.cluster.services import PORT

TOOL = Path(__file__).resolve().parent.parent / "build" / "podlane-bench-load"
CLIENT_CPU, SERVER_CPU = 0, 1


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client stands and what it talks to; span is the number of addresses in a row."""

    place: Path
    address: IPAddress
    port: int = PORT
    span: int = 1


@contextmanager
def server(place: Path, port: int = PORT) -> Iterator[None]:
    """A server at every address of this place, ready when the body starts.

    The place keeps no TIME_WAIT. Where many Services have one server, a client that reuses a port
    comes by the tuple of another Service, with timestamps of another clock, and a server that
    remembers the tuple refuses it now and then (PAWS): a loss that is no proxy's.
    """
    forget = inside(place, "sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0")
    subprocess.run(forget, check=True)
    command = inside(place, str(TOOL), "server", f"--port={port}", f"--cpu={SERVER_CPU}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise BadEnvironment(
                    f"load server in {place}", "it did not start", f"is port {port} free there?"
                )
            yield
        finally:
            process.terminate()


def run(mode: str, target: Target, seconds: float) -> dict[str, float]:
    """What one run of the client printed."""
    command = inside(
        target.place,
        str(TOOL),
        mode,
        f"--to={target.address}",
        f"--port={target.port}",
        f"--span={target.span}",
        f"--seconds={seconds}",
        f"--cpu={CLIENT_CPU}",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        raise BadEnvironment(
            f"{mode} from {target.place} to {target.address} port {target.port}",
            done.stderr.strip() or f"exit {done.returncode}",
        )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
