# SPDX-License-Identifier: Apache-2.0
"""`podlane backends`: every backend record of this node, from the pinned maps.

A gone backend keeps its record until its id is reused, so that its flows are refused; the short
table leaves it out. Must not know the agent.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from cli.render import Column, View, bytes_text, show, socket_text
from cli.state import Names, Subparsers, Tables, map_command, open_tables, protocol_word
from dataplane.model.constants import BackendFlag
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table

GONE = "gone"


@dataclass(frozen=True, slots=True)
class BackendView:
    """One address:port of one Service port. state is selectable, retained or gone."""

    service: str
    address: IPAddress
    port: int
    protocol: str
    state: str
    local: bool
    serving: bool
    id: int
    service_id: int
    generation: int
    flows: int
    packets: int
    bytes: int


def state_word(flags: int) -> str:
    """What a backend with these flags may still be sent: new flows, old ones, nothing."""
    if flags & BackendFlag.SELECTABLE:
        return "selectable"
    return "retained" if flags else GONE


def rows(tables: Tables) -> list[BackendView]:
    """All backends, sorted by Service, family, address, port."""
    names = Names(tables)
    found = []
    for family in Family:
        counters = tables.counters(Table("backend_counters", family))
        for id_, row in tables.items(Table("backends", family)):
            counter = counters.get(id_)
            found.append(
                BackendView(
                    service=names.service(row.service_id),
                    address=row.address,
                    port=row.port,
                    protocol=protocol_word(row.protocol),
                    state=state_word(row.flags),
                    local=bool(row.flags & BackendFlag.LOCAL),
                    serving=bool(row.flags & BackendFlag.SERVING),
                    id=id_,
                    service_id=row.service_id,
                    generation=row.generation,
                    flows=counter.flows if counter else 0,
                    packets=counter.packets if counter else 0,
                    bytes=counter.bytes if counter else 0,
                )
            )
    return sorted(found, key=lambda b: (b.service, b.address.version, b.address, b.port, b.id))


VIEW = View(
    columns=(
        Column("SERVICE", lambda b: b.service),
        Column("ADDRESS", lambda b: socket_text(b.address, b.port)),
        Column("PROTOCOL", lambda b: b.protocol),
        Column("STATE", lambda b: b.state),
        Column("NODE", lambda b: "this" if b.local else "other"),
        Column("FLOWS", lambda b: str(b.flows), number=True),
        Column("PACKETS", lambda b: str(b.packets), number=True),
        Column("BYTES", lambda b: bytes_text(b.bytes), number=True),
        Column("SERVING", lambda b: "yes" if b.serving else "no", wide=True),
        Column("ID", lambda b: str(b.id), wide=True, number=True),
        Column("GENERATION", lambda b: str(b.generation), wide=True, number=True),
    ),
    nothing="no Service has a backend",
    plain=lambda b: b.state != GONE,
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command."""
    return map_command(subparsers, "backends", "backends of Services and what they have carried")


def run(args: argparse.Namespace) -> int:
    """Shows them all; 0."""
    show(VIEW, rows(open_tables(args)), args.output)
    return 0
