# SPDX-License-Identifier: Apache-2.0
"""`podlane drops`: packets that went no further, by hook and reason, from the pinned maps.

The words are those beside the reasons in bpf/abi.h. Must not know the agent.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from cli.render import Column, View, bytes_text, show
from cli.state import Subparsers, Tables, constant, map_command, members, open_tables, text, word
from dataplane.model.net import Family
from dataplane.model.rows import Table


@dataclass(frozen=True, slots=True)
class DropView:
    """One reason at one hook and family; name is what bpf/abi.h calls it, reason what it means."""

    hook: str
    family: int
    name: str
    reason: str
    packets: int
    bytes: int


def rows(tables: Tables) -> list[DropView]:
    """Every reason at every hook, most packets first."""
    found = []
    places = int(constant("DROP_MAX"))
    for family in Family:
        counters = tables.counters(Table("drops", family))
        for hook in members("hook"):
            for drop in members("drop"):
                counter = counters.get(hook * places + drop)
                found.append(
                    DropView(
                        hook=word("hook", hook),
                        family=family,
                        name=word("drop", drop),
                        reason=text("drop", drop),
                        packets=counter.packets if counter else 0,
                        bytes=counter.bytes if counter else 0,
                    )
                )
    return sorted(found, key=lambda d: (-d.packets, d.hook, d.family, d.name))


VIEW = View(
    columns=(
        Column("HOOK", lambda d: d.hook),
        Column("FAMILY", lambda d: f"IPv{d.family}"),
        Column("PACKETS", lambda d: str(d.packets), number=True),
        Column("BYTES", lambda d: bytes_text(d.bytes), number=True),
        Column("REASON", lambda d: d.reason),
        Column("NAME", lambda d: d.name, wide=True),
    ),
    nothing="nothing was dropped",
    plain=lambda d: d.packets > 0,
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command."""
    return map_command(subparsers, "drops", "packets that went no further, by reason")


def run(args: argparse.Namespace) -> int:
    """Shows them all; 0, whatever was dropped."""
    show(VIEW, rows(open_tables(args)), args.output)
    return 0
