# SPDX-License-Identifier: Apache-2.0
"""`podlane services`: every Service port of this node, from the pinned maps.

One row a Service port and family, as the kernel has it. Must not know the agent.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from dataclasses import dataclass

from cli.backends import state_word
from cli.render import Column, View, bytes_text, show, socket_text
from cli.state import Names, Subparsers, Tables, bits, map_command, open_tables, protocol_word, text
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table


@dataclass(frozen=True, slots=True)
class FrontendView:
    """One address that a Service is reached at; kind in Kubernetes' words."""

    kind: str
    address: IPAddress
    port: int

    def __str__(self) -> str:
        return socket_text(self.address, self.port)


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One Service port in one family; backends counts its records by state."""

    service: str
    id: int
    family: int
    protocol: str
    frontends: tuple[FrontendView, ...]
    backends: dict[str, int]
    settings: tuple[str, ...]
    affinity_seconds: int
    flows: int
    packets: int
    bytes: int


def rows(tables: Tables) -> list[ServiceView]:
    """All Service ports, sorted by name, family, protocol."""
    names = Names(tables)
    records = dict(tables.items(Table("services")))
    counters = tables.counters(Table("service_counters"))
    found = []
    for family in Family:
        backends: dict[int, Counter[str]] = defaultdict(Counter)
        for _, backend in tables.items(Table("backends", family)):
            backends[backend.service_id][state_word(backend.flags)] += 1
        # The entry that stands for a whole address has no protocol and belongs to no port.
        frontends: dict[tuple[int, int], list[FrontendView]] = defaultdict(list)
        for key, row in tables.items(Table("frontends", family)):
            if key.protocol:
                shown = FrontendView(text("frontend_kind", row.kind), key.address, key.port)
                frontends[row.service_id, key.protocol].append(shown)
        for (id_, protocol), entries in frontends.items():
            record, counter = records.get(id_), counters.get(id_)
            found.append(
                ServiceView(
                    service=names.service(id_),
                    id=id_,
                    family=family,
                    protocol=protocol_word(protocol),
                    frontends=tuple(sorted(entries, key=lambda f: (f.kind, f.address, f.port))),
                    backends=dict(sorted(backends[id_].items())),
                    settings=_settings(record.flags) if record else (),
                    affinity_seconds=record.affinity_seconds if record else 0,
                    flows=counter.flows if counter else 0,
                    packets=counter.packets if counter else 0,
                    bytes=counter.bytes if counter else 0,
                )
            )
    return sorted(found, key=lambda s: (s.service, s.family, s.protocol, s.id))


def _settings(flags: int) -> tuple[str, ...]:
    return tuple(text("service_flag", bit) for bit in bits(flags))


def _backends(service: ServiceView) -> str:
    extra = [f"{n} {state}" for state, n in service.backends.items() if state == "retained"]
    usable = str(service.backends.get("selectable", 0))
    return f"{usable} ({', '.join(extra)})" if extra else usable


def _cluster_ips(service: ServiceView) -> str:
    return ", ".join(str(f) for f in service.frontends if f.kind == "ClusterIP")


def _others(service: ServiceView) -> str:
    return ", ".join(f"{f.kind} {f}" for f in service.frontends if f.kind != "ClusterIP")


VIEW = View(
    columns=(
        Column("SERVICE", lambda s: s.service),
        Column("PROTOCOL", lambda s: s.protocol),
        Column("TYPE", lambda s: ",".join(dict.fromkeys(f.kind for f in s.frontends))),
        Column("CLUSTER-IP", _cluster_ips),
        Column("BACKENDS", _backends),
        Column("FLOWS", lambda s: str(s.flows), number=True),
        Column("PACKETS", lambda s: str(s.packets), number=True),
        Column("BYTES", lambda s: bytes_text(s.bytes), number=True),
        Column("ID", lambda s: str(s.id), wide=True, number=True),
        Column("OTHER FRONTENDS", _others, wide=True),
        Column("SETTINGS", lambda s: ", ".join(s.settings), wide=True),
    ),
    nothing="no Service has a frontend on this node",
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command."""
    return map_command(subparsers, "services", "Services and what they have carried")


def run(args: argparse.Namespace) -> int:
    """Shows them all; 0."""
    show(VIEW, rows(open_tables(args)), args.output)
    return 0
