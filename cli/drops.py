# SPDX-License-Identifier: Apache-2.0
"""`podlane drops`: packets that went no further, by hook and reason, from the pinned maps.

The words are those beside the reasons in bpf/abi.h. A row whose reason lies with one
destination (no masquerade port was free for it) is followed by a row for each such
destination. Must not know the agent.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from cli.render import Column, View, bytes_text, show, socket_text
from cli.state import (
    Subparsers,
    Tables,
    constant,
    map_command,
    members,
    number,
    open_tables,
    protocol_word,
    text,
    word,
)
from dataplane.model.net import Family
from dataplane.model.rows import Table


@dataclass(frozen=True, slots=True)
class DropView:
    """One reason at one hook and family; name is what bpf/abi.h calls it, reason what it means.

    A row with a destination is a part of all hooks' rows of its reason; its bytes are not counted.
    """

    hook: str
    family: int
    name: str
    reason: str
    packets: int
    bytes: int
    destination: str = ""


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
    found += _exhausted(tables)
    return sorted(found, key=lambda d: (-d.packets, d.hook, d.family, d.name, d.destination))


def _exhausted(tables: Tables) -> list[DropView]:
    reason = number("drop", "DROP_PORTS_EXHAUSTED")
    return [
        DropView(
            hook="",
            family=family,
            name=word("drop", reason),
            reason=text("drop", reason),
            packets=counter.packets,
            bytes=0,
            destination=f"{socket_text(key.address, key.port)}/{protocol_word(key.protocol)}",
        )
        for family in Family
        for key, counter in tables.items(Table("exhausted", family))
    ]


VIEW = View(
    columns=(
        Column("HOOK", lambda d: d.hook),
        Column("FAMILY", lambda d: f"IPv{d.family}"),
        Column("PACKETS", lambda d: str(d.packets), number=True),
        Column("BYTES", lambda d: bytes_text(d.bytes), number=True),
        Column("REASON", lambda d: d.reason + (f": {d.destination}" if d.destination else "")),
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
