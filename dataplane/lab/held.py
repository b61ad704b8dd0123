# SPDX-License-Identifier: Apache-2.0
"""What a node's pinned maps hold for Services, followed as a packet would, and compared. Pure.

Finds an entry that was changed by hand as well as one that the agent has not written
yet. Must not read maps itself: it is given their entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.core.endpoints import place_of, select
from dataplane.core.frontends import is_served
from dataplane.lab.judge import endpoint_text
from dataplane.lab.world import World
from dataplane.model.constants import BackendFlag, NameKind
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, IPAddress, family_of
from dataplane.model.objects import Node, Service, ServicePort
from dataplane.model.rows import (
    BackendRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    ServiceRow,
    SlotRow,
)

_COUNT_MASK = (1 << 20) - 1
_EPOCH_MASK = (1 << 16) - 1

Places = Mapping[tuple[IPAddress, int], int]
"""A backend's address and port to its flags (enum backend_flag)."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Entries of one node's maps."""

    names: Mapping[NameKey, NameRow]
    frontends: Mapping[Family, Mapping[FrontendKey, FrontendRow]]
    services: Mapping[int, ServiceRow]
    slots: Mapping[int, SlotRow]
    backends: Mapping[Family, Mapping[int, BackendRow]]


_EMPTY = ServiceRow(cluster=0, local=0)


@dataclass(frozen=True, slots=True)
class Held:
    """One Service port as packets find it. odd: what contradicts itself, in words."""

    id: int
    cluster: Places
    local: Places
    odd: tuple[str, ...] = ()


def places(word: int) -> range:
    """The places of `slots` that a backend set covers."""
    base = word >> 36
    return range(base, base + (word >> 16 & _COUNT_MASK))


def follow(tables: Tables) -> dict[ServiceName, Held]:
    """All Service ports that have a name."""
    found: dict[ServiceName, Held] = {}
    for key, row in tables.names.items():
        if key.kind != NameKind.SERVICE:
            continue
        try:
            name = ServiceName.parse(row.text)
        except ValueError:
            continue
        # A row of zeros reads as none: a Service port without endpoints or flags.
        service = tables.services.get(key.id, _EMPTY)
        odd: list[str] = []
        cluster = _members(tables, name, key.id, service.cluster, odd)
        local = _members(tables, name, key.id, service.local, odd)
        found[name] = Held(key.id, cluster, local, tuple(dict.fromkeys(odd)))
    return found


def _members(
    tables: Tables, name: ServiceName, service_id: int, word: int, odd: list[str]
) -> dict[tuple[IPAddress, int], int]:
    epoch = word & _EPOCH_MASK
    found: dict[tuple[IPAddress, int], int] = {}
    for place in places(word):
        slot = tables.slots.get(place)
        if slot is None or slot.epoch != epoch:
            odd.append(f"slot {place} is of another epoch")
            continue
        row = tables.backends[name.family].get(slot.backend_id)
        if row is None:
            odd.append(f"slot {place} names backend {slot.backend_id}, which is not there")
            continue
        what = f"backend {slot.backend_id} ({endpoint_text(row.address, row.port)})"
        if row.service_id != service_id:
            odd.append(f"{what} says it is of Service id {row.service_id}, not {service_id}")
        if row.protocol != name.protocol:
            odd.append(f"{what} has protocol {row.protocol}")
        if not row.flags & BackendFlag.SELECTABLE:
            odd.append(f"{what} is in the set and may not be chosen (flags {int(row.flags)})")
        found[row.address, row.port] = int(row.flags)
    return found


def differences(world: World, node: Node, tables: Tables) -> dict[ServiceName, list[str]]:
    """What one node's maps hold otherwise than the objects say, by Service port."""
    held = follow(tables)
    found: dict[ServiceName, list[str]] = {}
    for service in world.services:
        if not is_served(service):
            continue
        for port in service.ports:
            for address in service.cluster_ips:
                if family_of(address) in world.families:
                    name, words = _compare(world, node, service, port, address, tables, held)
                    if words:
                        found.setdefault(name, []).extend(words)
    return found


def _compare(
    world: World, node: Node, service: Service, port: ServicePort, address: IPAddress,
    tables: Tables, held: Mapping[ServiceName, Held],
) -> tuple[ServiceName, list[str]]:  # fmt: skip
    family = family_of(address)
    text = port.name or str(port.port)
    name = ServiceName(service.namespace, service.name, text, port.protocol, family)
    here = held.get(name)
    frontend = tables.frontends[family].get(FrontendKey(address, port.port, int(port.protocol)))
    at = endpoint_text(address, port.port)
    if here is None or frontend is None:
        return name, [f"{node.name}: the kernel has no frontend {at}"]
    words = list(here.odd)
    if frontend.service_id != here.id:
        words.append(f"frontend {at} leads to Service id {frontend.service_id}, not {here.id}")
    slices = [
        piece
        for piece in world.by_service.get((service.namespace, service.name), ())
        if piece.family is family
    ]
    local = service.internal_local or service.external_local
    chosen = select(slices, port.name, port.protocol, node.name, node.zone, local)
    for policy, wanted, there in (
        ("", chosen.cluster, here.cluster),
        (" for the Local policy", chosen.local, here.local),
    ):
        want = {place: chosen.listed[place] for place in wanted}
        have = {place_of(*key): key for key in there}
        words += [
            f"the kernel has backend {endpoint_text(*have[place])}{policy}, which is no endpoint"
            for place in sorted(have.keys() - want.keys())
        ]
        words += [
            f"the kernel lacks backend {endpoint_text(*want[place][:2])}{policy}"
            for place in sorted(want.keys() - have.keys())
        ]
        words += [
            f"backend {endpoint_text(*have[place])}{policy} has flags {there[have[place]]},"
            f" not {want[place][2]}"
            for place in sorted(have.keys() & want.keys())
            if there[have[place]] != want[place][2]
        ]
    return name, [f"{node.name}: {word}" for word in dict.fromkeys(words)]
