# SPDX-License-Identifier: Apache-2.0
"""The agent's sweep: silent flows are forgotten, and each pod's count of flows is made true.

A task of the agent's loop that does a few milliseconds at a time and lets the loop do
other work in between. However large the table, it takes at most a hundredth of a core:
after a round that cost a second of CPU it rests for a hundred. Must not decide which
flows are dead (core.expiry) nor bound a pod (the programs do, by the count written here).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dataplane.agent.log import log
from dataplane.agent.tables import Tables
from dataplane.kernel.bpf import BpfError
from dataplane.kernel.sweep import Sweeper
from dataplane.model.errors import PodlaneError
from dataplane.model.net import Family
from dataplane.model.rows import EndpointRow, FlowBudget, SweepRow, Table

BUDGETS = Table("endpoint_flows")
SWEEP = Table("sweep")
FLOWS = {family: Table("flows", family) for family in Family}
ENDPOINTS = {family: Table("endpoints", family) for family in Family}
ANY_ADDRESS = (IPv4Address, IPv6Address)
LEAST_REST = 10.0
_REST_TO_WORK = 100
# Within so many rests the next round will have been, also on a busy machine.
_OVERDUE = 4


@dataclass(frozen=True, slots=True)
class Round:
    """What one sweep of all families did; seconds of CPU."""

    entries: int
    deleted: int
    seconds: float

    @property
    def rest(self) -> float:
        """Seconds until the next one."""
        return max(LEAST_REST, self.seconds * _REST_TO_WORK)


class Sweeps:
    """Sweeps both families' flows, again and again.

    Args:
        flows: the maps `flows`, open for as long as this is used.
    """

    def __init__(self, flows: Mapping[Family, int], tables: Tables) -> None:
        self._sweepers = {family: Sweeper(fd, family) for family, fd in flows.items()}
        self._tables = tables

    async def run(self) -> None:
        """Sweep until cancelled; a kernel that refuses is told of once, and asked again."""
        rest, refused = LEAST_REST, ""
        while True:
            try:
                rest, refused = (await self.round()).rest, ""
            except (BpfError, PodlaneError) as error:
                if str(error) != refused:
                    log("sweep_failed", why=str(error))
                refused = str(error)
            await asyncio.sleep(rest)

    async def round(self) -> Round:
        """Go through all flows once, then write what each pod has."""
        before = self._budgets()
        seconds, entries, deleted = 0.0, 0, 0
        live: Counter[int] = Counter()
        for family, sweeper in self._sweepers.items():
            began = time.thread_time()
            steps = sweeper.sweep()
            swept = next(steps)
            for _ in steps:
                seconds += time.thread_time() - began
                await asyncio.sleep(0)
                began = time.thread_time()
            entries += swept.entries
            deleted += swept.deleted
            for address, row in self._tables.items(ENDPOINTS[family]):
                if isinstance(row, EndpointRow) and isinstance(address, ANY_ADDRESS):
                    live[row.id] += swept.live[address.packed]
            seconds += time.thread_time() - began
        self._put_budgets(live, before)
        done = Round(entries, deleted, seconds)
        until = time.monotonic_ns() + int(done.rest * _OVERDUE * 10**9)
        self._tables.put(SWEEP, {0: SweepRow(until)})
        return done

    def _budgets(self) -> dict[int, int]:
        # Two flows that close at once may have taken it below zero.
        return {
            place: row.live if row.live < 1 << 31 else row.live - (1 << 32)
            for place, row in self._tables.items(BUDGETS)
            if isinstance(place, int) and isinstance(row, FlowBudget)
        }

    def _put_budgets(self, live: Mapping[int, int], before: Mapping[int, int]) -> None:
        """The true number, and what the programs have added meanwhile."""
        now = self._budgets()
        true = {
            place: max(0, live.get(place, 0) + now.get(place, 0) - before.get(place, 0))
            for place in {*live, *now}
        }
        self._tables.put(
            BUDGETS,
            {place: FlowBudget(n) for place, n in true.items() if n != now.get(place, 0)},
        )
