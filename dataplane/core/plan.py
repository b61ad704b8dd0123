# SPDX-License-Identifier: Apache-2.0
"""What is to be written into the kernel's maps, in which order.

A plan is executed step by step by the one writer, and the next plan is asked for only
after it: core remembers what a plan has freed. A plan that was cut off by an error is
not continued; read the maps and adopt them anew. Must not know how a map is written.

`Delete` of a hash map's key takes the entry away; of an array's place, where the
kernel has no deletion, it writes zeros. `Grace` waits until every program that was
running has ended (an RCU grace period).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import (
    BackendRow,
    EndpointRow,
    FlowBudget,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    NodeRow,
    PeerRow,
    RouteKey,
    RouteRow,
    ServiceRow,
    SlotRow,
    SourceKey,
    SourceRow,
    SweepRow,
    Table,
    UplinkRow,
)

Key = int | IPAddress | RouteKey | FrontendKey | SourceKey | NameKey
Row = (
    NodeRow | UplinkRow | EndpointRow | RouteRow | PeerRow | FrontendRow | SourceRow | ServiceRow
    | SlotRow | BackendRow | NameRow | FlowBudget | SweepRow
)  # fmt: skip
State = Mapping[Table, Mapping[Key, Row]]

SERVICES = Table("services")
SLOTS = Table("slots")
NAMES = Table("names")
PEERS = Table("peers")
SERVICE_COUNTERS = Table("service_counters")
FRONTENDS = {family: Table("frontends", family) for family in Family}
SOURCE_RANGES = {family: Table("source_ranges", family) for family in Family}
BACKENDS = {family: Table("backends", family) for family in Family}
BACKEND_COUNTERS = {family: Table("backend_counters", family) for family in Family}
ROUTES = {family: Table("routes", family) for family in Family}


@dataclass(frozen=True, slots=True)
class Upsert:
    """Entries to be written, new or not."""

    table: Table
    rows: Sequence[tuple[Key, Row]]


@dataclass(frozen=True, slots=True)
class Delete:
    """Keys to be taken away, or places to be zeroed."""

    table: Table
    keys: Sequence[Key]


@dataclass(frozen=True, slots=True)
class Grace:
    """Nothing further is written until all programs now running have ended."""


Step = Upsert | Delete | Grace


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order; false if there is nothing to do."""

    steps: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def entries(self) -> int:
        """How many map entries it writes or deletes."""
        return sum(
            len(step.rows) if isinstance(step, Upsert) else len(step.keys)
            for step in self.steps
            if not isinstance(step, Grace)
        )


def diff(table: Table, desired: Mapping[Key, Row], actual: Mapping[Key, Row]) -> tuple[Step, ...]:
    """The steps that make a table that holds `actual` hold `desired`: writes, then deletions."""
    rows = [(key, row) for key, row in desired.items() if actual.get(key) != row]
    keys = [key for key in actual if key not in desired]
    steps: list[Step] = []
    if rows:
        steps.append(Upsert(table, rows))
    if keys:
        steps.append(Delete(table, keys))
    return tuple(steps)
