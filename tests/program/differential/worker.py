# SPDX-License-Identifier: Apache-2.0
"""One process of the differential test on one CPU, and several of them. Must not print."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from dataplane.kernel.compiler import compile_bundle
from tests.program.differential.node import opened
from tests.program.differential.run import CHAIN, Outcome, run_chain
from tests.program.differential.shrink import shrink


@dataclass(frozen=True, slots=True)
class Order:
    """Chains to run; a process ends with its first difference, made small if that is wished."""

    bundle: Path
    seed: str
    chains: Sequence[int]
    cpu: int = 0
    shrinks: bool = True


def chains_for(packets: int) -> range:
    """As many chains as so many packets need."""
    return range(-(-packets // CHAIN))


def compare(order: Order, workers: int) -> Outcome:
    """A process a CPU, the chains shared out."""
    cpus = sorted(os.sched_getaffinity(0))[: max(1, min(workers, len(order.chains)))]
    compile_bundle(order.bundle)
    orders = [
        replace(order, cpu=cpu, chains=order.chains[place :: len(cpus)])
        for place, cpu in enumerate(cpus)
    ]
    total = Outcome()
    with ProcessPoolExecutor(len(cpus), get_context("spawn")) as pool:
        for outcome in pool.map(work, orders):
            total.add(outcome)
    return total


def work(order: Order) -> Outcome:
    """One process's share."""
    os.sched_setaffinity(0, {order.cpu})
    bundle, total = compile_bundle(order.bundle), Outcome()
    with (
        tempfile.TemporaryDirectory(prefix="podlane-differential-") as folder,
        opened(bundle, Path(folder)) as (sandbox, stage),
    ):
        for number in order.chains:
            seed = f"{order.seed}/{number}"
            outcome = sandbox.do(partial(run_chain, stage, seed))
            total.add(outcome)
            if outcome.differences:
                found = outcome.differences[0]
                if order.shrinks:
                    found = sandbox.do(partial(shrink, stage, found))
                total.differences[-1] = replace(found, chain=number)
                break
    return total
