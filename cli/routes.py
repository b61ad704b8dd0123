# SPDX-License-Identifier: Apache-2.0
"""`podlane routes`: where the programs send each range, from the pinned maps.

The kernel takes the longest prefix that fits. Must not know the agent.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from ipaddress import ip_network

from cli.render import Column, View, show
from cli.state import Subparsers, Tables, bits, device, map_command, open_tables, text, word
from dataplane.model.net import Family, IPAddress, IPNetwork
from dataplane.model.rows import Table


@dataclass(frozen=True, slots=True)
class RouteView:
    """One range. next_hop is None and device empty where the kind has none."""

    prefix: IPNetwork
    kind: str
    meaning: str
    next_hop: IPAddress | None
    device: str
    ifindex: int
    flags: tuple[str, ...]


def rows(tables: Tables) -> list[RouteView]:
    """All routes, IPv4 first, by address, then the shorter prefix first."""
    found = []
    for family in Family:
        macs = {ifindex: uplink.mac for ifindex, uplink in tables.items(Table("uplinks", family))}
        for key, row in tables.items(Table("routes", family)):
            found.append(
                RouteView(
                    prefix=ip_network((key.address, key.prefix)),
                    kind=word("route_kind", row.kind),
                    meaning=text("route_kind", row.kind),
                    next_hop=row.hop,
                    device=device(row.ifindex, macs.get(row.ifindex, b"")),
                    ifindex=row.ifindex,
                    flags=tuple(word("route_flag", bit) for bit in bits(row.flags)),
                )
            )
    return sorted(
        found, key=lambda r: (r.prefix.version, r.prefix.network_address, r.prefix.prefixlen)
    )


def _device(route: RouteView) -> str:
    return route.device or (f"index {route.ifindex}" if route.ifindex else "-")


VIEW = View(
    columns=(
        Column("PREFIX", lambda r: str(r.prefix)),
        Column("KIND", lambda r: r.kind),
        Column("NEXT HOP", lambda r: str(r.next_hop) if r.next_hop else "-"),
        Column("DEVICE", _device),
        Column("FLAGS", lambda r: ",".join(r.flags) or "-"),
        Column("MEANING", lambda r: r.meaning, wide=True),
    ),
    nothing="this node has no routes yet: its agent has not run",
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command."""
    return map_command(subparsers, "routes", "where the datapath sends addresses")


def run(args: argparse.Namespace) -> int:
    """Shows them all; 0."""
    show(VIEW, rows(open_tables(args)), args.output)
    return 0
