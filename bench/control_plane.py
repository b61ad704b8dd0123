# SPDX-License-Identifier: Apache-2.0
"""Objects to maps: 10,000 Services of 10 backends each, and then one that changes.

Each round is a process of its own (`python -m bench.control_plane`), so that its peak of
memory is its own; it loads a node's maps into a bpffs that is taken away again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from statistics import median

from bench.measure import Figures, Goal, Result, pick
from bench.start import ROUNDS, timed
from dataplane.agent import collector
from dataplane.agent.config import DEFAULT_SIZES
from dataplane.core.desired import Desired, Limits, Settings
from dataplane.kernel import compiler, loader
from dataplane.kernel.maps import Writer
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Object,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from tests.cluster.net import bpffs

SERVICES, BACKENDS, CHANGES = 10_000, 10, 200
FIRST_CLUSTER_IP, FIRST_POD = IPv4Address("10.96.0.1"), IPv4Address("10.128.0.1")
SETTINGS = Settings(
    node="node-0",
    families=(Family.V4,),
    addresses=(IPv4Address("192.0.2.1"),),
    service_cidrs=(ip_network("10.96.0.0/12"),),
)


def control_plane() -> list[Result]:
    """Seconds and peak memory of the whole load, milliseconds of one changed Service."""
    rounds = [_round() for _ in range(ROUNDS)]
    what = f"{SERVICES:,} Services of {BACKENDS} backends to maps"
    return [
        Result("control-plane", f"s, {what}", pick(rounds, "seconds"), (), _most(4.0)),
        Result("control-plane-memory", f"MB peak, {what}", pick(rounds, "mb"), (), _most(250.0)),
        Result("control-plane-change", "ms, one changed", pick(rounds, "change"), (), _most(10.0)),
    ]


def _most(bound: float) -> Goal:
    return Goal("ours", at_most=bound)


def _round() -> Figures:
    done = subprocess.run(
        [sys.executable, "-m", "bench.control_plane"], capture_output=True, text=True
    )
    if done.returncode:
        raise BadEnvironment("bench.control_plane", done.stderr.strip()[-2000:])
    figures: Figures = json.loads(done.stdout)
    return figures


def _objects() -> Iterator[Object]:
    for number in range(SERVICES):
        name, pods = f"service-{number}", FIRST_POD + number * BACKENDS
        yield Service(
            "bench", name, ServiceType.CLUSTER_IP, (FIRST_CLUSTER_IP + number,),
            (ServicePort("http", Protocol.TCP, 80),),
        )  # fmt: skip
        yield EndpointSlice(
            "bench", f"{name}-0", name, Family.V4, (SlicePort("http", Protocol.TCP, 8080),),
            tuple(SliceEndpoint(pods + i, node_name=f"node-{i}") for i in range(BACKENDS)),
        )  # fmt: skip


def _measure() -> Figures:
    objects = tuple(_objects())
    limits = Limits(*(DEFAULT_SIZES[n] for n in ("frontends", "services", "slots", "backends")))
    with tempfile.TemporaryDirectory() as folder:
        bundle = compiler.compile_bundle(Path(folder, "podlane.bundle"))
        with bpffs(Path(folder, "bpf")) as pins, loader.load(bundle, pins, DEFAULT_SIZES) as maps:
            desired, writer = Desired(SETTINGS, limits, {}), Writer(maps)

            def write(batch: Batch) -> None:
                desired.apply(batch)
                refused = writer.execute(desired.plan(time.monotonic()))
                if refused or desired.problems():
                    raise BadEnvironment("bench.control_plane", "not all found room in the maps")

            with collector.at_rest():
                seconds = timed(lambda: write(Batch(objects, (), True)))
            peak = _peak_kb() / 1024
            changes = [
                timed(lambda n=n: write(Batch((_smaller(objects[n]),))))  # type: ignore[misc]
                for n in range(1, 2 * CHANGES, 2)
            ]
    return {"seconds": seconds, "mb": peak, "change": median(changes) * 1000}


def _smaller(piece: Object) -> EndpointSlice:
    assert isinstance(piece, EndpointSlice)
    return replace(piece, endpoints=piece.endpoints[1:])


def _peak_kb() -> int:
    """This process's own peak; ru_maxrss would include its parent's before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise BadEnvironment("/proc/self/status", "has no VmHWM")


if __name__ == "__main__":
    json.dump(_measure(), sys.stdout)
