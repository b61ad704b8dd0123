# SPDX-License-Identifier: Apache-2.0
"""`podlane endpoints`: the pods of this node, from the pinned maps. Must not know the agent."""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from cli.render import Column, View, bytes_text, mac, show
from cli.state import Names, Subparsers, Tables, device, map_command, open_tables
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One pod's interface; device is its host veth, empty where this namespace does not have it."""

    pod: str
    addresses: tuple[IPAddress, ...]
    device: str
    ifindex: int
    id: int
    mac: bytes
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int


def rows(tables: Tables) -> list[EndpointView]:
    """All endpoints, both families of one in one row, sorted by pod."""
    names = Names(tables)
    counters = tables.counters(Table("endpoint_counters"))
    pods: dict[int, list[tuple[IPAddress, Any]]] = defaultdict(list)
    host_mac = b""
    for family in Family:
        for _, node in tables.items(Table("node", family)):
            host_mac = node.gateway_mac
        for address, row in tables.items(Table("endpoints", family)):
            pods[row.id].append((address, row))
    found = []
    for id_, entries in pods.items():
        entries.sort(key=lambda e: (e[0].version, e[0]))
        row, counter = entries[0][1], counters.get(id_)
        found.append(
            EndpointView(
                pod=names.endpoint(id_),
                addresses=tuple(address for address, _ in entries),
                device=device(row.ifindex, host_mac),
                ifindex=row.ifindex,
                id=id_,
                mac=row.mac,
                packets_in=counter.to_packets if counter else 0,
                bytes_in=counter.to_bytes if counter else 0,
                packets_out=counter.from_packets if counter else 0,
                bytes_out=counter.from_bytes if counter else 0,
            )
        )
    return sorted(found, key=lambda e: (e.pod, e.id))


VIEW = View(
    columns=(
        Column("POD", lambda e: e.pod),
        Column("ADDRESSES", lambda e: ", ".join(map(str, e.addresses))),
        Column("DEVICE", lambda e: e.device or f"index {e.ifindex}"),
        Column("PACKETS IN", lambda e: str(e.packets_in), number=True),
        Column("BYTES IN", lambda e: bytes_text(e.bytes_in), number=True),
        Column("PACKETS OUT", lambda e: str(e.packets_out), number=True),
        Column("BYTES OUT", lambda e: bytes_text(e.bytes_out), number=True),
        Column("INDEX", lambda e: str(e.ifindex), wide=True, number=True),
        Column("ID", lambda e: str(e.id), wide=True, number=True),
        Column("MAC", lambda e: mac(e.mac), wide=True),
    ),
    nothing="this node has no pods",
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command."""
    return map_command(subparsers, "endpoints", "pods of this node and what they have carried")


def run(args: argparse.Namespace) -> int:
    """Shows them all; 0."""
    show(VIEW, rows(open_tables(args)), args.output)
    return 0
