# SPDX-License-Identifier: Apache-2.0
"""`podlane flows`: the flows that this node's programs remember, from the pinned maps.

The kernel holds a flow as two entries, original and reply; one row shows both. Must not know
the agent.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from cli.render import Column, View, bytes_text, show, socket_text
from cli.state import Names, Subparsers, Tables, map_command, number, open_tables, protocol_word
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table


@dataclass(frozen=True, slots=True)
class FlowView:
    """One flow: client to frontend, as rewritten source to backend.

    Without a Service frontend and backend are equal; ports of ICMP are the echo identifier.
    halves is "both", or the one that the kernel has not evicted: "original" or "reply".
    idle_seconds is the time since the last packet of either direction.
    """

    protocol: str
    client: IPAddress
    client_port: int
    frontend: IPAddress
    frontend_port: int
    source: IPAddress
    source_port: int
    backend: IPAddress
    backend_port: int
    service: str
    state: str
    halves: str
    idle_seconds: float
    packets: int
    bytes: int
    reply_packets: int
    reply_bytes: int
    generation: int


def rows(tables: Tables, now_ns: int) -> list[FlowView]:
    """All flows, IPv4 first, by client, frontend and backend. now_ns is of CLOCK_MONOTONIC."""
    names = Names(tables)
    found = []
    for family in Family:
        halves: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
        for _, entry in tables.items(Table("flows", family)):
            halves[_identity(entry)].append(entry)
        found += [_merge(entries, names, now_ns) for entries in halves.values()]
    return sorted(
        found,
        key=lambda f: (
            (f.client.version, f.client, f.client_port),
            (f.frontend, f.frontend_port, f.protocol, f.backend, f.backend_port),
        ),
    )


def _identity(entry: Any) -> tuple[Any, ...]:
    """What both halves of a flow have in common and no other flow has."""
    return (
        (entry.protocol, entry.client, entry.client_port, entry.frontend, entry.frontend_port),
        (entry.source, entry.source_port, entry.backend, entry.backend_port),
    )


def _merge(entries: list[Any], names: Names, now_ns: int) -> FlowView:
    reply_bit = number("flow_flag", "FLOW_REPLY")
    original = next((e for e in entries if not e.flags & reply_bit), None)
    reply = next((e for e in entries if e.flags & reply_bit), None)
    either = entries[0]
    state = 0
    for entry in entries:
        state |= entry.state
    return FlowView(
        protocol=protocol_word(either.protocol),
        client=either.client,
        client_port=either.client_port,
        frontend=either.frontend,
        frontend_port=either.frontend_port,
        source=either.source,
        source_port=either.source_port,
        backend=either.backend,
        backend_port=either.backend_port,
        service=names.service(either.service_id) if either.service_id else "",
        state=_state(state),
        halves="both" if original and reply else "original" if original else "reply",
        idle_seconds=max(0, now_ns - max(e.last_seen for e in entries)) // 10_000_000 / 100,
        packets=original.packets if original else 0,
        bytes=original.bytes if original else 0,
        reply_packets=reply.packets if reply else 0,
        reply_bytes=reply.bytes if reply else 0,
        generation=either.generation,
    )


def _state(bits: int) -> str:
    """The furthest that a flow has come."""
    closed = number("flow_state", "FLOW_FIN_CLIENT"), number("flow_state", "FLOW_FIN_BACKEND")
    if bits & number("flow_state", "FLOW_RESET"):
        return "reset"
    if all(bits & bit for bit in closed):
        return "closed"
    if any(bits & bit for bit in closed):
        return "closing"
    if bits & number("flow_state", "FLOW_SEEN_REPLY"):
        return "answered"
    return "half open" if bits & number("flow_state", "FLOW_SYN_ANSWERED") else "unanswered"


def _age(flow: FlowView) -> str:
    seconds = flow.idle_seconds
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes = int(seconds) // 60
    return f"{minutes}m" if minutes < 120 else f"{minutes // 60}h"


def _backend(flow: FlowView) -> str:
    direct = (flow.frontend, flow.frontend_port) == (flow.backend, flow.backend_port)
    return "-" if direct else socket_text(flow.backend, flow.backend_port)


def _source(flow: FlowView) -> str:
    kept = (flow.client, flow.client_port) == (flow.source, flow.source_port)
    return "-" if kept else socket_text(flow.source, flow.source_port)


def _state_text(flow: FlowView) -> str:
    return flow.state if flow.halves == "both" else f"{flow.state} ({flow.halves} half only)"


VIEW = View(
    columns=(
        Column("PROTOCOL", lambda f: f.protocol),
        Column("CLIENT", lambda f: socket_text(f.client, f.client_port)),
        Column("TO", lambda f: socket_text(f.frontend, f.frontend_port)),
        Column("HIDDEN AS", _source),
        Column("BACKEND", _backend),
        Column("STATE", _state_text),
        Column("IDLE", _age, number=True),
        Column("PACKETS", lambda f: str(f.packets), number=True),
        Column("REPLIES", lambda f: str(f.reply_packets), number=True),
        Column("SERVICE", lambda f: f.service or "-", wide=True),
        Column("BYTES", lambda f: bytes_text(f.bytes), wide=True, number=True),
        Column("REPLY BYTES", lambda f: bytes_text(f.reply_bytes), wide=True, number=True),
        Column("GENERATION", lambda f: str(f.generation), wide=True, number=True),
    ),
    nothing="no flow is remembered",
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command."""
    return map_command(subparsers, "flows", "flows that the datapath remembers")


def run(args: argparse.Namespace) -> int:
    """Shows them all; 0."""
    show(VIEW, rows(open_tables(args), time.monotonic_ns()), args.output)
    return 0
