# SPDX-License-Identifier: Apache-2.0
"""Maps in memory that execute plans and look, after each entry, at what a packet would see.

Must not know how plans are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import cast

from dataplane.core.draft import NO_SERVICE
from dataplane.core.plan import (
    BACKENDS,
    FRONTENDS,
    NAMES,
    SERVICES,
    SLOTS,
    SOURCE_RANGES,
    Delete,
    Grace,
    Key,
    Plan,
    Row,
    State,
    Step,
    Upsert,
)
from dataplane.core.pools import REST_SECONDS
from dataplane.core.served import Limits
from dataplane.model.constants import BackendFlag, FrontendKind, NameKind, ServiceFlag
from dataplane.model.net import Family, IPNetwork
from dataplane.model.rows import (
    BackendRow,
    BackendSet,
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

ARRAYS = {SERVICES.name, SLOTS.name, "backends"}


@dataclass(slots=True)
class Rest:
    """When each freed thing was freed; a Grace step marks all that were."""

    since: dict[tuple[str, int], float] = field(default_factory=dict)
    graced: set[tuple[str, int]] = field(default_factory=set)

    def free(self, kind: str, number: int, now: float) -> None:
        self.since[kind, number] = now
        self.graced.discard((kind, number))

    def take(self, kind: str, number: int, now: float) -> None:
        since = self.since.pop((kind, number), None)
        if since is not None:
            assert now >= since + REST_SECONDS, f"{kind} {number} used again too early"
            assert (kind, number) in self.graced, f"{kind} {number} used again without a grace"


class FakeMaps:
    """Every table of core, at the sizes of limits.

    With `watch` each entry written is followed by the checks that a packet would make.
    """

    def __init__(self, limits: Limits, state: State | None = None, watch: bool = True) -> None:
        self.limits, self.watch = limits, watch
        self.tables: dict[Table, dict[Key, Row]] = {t: dict(r) for t, r in (state or {}).items()}
        self.rest = Rest()
        self.generations = {row.generation for _, row in self.all_backends()}

    def state(self) -> State:
        """A copy, as a restarted agent would read it."""
        return {table: dict(rows) for table, rows in self.tables.items()}

    def table(self, table: Table) -> dict[Key, Row]:
        return self.tables.setdefault(table, {})

    def services(self) -> Mapping[int, ServiceRow]:
        return cast(Mapping[int, ServiceRow], self.table(SERVICES))

    def slots(self) -> Mapping[int, SlotRow]:
        return cast(Mapping[int, SlotRow], self.table(SLOTS))

    def backends(self, family: Family) -> Mapping[int, BackendRow]:
        return cast(Mapping[int, BackendRow], self.table(BACKENDS[family]))

    def frontends(self, family: Family) -> Mapping[FrontendKey, FrontendRow]:
        return cast(Mapping[FrontendKey, FrontendRow], self.table(FRONTENDS[family]))

    def names(self) -> dict[int, str]:
        names = cast(Mapping[NameKey, NameRow], self.table(NAMES))
        return {k.id: row.text for k, row in names.items() if k.kind == NameKind.SERVICE}

    def all_backends(self) -> list[tuple[Family, BackendRow]]:
        return [(f, row) for f in Family for row in self.backends(f).values()]

    def members(self, word: int, family: Family) -> list[BackendRow]:
        """The backends that a set leads packets to, in slot order."""
        found = BackendSet.parse(word)
        rows = []
        for place in range(found.base, found.base + found.count):
            slot = self.slots()[place]
            assert slot.epoch == found.epoch, f"slot {place} is not of its set"
            rows.append(self.backends(family)[slot.backend_id])
        return rows

    def admitted(self, number: int, row: ServiceRow, family: Family) -> frozenset[IPNetwork]:
        """Ranges of the list that a Service's record names."""
        odd = bool(row.flags & ServiceFlag.RANGES_ODD)
        keys = cast(Mapping[SourceKey, SourceRow], self.table(SOURCE_RANGES[family]))
        return frozenset(
            ip_network((key.address, key.prefix - 32))
            for key in keys
            if key.list == number * 2 + odd
        )

    def execute(self, plan: Plan, now: float) -> None:
        for step in plan.steps:
            self.do(step, now)

    def do(self, step: Step, now: float) -> None:
        if isinstance(step, Grace):
            self.rest.graced.update(self.rest.since)
        elif isinstance(step, Upsert):
            assert step.rows
            assert len({key for key, _ in step.rows}) == len(step.rows), "an entry written twice"
            for key, row in step.rows:
                self.write(step.table, key, row, now)
        elif isinstance(step, Delete):
            assert step.keys
            for key in step.keys:
                if isinstance(key, SourceKey):
                    self._unnamed(key)
                if not step.table.name.endswith("_counters"):
                    assert key in self.table(step.table), f"{step.table.pin} has no {key}"
                    del self.table(step.table)[key]
                if isinstance(key, NameKey):
                    self.rest.free("service", key.id, now)
                if self.watch:
                    self.look()

    def write(self, table: Table, key: Key, row: Row, now: float) -> None:
        rows = self.table(table)
        old = rows.get(key)
        if self.watch:
            assert old != row or table == SLOTS, f"{table.pin} {key} is written without need"
            self._before(table, key, row, old, now)
        rows[key] = row
        size = getattr(self.limits, table.name, None)
        if table.name in ARRAYS:
            assert isinstance(key, int)
            assert size is not None
            assert int(table != SLOTS) <= key < size
        else:
            assert size is None or len(rows) <= size
        if self.watch:
            self.look()

    def _before(self, table: Table, key: Key, row: Row, old: Row | None, now: float) -> None:
        if isinstance(row, BackendRow):
            assert isinstance(key, int)
            self._backend(table.pin, key, row, cast(BackendRow | None, old), now)
        elif isinstance(key, SourceKey):
            self._unnamed(key)
        elif isinstance(key, NameKey):
            self.rest.take("service", key.id, now)
        elif isinstance(row, SlotRow):
            assert isinstance(key, int)
            assert key not in self._covered(), f"slot {key} is in use"
            self.rest.take("slot", key, now)
        elif isinstance(row, ServiceRow):
            assert isinstance(key, int)
            before = cast(ServiceRow, old) if old else NO_SERVICE
            for place in _places(before) - _places(row):
                self.rest.free("slot", place, now)

    def _unnamed(self, key: SourceKey) -> None:
        record = self.services().get(key.list >> 1, NO_SERVICE)
        named = bool(record.flags & ServiceFlag.RANGES_ODD) == key.list & 1
        guarded = record.flags & ServiceFlag.SOURCE_RANGES
        assert not (guarded and named), "a list of ranges changed while its record names it"

    def _backend(
        self, pin: str, number: int, row: BackendRow, old: BackendRow | None, now: float
    ) -> None:
        if old and old.flags and row.flags:
            same = (row.generation, row.address, row.port, row.service_id, row.protocol)
            assert same == (
                old.generation, old.address, old.port, old.service_id, old.protocol
            ), "a backend became another one without being gone"  # fmt: skip
            return
        assert row.generation not in self.generations, "a generation was used twice"
        self.generations.add(row.generation)
        if row.flags:
            self.rest.take(pin, number, now)
        else:
            assert old is not None
            assert old.flags, "gone twice"
            self.rest.free(pin, number, now)

    def _covered(self) -> set[int]:
        return {place for row in self.services().values() for place in _places(row)}

    def look(self) -> None:
        """What holds at every moment: sets are whole and lead to live backends of their own."""
        names = self.names()
        covered: set[int] = set()
        for number, row in self.services().items():
            if row == NO_SERVICE:
                continue
            family = Family(int(names[number].rpartition("/")[2]))
            for word in (row.cluster, row.local):
                for backend in self.members(word, family):
                    assert backend.flags & BackendFlag.SELECTABLE
                    assert backend.service_id == number
                found = BackendSet.parse(word)
                places = set(range(found.base, found.base + found.count))
                assert not places & covered, "two sets share a slot"
                covered |= places
        for family in Family:
            for key, frontend in self.frontends(family).items():
                assert key.address.version == family
                if frontend.kind == FrontendKind.ADDRESS:
                    assert frontend.service_id == 0
                else:
                    assert frontend.service_id in names


def _places(row: ServiceRow) -> set[int]:
    places: set[int] = set()
    for found in map(BackendSet.parse, (row.cluster, row.local)):
        places |= set(range(found.base, found.base + found.count))
    return places
