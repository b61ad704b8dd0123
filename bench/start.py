# SPDX-License-Identifier: Apache-2.0
"""What a start costs: compiling, loading a node from the bundle, and a start with nothing to do.

The bpffs is the bench's own, in a folder that is taken away again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Goal, Result
from dataplane.agent.config import DEFAULT_SIZES
from dataplane.kernel import compiler, loader
from tests.cluster.net import bpffs

ROUNDS = 5


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compiling() -> list[Result]:
    """Source to bundle: both families, verified, in the compiler's own process."""
    with tempfile.TemporaryDirectory() as folder:
        times = tuple(
            timed(lambda n=n: compiler.compile_bundle(Path(folder, f"{n}.bundle")))  # type: ignore[misc]
            for n in range(ROUNDS)
        )
    return [Result("compile", "s", times, (), Goal("ours", at_most=3.0))]


def loading() -> list[Result]:
    """Bundle to a node's pinned maps and programs, then the same again with all of it there."""
    fresh, again = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "podlane.bundle")
        compiler.compile_bundle(path)
        for n in range(ROUNDS):
            with bpffs(Path(folder, f"bpf{n}")) as pins:
                fresh.append(timed(lambda pins=pins: load(path, pins)))  # type: ignore[misc]
                again.append(timed(lambda pins=pins: load(path, pins)))  # type: ignore[misc]
    return [
        Result("load", "s, from the bundle", tuple(fresh), (), Goal("ours", at_most=0.2)),
        Result("load-again", "s, nothing to do", tuple(again), (), Goal("ours", at_most=0.1)),
    ]


def load(path: Path, pins: Path) -> None:
    """What a node's start does with its bundle, at the sizes that it has by default."""
    loader.load(path, pins, DEFAULT_SIZES).close()
