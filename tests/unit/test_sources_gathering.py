# SPDX-License-Identifier: Apache-2.0
"""When changes are told: on a clock that stands still but for who waits, so to the millisecond."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Iterable
from itertools import pairwise

import pytest

from dataplane.model.objects import Node
from dataplane.sources.kubernetes import gathering
from dataplane.sources.kubernetes.follower import Changes
from dataplane.sources.kubernetes.gathering import Gathering
from dataplane.sources.kubernetes.resources import resources

NODES = next(kind for kind in resources("node1", service_cidrs=False) if kind.name == "nodes")


BEGIN = 100.0


class _Selector(selectors.SelectSelector):
    """Instead of waiting the clock is put forward."""

    now = BEGIN - 1.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            self.now += timeout or 0.0
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._waits = _Selector()
        super().__init__(self._waits)

    def time(self) -> float:
        return self._waits.now


def told(changes: Iterable[tuple[float, str]]) -> list[tuple[float, int]]:
    """When batches came and how many objects were in them, if these Nodes change at these times."""
    batches: list[tuple[float, int]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        gathers = Gathering("server", [NODES], loop)
        gathers.complete(NODES)

        async def take() -> None:
            while True:
                await gathers.settled()
                batches.append((round(loop.time(), 4), len(gathers.take().upserts)))

        taking = asyncio.create_task(take())
        last = BEGIN
        for at, name in changes:
            last = BEGIN + at
            node = Node(name)
            loop.call_at(last, gathers.changed, NODES, Changes({node.key: node}))
        await asyncio.sleep(last + 2.0 - BEGIN)
        taking.cancel()

    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(run())
    assert batches.pop(0) == (BEGIN - 1.0, 0)  # synced
    return [(round(at - BEGIN, 4), count) for at, count in batches]


def test_the_first_of_a_thousand_goes_at_once_and_the_rest_as_one() -> None:
    found = told((n / 10_000, f"n{n}") for n in range(1000))
    assert found == [(0.0, 1), (pytest.approx(0.0999 + gathering.BURST_SECONDS), 999)]


def test_a_few_changes_close_together_wait_for_no_burst() -> None:
    found = told([(0.0, "a"), (0.001, "b"), (0.002, "c")])
    assert found == [(0.0, 1), (pytest.approx(0.002 + gathering.FEW_SECONDS), 2)]


def test_changes_that_are_apart_go_at_once_each() -> None:
    assert told([(0.0, "a"), (0.1, "b"), (0.2, "c")]) == [(0.0, 1), (0.1, 1), (0.2, 1)]


def test_a_burst_that_does_not_end_is_told_all_the_same() -> None:
    found = told((n / 100, f"n{n}") for n in range(300))
    waits = [b[0] - a[0] for a, b in pairwise(found)]
    assert max(waits) <= gathering.IMPATIENCE_SECONDS + 0.05
    assert sum(count for _, count in found) == 300


def test_an_object_that_changes_ten_times_is_told_as_it_is_in_the_end() -> None:
    assert [count for _, count in told((n / 1000, "same") for n in range(10))] == [1, 1]
