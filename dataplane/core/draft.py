# SPDX-License-Identifier: Apache-2.0
"""Collects the writes of one plan and puts them in the order that packets need.

New things come from the inside out (backends, slots, the service record, frontends),
old ones go from the outside in, so that whatever a packet follows is complete at each
step. Within a step the order does not matter. Must not decide what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dataplane.core.plan import (
    BACKEND_COUNTERS,
    BACKENDS,
    FRONTENDS,
    NAMES,
    SERVICE_COUNTERS,
    SERVICES,
    SLOTS,
    SOURCE_RANGES,
    Delete,
    Grace,
    Key,
    Plan,
    Row,
    Step,
    Upsert,
)
from dataplane.model.constants import NameKind
from dataplane.model.net import Family
from dataplane.model.rows import (
    BackendRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    ServiceRow,
    SlotRow,
    SourceKey,
    SourceRow,
    Table,
)

NO_SERVICE = ServiceRow(0, 0)
Writes = list[tuple[Key, Row]]


@dataclass(slots=True)
class _OfFamily:
    """Writes to the tables of one family."""

    cleared: list[int] = field(default_factory=list)
    better: Writes = field(default_factory=list)
    worse: Writes = field(default_factory=list)
    frontends: Writes = field(default_factory=list)
    frontends_gone: list[FrontendKey] = field(default_factory=list)
    cleared_ranges: list[SourceKey] = field(default_factory=list)
    ranges: Writes = field(default_factory=list)
    ranges_gone: list[SourceKey] = field(default_factory=list)


class Draft:
    """The writes of one plan."""

    def __init__(self) -> None:
        self._cleared: list[int] = []
        self._names: Writes = []
        self._slots: Writes = []
        self._services: Writes = []
        self._services_gone: Writes = []
        self._names_gone: list[Key] = []
        self._families = {family: _OfFamily() for family in Family}

    def clear_service(self, number: int) -> None:
        """Counts of an id's earlier owner go before the new one is seen."""
        self._cleared.append(number)

    def clear_backend(self, family: Family, number: int) -> None:
        self._families[family].cleared.append(number)

    def clear_ranges(self, family: Family, keys: Sequence[SourceKey]) -> None:
        """Ranges that no record names, before a list is written where they are."""
        self._families[family].cleared_ranges += keys

    def name(self, number: int, text: str) -> None:
        self._names.append((NameKey(NameKind.SERVICE, number), NameRow(text)))

    def name_gone(self, number: int) -> None:
        self._names_gone.append(NameKey(NameKind.SERVICE, number))

    def backend(self, family: Family, number: int, row: BackendRow, old_flags: int = 0) -> None:
        """A backend's record. What it may do now comes before the set that lists it, what it
        may no longer do after the set that does not."""
        writes = self._families[family]
        if row.flags & ~old_flags:
            both = row.flags | old_flags
            writes.better.append((number, row if both == row.flags else replace(row, flags=both)))
        if old_flags & ~row.flags:
            writes.worse.append((number, row))

    def slots(self, base: int, epoch: int, ids: Sequence[int]) -> None:
        self._slots += [(place, SlotRow(i, epoch)) for place, i in enumerate(ids, base)]

    def ranges(self, family: Family, keys: Sequence[SourceKey]) -> None:
        """Ranges of a list that no record names yet."""
        self._families[family].ranges += [(key, SourceRow(key.list >> 1)) for key in keys]

    def ranges_gone(self, family: Family, keys: Sequence[SourceKey]) -> None:
        """Ranges of a list that no record names any more."""
        self._families[family].ranges_gone += keys

    def service(self, number: int, row: ServiceRow) -> None:
        self._services.append((number, row))

    def service_gone(self, number: int) -> None:
        self._services_gone.append((number, NO_SERVICE))

    def frontend(self, family: Family, key: FrontendKey, row: FrontendRow) -> None:
        self._families[family].frontends.append((key, row))

    def frontend_gone(self, family: Family, key: FrontendKey) -> None:
        self._families[family].frontends_gone.append(key)

    def plan(self, grace: bool) -> Plan:
        """The steps, if any; grace if packets on their way may hold what is used again."""
        steps: list[Step] = []

        def upsert(table: Table, rows: Writes) -> None:
            if rows:
                steps.append(Upsert(table, rows))

        def delete(table: Table, keys: Sequence[Key]) -> None:
            if keys:
                steps.append(Delete(table, keys))

        delete(SERVICE_COUNTERS, self._cleared)
        for family, writes in self._families.items():
            delete(BACKEND_COUNTERS[family], writes.cleared)
            delete(SOURCE_RANGES[family], writes.cleared_ranges)
        upsert(NAMES, self._names)
        for family, writes in self._families.items():
            upsert(BACKENDS[family], writes.better)
        upsert(SLOTS, self._slots)
        for family, writes in self._families.items():
            upsert(SOURCE_RANGES[family], writes.ranges)
        upsert(SERVICES, self._services)
        for family, writes in self._families.items():
            upsert(FRONTENDS[family], writes.frontends)
        for family, writes in self._families.items():
            delete(FRONTENDS[family], writes.frontends_gone)
        upsert(SERVICES, self._services_gone)
        for family, writes in self._families.items():
            upsert(BACKENDS[family], writes.worse)
        if self._services and any(writes.ranges_gone for writes in self._families.values()):
            # A packet that read the record before may still look into the list that it named.
            steps.append(Grace())
        for family, writes in self._families.items():
            delete(SOURCE_RANGES[family], writes.ranges_gone)
        delete(NAMES, self._names_gone)
        return Plan((Grace(), *steps) if grace and steps else tuple(steps))
