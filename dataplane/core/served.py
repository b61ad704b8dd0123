# SPDX-License-Identifier: Apache-2.0
"""What the maps hold for Services as of the last plan, and how it is found after a restart.

`Holdings` is core's memory of the kernel: an agent starts with what the pinned maps
held, so that ids stay and only differences are written. What the maps hold without
sense (no name, slots of another epoch, ranges that overlap) is left for the first plan
to clear. Must not decide what ought to be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from dataplane.core.draft import NO_SERVICE
from dataplane.core.endpoints import Place, place_of
from dataplane.core.plan import (
    BACKENDS,
    FRONTENDS,
    NAMES,
    SERVICES,
    SLOTS,
    SOURCE_RANGES,
    Key,
    Row,
    State,
)
from dataplane.core.pools import IdPool, SlotPool
from dataplane.core.ranges import GUARDED, keys, list_of, network
from dataplane.model.constants import NameKind
from dataplane.model.names import ServiceName
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


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the maps, in entries; frontends, backends and source_ranges are a family's.

    `names` must have room for all Services beside pods and nodes.
    """

    frontends: int
    services: int
    slots: int
    backends: int
    source_ranges: int = 1 << 14


@dataclass(slots=True)
class Members:
    """One backend set: the u64 that packets read and the backend ids in its slots, sorted."""

    word: int = 0
    ids: tuple[int, ...] = ()


@dataclass(slots=True)
class Port:
    """One Service port in one family, as the maps have it."""

    name: ServiceName
    id: int
    row: ServiceRow = NO_SERVICE
    backends: dict[Place, int] = field(default_factory=dict)
    cluster: Members = field(default_factory=Members)
    local: Members = field(default_factory=Members)
    ranges: tuple[IPNetwork, ...] = ()

    @property
    def range_keys(self) -> list[SourceKey]:
        """Where its source ranges are: in the list that its record names."""
        return keys(list_of(self.id, self.row.flags), self.ranges)


@dataclass(slots=True)
class Holdings:
    """All of it, less what is gone. What is named `stray` means nothing to us."""

    ports: dict[tuple[str, str], dict[ServiceName, Port]]
    frontends: dict[Family, dict[FrontendKey, FrontendRow]]
    backends: dict[Family, dict[int, BackendRow]]
    service_ids: IdPool
    backend_ids: dict[Family, IdPool]
    slots: SlotPool
    generation: int
    epoch: int
    range_counts: dict[Family, int]
    stray_services: list[int] = field(default_factory=list)
    stray_names: list[int] = field(default_factory=list)
    stray_backends: list[tuple[Family, int]] = field(default_factory=list)
    stray_ranges: dict[Family, list[SourceKey]] = field(default_factory=dict)

    def all_ports(self) -> Iterator[Port]:
        for ports in self.ports.values():
            yield from ports.values()

    def tables(self) -> dict[Table, dict[Key, Row]]:
        """Each entry that means something; gone backends and places outside sets are left out."""
        tables: dict[Table, dict[Key, Row]] = {SERVICES: {}, SLOTS: {}, NAMES: {}}
        for family in Family:
            tables[FRONTENDS[family]] = dict(self.frontends[family].items())
            tables[BACKENDS[family]] = dict(self.backends[family].items())
            tables[SOURCE_RANGES[family]] = {}
        for port in self.all_ports():
            if port.row != NO_SERVICE:
                tables[SERVICES][port.id] = port.row
            tables[NAMES][NameKey(NameKind.SERVICE, port.id)] = NameRow(port.name.text)
            for key in port.range_keys:
                tables[SOURCE_RANGES[port.name.family]][key] = SourceRow(port.id)
            for members in (port.cluster, port.local):
                found = BackendSet.parse(members.word)
                for place, number in enumerate(members.ids, found.base):
                    tables[SLOTS][place] = SlotRow(number, found.epoch)
        return tables


