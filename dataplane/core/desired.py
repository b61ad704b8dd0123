# SPDX-License-Identifier: Apache-2.0
"""Services and their slices in, plans for the Service tables out: only what changed.

An object that changes marks its Service; a plan works through the marked ones. Nothing
is planned before every source has synced, so that a restart deletes nothing too early.
An object that finds no room is named as a problem, the rest is served, and it is tried
again when room comes back. Must not write maps, read clocks, or know pods and routes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from dataplane.core.draft import NO_SERVICE, Draft
from dataplane.core.endpoints import SELECTABLE, Selection, select
from dataplane.core.frontends import (
    Claim,
    Claims,
    Settings,
    address_claims,
    is_served,
    lost,
    port_claims,
    service_ports,
)
from dataplane.core.plan import BACKENDS, FRONTENDS, SOURCE_RANGES, Key, Plan, Row, State
from dataplane.core.pools import IdPool, SlotPool
from dataplane.core.ranges import GUARDED, ODD, admitted, keys, list_of
from dataplane.core.served import Limits, Members, Port, adopt
from dataplane.core.store import ServiceKey, Store
from dataplane.model.constants import FrontendKind, ServiceFlag
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, family_of
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Problem,
    Service,
    ServicePort,
    ServiceType,
)
from dataplane.model.rows import BackendRow, BackendSet, FrontendKey, FrontendRow, ServiceRow, Table

__all__ = ["Desired", "Limits", "Settings"]

EPOCHS = 1 << 16


class _Entry:
    """What is known of one Service name besides its objects."""

    __slots__ = ("addresses", "frontends", "input_problems", "ports", "problems")

    def __init__(self) -> None:
        self.addresses: dict[FrontendKey, Claim] = {}
        self.frontends: dict[FrontendKey, Claim] = {}
        self.ports: dict[ServiceName, ServicePort] = {}
        self.input_problems: set[Problem] = set()
        self.problems: set[Problem] = set()


class Desired:
    """The Service tables of one node.

    Args:
        settings: facts of the node; `configure` changes them.
        limits: sizes of the maps.
        adopted: what the pinned maps hold at start, tables that are missing are empty.
    """

    def __init__(self, settings: Settings, limits: Limits, adopted: State) -> None:
        self._settings = settings
        self._limits = limits
        self._held = adopt(adopted, limits)
        self._store = Store()
        self._entries: dict[ServiceKey, _Entry] = {}
        self._claims = Claims()
        self._synced = False
        self._first = True
        self._marked: set[ServiceKey] = set(self._held.ports)
        self._touched: dict[FrontendKey, None] = {  # an ordered set
            key: None for rows in self._held.frontends.values() for key in rows
        }
        self._starved: dict[ServiceKey, set[IdPool | SlotPool]] = {}
        self._crowded: dict[ServiceName, int] = {}
        self._leaving: dict[Family, int] = dict.fromkeys(Family, 0)
        self._frontends_left: dict[FrontendKey, Problem] = {}
        self._draft = Draft()

    # ---- input ----

    def apply(self, batch: Batch) -> None:
        """Takes in what a source saw; deletions first. Nodes and Pods are not looked at."""
        self._marked |= self._store.apply(batch)
        self._synced |= batch.synced

    def configure(self, settings: Settings) -> None:
        """Other facts of the node: every Service is looked at again."""
        if settings != self._settings:
            self._settings = settings
            self._marked.update(self._store.services)

    # ---- output ----

    def plan(self, now: float) -> Plan:
        """What to write since the plan before, which must have been executed.

        Args:
            now: seconds of a clock that only goes forward.
        """
        if not self._synced:
            return Plan()
        draft = self._draft = Draft()
        held = self._held
        pools: list[IdPool | SlotPool] = [
            held.service_ids, held.slots, *held.backend_ids.values()
        ]  # fmt: skip
        for pool in pools:
            pool.settled = False
        self._clear_strays(now)
        for key, reasons in self._starved.items():
            if any(pool.rested(now) for pool in reasons):
                self._marked.add(key)
        self._marked.update(self._relieved())
        self._settle_claims()
        for key in sorted(self._marked, key=self._rank):
            self._update(key, now)
        self._marked.clear()
        for family, count in self._leaving.items():
            self._held.range_counts[family] -= count
            self._leaving[family] = 0
        self._write_frontends()
        # What an agent before us freed last, we don't know.
        plan = draft.plan(grace=self._first or any(pool.settled for pool in pools))
        self._first = self._first and not plan
        return plan

    def wake(self) -> float | None:
        """When to ask for a plan though nothing changed: room comes back for what was left out."""
        times = [
            time
            for reasons in self._starved.values()
            for pool in reasons
            if (time := pool.next_rested()) is not None
        ]
        room = any(self._has_room(family_of(key.address)) for key in self._frontends_left)
        if room or any(True for _ in self._relieved()):
            times.append(float("-inf"))
        return min(times, default=None)

    def problems(self) -> tuple[Problem, ...]:
        """What is not served, or not in full, as of the last plan."""
        found = set(self._frontends_left.values())
        for entry in self._entries.values():
            found |= entry.problems
        return tuple(sorted(found))

    @property
    def settings(self) -> Settings:
        """Facts of the node, as last told."""
        return self._settings

    def health_checked(self) -> Mapping[ServiceKey, Service]:
        """Services that have a healthCheckNodePort; not to be changed."""
        return self._store.health_checked

    def slices_of(self, key: ServiceKey) -> Collection[EndpointSlice]:
        """A Service's slices as of now."""
        return self._store.slices_of(key)

    def tables(self) -> dict[Table, dict[Key, Row]]:
        """What the maps should hold once the last plan is executed, to compare with what they do.

        Gone backends and places outside sets mean nothing, so they are not in it.
        """
        return self._held.tables()

    # ---- frontends ----

    def _settle_claims(self) -> None:
        """Claims of marked Services, and marks those whom a changed claim concerns.

        Whole addresses first, since a Service that lost one claims no port of it.
        """
        for key in sorted(self._marked, key=self._rank):
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
            entry.input_problems = set()
            service = self._served(key)
            claims = (
                address_claims(service, self._settings, entry.input_problems) if service else {}
            )
            self._replace(entry.addresses, claims)
            entry.addresses = claims
        for key in sorted(self._marked, key=self._rank):
            entry = self._entries[key]
            service = self._served(key)
            entry.ports, claims = {}, {}
            if service:
                problems = entry.input_problems
                entry.ports = dict(service_ports(service, self._settings))
                won = [k.address for k, c in entry.addresses.items() if self._claims.first(k) == c]
                claims = port_claims(service, entry.ports.items(), won, self._settings, problems)
            self._replace(entry.frontends, claims)
            entry.frontends = claims

    def _replace(self, old: dict[FrontendKey, Claim], new: dict[FrontendKey, Claim]) -> None:
        for key, others in self._claims.replace(old, new):
            self._touched[key] = None
            for claim in others:
                self._marked.add(claim.service)

    def _write_frontends(self) -> None:
        self._touched.update(dict.fromkeys(self._frontends_left))
        gone: list[FrontendKey] = []
        for key in self._touched:
            family = family_of(key.address)
            rows = self._held.frontends[family]
            row = self._frontend(key)
            if row is None:
                gone.append(key)
                self._frontends_left.pop(key, None)
            elif key not in rows and not self._has_room(family):
                claim = self._claims.of(key)[0]
                where = FRONTENDS[family].pin
                reason = f"no room in the map {where} for {key.address} port {key.port}"
                service = self._store.services[claim.service]
                self._frontends_left[key] = Problem(str(service.key), "spec", reason, no_room=True)
            else:
                self._frontends_left.pop(key, None)
                if rows.get(key) != row:
                    rows[key] = row
                    self._draft.frontend(family, key, row)
        for key in gone:
            family = family_of(key.address)
            if self._held.frontends[family].pop(key, None):
                self._draft.frontend_gone(family, key)
        self._touched.clear()

    def _frontend(self, key: FrontendKey) -> FrontendRow | None:
        claim = self._claims.first(key)
        if claim is None:
            return None
        if claim.owner is None:
            return FrontendRow(0, int(FrontendKind.ADDRESS))
        port = self._held.ports.get(claim.service, {}).get(claim.owner)
        return FrontendRow(port.id, int(claim.kind)) if port else None

    def _has_room(self, family: Family) -> bool:
        return len(self._held.frontends[family]) < self._limits.frontends

    # ---- ports, backends, sets ----

    def _served(self, key: ServiceKey) -> Service | None:
        service = self._store.services.get(key)
        return service if service and is_served(service) else None

    def _rank(self, key: ServiceKey) -> tuple[str, ServiceKey]:
        service = self._store.services.get(key)
        return (service.created if service else "", key)

    def _update(self, key: ServiceKey, now: float) -> None:
        """Brings one Service's ports, backends and sets to what its objects say."""
        entry = self._entries[key]
        service = self._served(key)
        self._starved.pop(key, None)
        ports = self._held.ports.setdefault(key, {})
        for name in [name for name in ports if name not in entry.ports]:
            self._remove(ports.pop(name), now)
            self._crowded.pop(name, None)
        entry.problems = set(entry.input_problems)
        if service:
            entry.problems |= lost(service, entry.addresses | entry.frontends, self._claims)
            pieces = sorted(self._store.slices_of(key), key=lambda piece: piece.name)
            for name, spec in entry.ports.items():
                port = ports.get(name) or self._new_port(service, name, now)
                if port:
                    ports[name] = port
                    self._update_port(port, service, spec, pieces, now)
        if not ports:
            del self._held.ports[key]
        if key not in self._store.services:
            del self._entries[key]

    def _new_port(self, service: Service, name: ServiceName, now: float) -> Port | None:
        pool = self._held.service_ids
        number = pool.take(now)
        if number is None:
            self._starve(service, name, pool, "no room in the map services")
            return None
        self._draft.clear_service(number)
        self._draft.name(number, name.text)
        # Whoever asked for these frontends got none while there was no id.
        entry = self._entries[service.namespace, service.name]
        self._touched.update(dict.fromkeys(entry.frontends))
        return Port(name, number)

    def _update_port(
        self,
        port: Port,
        service: Service,
        spec: ServicePort,
        pieces: Iterable[EndpointSlice],
        now: float,
    ) -> None:
        family = port.name.family
        flags = _service_flags(service)
        wants_local = bool(flags & (ServiceFlag.INTERNAL_LOCAL | ServiceFlag.EXTERNAL_LOCAL))
        wants_local |= self._settings.direct_return
        selection = select(
            (piece for piece in pieces if piece.family is family),
            spec.name, spec.protocol, self._settings.node, self._settings.zone, wants_local,
        )  # fmt: skip
        gone = self._update_backends(port, service, selection, now)
        for members, places in ((port.cluster, selection.cluster), (port.local, selection.local)):
            ids = sorted(port.backends[place] for place in places if place in port.backends)
            if not self._place(members, tuple(ids), now):
                words = f"no room in the map slots for {len(ids)} endpoints"
                self._starve(service, port.name, self._held.slots, words)
        for number in gone:
            self._backend_gone(family, number, now)
        flags |= self._update_ranges(port, service)
        row = ServiceRow(port.cluster.word, port.local.word, flags, service.affinity_seconds)
        if row != port.row:
            port.row = row
            self._draft.service(port.id, row)

    def _update_ranges(self, port: Port, service: Service) -> int:
        """Writes changed source ranges into the list that the record does not name; its flags.

        Without room for all of them the others are not admitted: rather closed than open.
        """
        family = port.name.family
        wanted = admitted(service, family, self._settings)
        named = port.row.flags & (GUARDED | ODD)
        self._crowded.pop(port.name, None)
        if wanted == port.ranges and bool(wanted) == bool(named & GUARDED):
            return named
        found = wanted[: self._range_room(family)]
        if wanted and named & GUARDED and len(found) <= len(port.ranges) < len(wanted):
            # As crowded as before: what is there and still meant stays.
            found = port.ranges if set(port.ranges) <= set(wanted) else found
        if len(found) < len(wanted):
            words = f"no room in the map {SOURCE_RANGES[family].pin}"
            words += f" for {len(wanted) - len(found)} of {len(wanted)} ranges"
            key = service.namespace, service.name
            field = "spec.loadBalancerSourceRanges"
            self._entries[key].problems.add(Problem(str(service.key), field, words))
            self._crowded[port.name] = len(found)
            if found == port.ranges and named & GUARDED:
                return named
        flags = (GUARDED | (named ^ ODD) & ODD) if wanted else 0
        self._ranges_gone(port)
        self._draft.ranges(family, keys(list_of(port.id, flags), found))
        self._held.range_counts[family] += len(found)
        port.ranges = found
        return flags

    def _ranges_gone(self, port: Port) -> None:
        """What goes makes room in the next plan: in this one it is deleted after what comes."""
        family = port.name.family
        self._draft.ranges_gone(family, port.range_keys)
        self._leaving[family] += len(port.ranges)

    def _range_room(self, family: Family) -> int:
        return max(self._limits.source_ranges - self._held.range_counts[family], 0)

    def _relieved(self) -> Iterator[ServiceKey]:
        """Services of which more ranges would find room now than did."""
        for name, count in self._crowded.items():
            if self._range_room(name.family) > count:
                yield name.namespace, name.name

    def _update_backends(
        self, port: Port, service: Service, selection: Selection, now: float
    ) -> list[int]:
        """Writes what changed; returns the ids of backends that are no longer listed."""
        family, protocol = port.name.family, int(port.name.protocol)
        rows, pool = self._held.backends[family], self._held.backend_ids[family]
        listed, backends = selection.listed, port.backends
        gone = [backends.pop(place) for place in list(backends) if place not in listed]
        new = [place for place in listed if place not in backends]
        for place, number in backends.items():
            row, flags = rows[number], listed[place][2]
            if row.flags != flags:
                rows[number] = replace(row, flags=flags)
                self._draft.backend(family, number, rows[number], row.flags)
        # Those that take new flows come first, in case not all find room.
        new.sort(key=lambda place: not listed[place][2] & SELECTABLE)
        for index, place in enumerate(new):
            taken = pool.take(now)
            if taken is None:
                words = f"no room in the map {BACKENDS[family].pin}"
                words += f" for {len(new) - index} of {len(listed)} endpoints"
                self._starve(service, port.name, pool, words)
                break
            if pool.recycled:
                self._draft.clear_backend(family, taken)
            self._held.generation += 1
            address, number, flags = listed[place]
            row = BackendRow(self._held.generation, address, port.id, number, protocol, flags)
            rows[taken], backends[place] = row, taken
            self._draft.backend(family, taken, row)
        return gone

    def _place(self, members: Members, ids: tuple[int, ...], now: float) -> bool:
        """Puts a set into a range of its own. False if not all of it is served.

        Without room a set that only misses newcomers stays; any other is cut to what fits.
        """
        if ids == members.ids:
            return True
        pool, count = self._held.slots, len(ids)
        base = pool.take(count, now) if count else 0
        if base is None:
            if members.ids and set(members.ids).issubset(ids):
                return False
            ids = ids[: pool.largest()]
            base = pool.take(len(ids), now) if ids else 0
        self._free(members, now)
        if ids and base is not None:
            self._held.epoch = (self._held.epoch + 1) % EPOCHS
            self._draft.slots(base, self._held.epoch, ids)
            members.word = int(BackendSet(base, len(ids), self._held.epoch))
            members.ids = ids
        return len(members.ids) == count

    def _free(self, members: Members, now: float) -> None:
        if members.ids:
            self._held.slots.give(BackendSet.parse(members.word).base, len(members.ids), now)
        members.word, members.ids = 0, ()

    def _remove(self, port: Port, now: float) -> None:
        if port.row != NO_SERVICE:
            self._draft.service_gone(port.id)
        self._draft.name_gone(port.id)
        self._ranges_gone(port)
        self._free(port.cluster, now)
        self._free(port.local, now)
        for number in port.backends.values():
            self._backend_gone(port.name.family, number, now)
        self._held.service_ids.give(port.id, now)

    def _backend_gone(self, family: Family, number: int, now: float) -> None:
        row = self._held.backends[family].pop(number)
        self._held.generation += 1
        gone = replace(row, generation=self._held.generation, flags=0)
        self._draft.backend(family, number, gone, row.flags)
        self._held.backend_ids[family].give(number, now)

    def _clear_strays(self, now: float) -> None:
        """Takes away what the adopted maps held without sense; nothing after the first plan."""
        held = self._held
        for number in held.stray_services:
            self._draft.service_gone(number)
            held.service_ids.give(number, now)
        for number in held.stray_names:
            self._draft.name_gone(number)
        for family, number in held.stray_backends:
            self._backend_gone(family, number, now)
        for family, gone in held.stray_ranges.items():
            self._draft.clear_ranges(family, gone)
            held.range_counts[family] -= len(gone)
        held.stray_services, held.stray_names, held.stray_backends = [], [], []
        held.stray_ranges = {}

    def _starve(
        self, service: Service, name: ServiceName, pool: IdPool | SlotPool, why: str
    ) -> None:
        key = service.namespace, service.name
        self._starved.setdefault(key, set()).add(pool)
        problem = Problem(str(service.key), f"spec.ports[{name.port}]", why, no_room=True)
        self._entries[key].problems.add(problem)


def _service_flags(service: Service) -> int:
    flags = 0
    if service.internal_local:
        flags |= ServiceFlag.INTERNAL_LOCAL
    outside = service.type is not ServiceType.CLUSTER_IP or service.external_ips
    if service.external_local and outside:
        flags |= ServiceFlag.EXTERNAL_LOCAL
    if service.affinity_seconds:
        flags |= ServiceFlag.AFFINITY
    return int(flags)
