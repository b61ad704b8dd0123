# SPDX-License-Identifier: Apache-2.0
"""One process of the fuzzer on one CPU, and several of them at once. Must not print."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from dataplane.kernel.compiler import compile_bundle
from tests.program.fuzz.run import ROUND, Failure, Kinds, Tally, keep_shortest, run_round, shrink
from tests.program.fuzz.shapes import Shapes
from tests.program.fuzz.stage import opened

# Flows of a table that never evicts in one round, and of one that does all the time.
FLOWS = {True: 4 * ROUND, False: 256}


@dataclass(frozen=True, slots=True)
class Order:
    """Rounds to run; a process ends after so many failures."""

    bundle: Path
    seed: str
    rounds: Sequence[int]
    cpu: int = 0
    failures: int = 1


@dataclass(slots=True)
class Report:
    """What came of an order; `kinds` as of one round."""

    tally: Tally = field(default_factory=Counter)
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    kinds: Kinds = field(default_factory=dict)
    seconds: float = 0.0


def fuzz(order: Order, workers: int) -> list[Report]:
    """A process a CPU, the rounds shared out."""
    cpus = sorted(os.sched_getaffinity(0))[: max(1, min(workers, len(order.rounds)))]
    compile_bundle(order.bundle)
    with ProcessPoolExecutor(len(cpus), get_context("spawn")) as pool:
        orders = [
            replace(order, cpu=cpu, rounds=order.rounds[place :: len(cpus)])
            for place, cpu in enumerate(cpus)
        ]
        return list(pool.map(work, orders))


def work(order: Order) -> Report:
    """Even rounds, then odd ones, whose tables evict."""
    os.sched_setaffinity(0, {order.cpu})
    bundle, shapes, report = compile_bundle(order.bundle), Shapes(), Report()
    for roomy, flows in FLOWS.items():
        mine = [number for number in order.rounds if (number % 2 == 0) is roomy]
        if not mine or len(report.failures) >= order.failures:
            continue
        with (
            tempfile.TemporaryDirectory(prefix="podlane-fuzz-") as folder,
            opened(bundle, Path(folder), {"flows": flows}) as (sandbox, stage),
        ):
            for number in mine:
                began = time.monotonic()
                seed = f"{order.seed}/{number}"
                outcome = sandbox.do(partial(run_round, stage, shapes, seed, ROUND, roomy))
                report.seconds += time.monotonic() - began
                report.tally += outcome.tally
                keep_shortest(report.kinds, outcome.kinds)
                if outcome.failure is not None:
                    least = sandbox.do(partial(shrink, stage, outcome.failure, roomy))
                    report.failures.append((number, least))
                    if len(report.failures) >= order.failures:
                        break
    return report