def adopt(state: State, limits: Limits) -> Holdings:
    """What pinned maps held: tables frontends, source_ranges, services, slots, backends and names.

    Tables that are missing are empty; zero rows and other kinds of names mean nothing.
    """
    services = {
        number: row
        for number, row in cast(Mapping[int, ServiceRow], state.get(SERVICES, {})).items()
        if row != NO_SERVICE
    }
    ports, stray_names = _named(cast(Mapping[NameKey, NameRow], state.get(NAMES, {})))
    for port in ports.values():
        port.row = services.get(port.id, NO_SERVICE)
    stray_services = [number for number in services if number not in ports]
    range_counts: dict[Family, int] = {}
    stray_ranges: dict[Family, list[SourceKey]] = {}
    backends: dict[Family, dict[int, BackendRow]] = {}
    frontends: dict[Family, dict[FrontendKey, FrontendRow]] = {}
    stray_backends: list[tuple[Family, int]] = []
    backend_ids: dict[Family, IdPool] = {}
    generation = 0
    for family in Family:
        rows = cast(Mapping[int, BackendRow], state.get(BACKENDS[family], {}))
        rows = {number: row for number, row in rows.items() if row.generation}
        generation = max([generation, *(row.generation for row in rows.values())])
        live = backends[family] = {number: row for number, row in rows.items() if row.flags}
        stray_backends += [
            (family, number)
            for number, row in live.items()
            if not _join(ports.get(row.service_id), family, number, row)
        ]
        backend_ids[family] = IdPool(limits.backends, live, rows)
        written = cast(Mapping[FrontendKey, FrontendRow], state.get(FRONTENDS[family], {}))
        frontends[family] = dict(written)
        sources = cast(Mapping[SourceKey, SourceRow], state.get(SOURCE_RANGES[family], {}))
        stray_ranges[family] = _read_ranges(ports, family, sources)
        range_counts[family] = len(sources)
    used = _read_sets(ports, cast(Mapping[int, SlotRow], state.get(SLOTS, {})), limits.slots)
    words = [word for row in services.values() for word in (row.cluster, row.local)]
    by_service: dict[tuple[str, str], dict[ServiceName, Port]] = {}
    for port in ports.values():
        key = port.name.namespace, port.name.name
        by_service.setdefault(key, {})[port.name] = port
    return Holdings(
        ports=by_service,
        frontends=frontends,
        backends=backends,
        service_ids=IdPool(limits.services, [*ports, *stray_services], stray_names),
        backend_ids=backend_ids,
        slots=SlotPool(limits.slots, used),
        generation=generation,
        epoch=max((BackendSet.parse(word).epoch for word in words), default=0),
        stray_services=stray_services,
        stray_names=stray_names,
        stray_backends=stray_backends,
        range_counts=range_counts,
        stray_ranges=stray_ranges,
    )


def _named(names: Mapping[NameKey, NameRow]) -> tuple[dict[int, Port], list[int]]:
    """Ports by id, and the ids whose name can't be used."""
    ports: dict[int, Port] = {}
    seen: set[ServiceName] = set()
    stray: list[int] = []
    for key in sorted(key for key in names if key.kind == NameKind.SERVICE):
        try:
            name = ServiceName.parse(names[key].text)
        except ValueError:
            stray.append(key.id)
            continue
        if name in seen:
            stray.append(key.id)
            continue
        seen.add(name)
        ports[key.id] = Port(name, key.id)
    return ports, stray


def _join(port: Port | None, family: Family, number: int, row: BackendRow) -> bool:
    """Whether the backend is one of this port, and not there yet."""
    if port is None or port.name.family is not family or row.protocol != port.name.protocol:
        return False
    return port.backends.setdefault(place_of(row.address, row.port), number) == number


def _read_ranges(
    ports: Mapping[int, Port], family: Family, sources: Mapping[SourceKey, SourceRow]
) -> list[SourceKey]:
    """Fills in each port's source ranges; returns the keys of lists that no record names."""
    found: dict[int, list[IPNetwork]] = {}
    stray: list[SourceKey] = []
    for key in sources:
        port = ports.get(key.list >> 1)
        named = port is not None and port.name.family is family and port.row.flags & GUARDED
        meant = network(key) if named else None
        if port is None or meant is None or key.list != list_of(port.id, port.row.flags):
            stray.append(key)
        else:
            found.setdefault(port.id, []).append(meant)
    for number, ranges in found.items():
        ports[number].ranges = tuple(sorted(ranges))
    return stray


def _read_sets(
    ports: Mapping[int, Port], slots: Mapping[int, SlotRow], size: int
) -> list[tuple[int, int]]:
    """Fills in each port's sets; returns the ranges that hold.

    One that does not hold is taken for empty, which its row contradicts: it is written anew.
    """
    found: list[tuple[int, int, Members]] = []
    for port in ports.values():
        own = set(port.backends.values())
        for word, members in ((port.row.cluster, port.cluster), (port.row.local, port.local)):
            described = BackendSet.parse(word)
            base, end = described.base, described.base + described.count
            rows = [slots.get(place) for place in range(base, min(end, size))]
            ids = [row.backend_id for row in rows if row and row.epoch == described.epoch]
            if word and own.issuperset(ids) and len(set(ids)) == described.count:
                members.word, members.ids = word, tuple(ids)
                found.append((base, described.count, members))
    used: list[tuple[int, int]] = []
    end = 0
    for base, count, members in sorted(found, key=lambda entry: entry[:2]):
        if base < end:
            members.word, members.ids = 0, ()
        else:
            used.append((base, count))
            end = base + count
    return used
