# SPDX-License-Identifier: Apache-2.0
"""What the map commands print, held against golden files.

One small node: a dual-stack Service in use, a UDP one with a draining backend, two pods, flows in
every state. `UPDATE_GOLDEN=1 pytest tests/unit/test_cli_maps.py` writes the files anew: read the
difference before it is committed.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cli import backends, drops, endpoints, flows, render, routes, services
from dataplane.abi.layout import abi
from dataplane.model.constants import (
    BackendFlag,
    FrontendKind,
    NameKind,
    RouteFlag,
    RouteKind,
    ServiceFlag,
)
from dataplane.model.flow import Counter, EndpointCounter, Flow, ServiceCounter
from dataplane.model.net import Family
from dataplane.model.rows import (
    BackendRow,
    EndpointRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    RouteKey,
    RouteRow,
    ServiceRow,
    Table,
    UplinkRow,
)

GOLDEN = Path(__file__).parent / "golden"
NOW_NS = 1_000_000_000_000
WEB_4, WEB_6, DNS_4 = 1, 2, 3
USABLE = BackendFlag.LISTED | BackendFlag.SERVING | BackendFlag.SELECTABLE
DRAINING = BackendFlag.LISTED | BackendFlag.SERVING
GONE = 0
UPLINK_MAC = bytes.fromhex("02aabbccdd99")


class Shelf:
    """Tables in memory: what `kernel.maps.Maps` gives, without a kernel."""

    def __init__(self, tables: Mapping[Table, Mapping[Any, Any]]) -> None:
        self._tables = tables

    def items(self, table: Table) -> Iterable[tuple[Any, Any]]:
        return self._tables.get(table, {}).items()

    def counters(self, table: Table) -> Mapping[int, Any]:
        return self._tables.get(table, {})


def number(enum: str, member: str) -> int:
    return int(abi(Family.V4).enum(enum)[member])


def half(
    protocol: int,
    ends: tuple[str, int, str, int, str, int, str, int],
    *,
    reply: bool = False,
    seen: int = 0,
    state: tuple[str, ...] = (),
    service: int = 0,
    packets: int = 1,
) -> Flow:
    client, client_port, frontend, frontend_port, source, source_port, backend, backend_port = ends
    return Flow(
        client=ip_address(client), client_port=client_port,
        frontend=ip_address(frontend), frontend_port=frontend_port,
        source=ip_address(source), source_port=source_port,
        backend=ip_address(backend), backend_port=backend_port,
        protocol=protocol, service_id=service, backend_id=1 if service else 0,
        generation=7 if service else 0, last_seen=NOW_NS - seen, packets=packets,
        bytes=packets * 100, flags=number("flow_flag", "FLOW_REPLY") if reply else 0,
        state=sum(number("flow_state", member) for member in state),
        ifindex=0, identity=0, version=1,
    )  # fmt: skip


def drop_place(hook: str, reason: str) -> int:
    return number("hook", hook) * abi(Family.V4).constant("DROP_MAX") + number("drop", reason)


def node() -> Shelf:
    """The node that every golden file shows."""
    v4, v6 = Family.V4, Family.V6
    a = ip_address
    to_service = ("10.244.1.5", 40000, "10.96.0.10", 80, "10.244.1.5", 40000, "10.244.2.7", 8080)
    to_world = ("10.244.1.5", 40001, "192.0.2.9", 443, "172.18.0.2", 61001, "192.0.2.9", 443)
    to_pod = ("fd00:1::5", 5353, "fd00:2::7", 53, "fd00:1::5", 5353, "fd00:2::7", 53)
    ping = ("10.244.1.5", 77, "10.244.2.7", 77, "10.244.1.5", 77, "10.244.2.7", 77)
    return Shelf(
        {
            Table("names"): {
                NameKey(NameKind.SERVICE, WEB_4): NameRow("shop/web:http/TCP/4"),
                NameKey(NameKind.SERVICE, WEB_6): NameRow("shop/web:http/TCP/6"),
                NameKey(NameKind.ENDPOINT, 1): NameRow("shop/web-0"),
            },
            Table("services"): {
                WEB_4: ServiceRow(0, 0, ServiceFlag.EXTERNAL_LOCAL, 0),
                WEB_6: ServiceRow(0, 0, ServiceFlag.EXTERNAL_LOCAL, 0),
                DNS_4: ServiceRow(0, 0, ServiceFlag.AFFINITY, 10800),
            },
            Table("service_counters"): {WEB_4: ServiceCounter(12, 3400, 5_600_000)},
            Table("frontends", v4): {
                FrontendKey(a("10.96.0.10"), 0, 0): FrontendRow(WEB_4, FrontendKind.ADDRESS),
                FrontendKey(a("10.96.0.10"), 80, 6): FrontendRow(WEB_4, FrontendKind.CLUSTER_IP),
                FrontendKey(a("172.18.0.2"), 30080, 6): FrontendRow(WEB_4, FrontendKind.NODE_PORT),
                FrontendKey(a("10.96.0.53"), 53, 17): FrontendRow(DNS_4, FrontendKind.CLUSTER_IP),
            },
            Table("frontends", v6): {
                FrontendKey(a("fd00:96::10"), 80, 6): FrontendRow(WEB_6, FrontendKind.CLUSTER_IP),
            },
            Table("backends", v4): {
                1: BackendRow(7, a("10.244.2.7"), WEB_4, 8080, 6, USABLE),
                2: BackendRow(8, a("10.244.1.6"), WEB_4, 8080, 6, USABLE | BackendFlag.LOCAL),
                3: BackendRow(9, a("10.244.2.10"), WEB_4, 8080, 6, GONE),
                4: BackendRow(3, a("10.244.2.53"), DNS_4, 5353, 17, DRAINING),
            },
            Table("backends", v6): {
                1: BackendRow(5, a("fd00:2::7"), WEB_6, 8080, 6, USABLE),
            },
            Table("backend_counters", v4): {1: ServiceCounter(9, 3000, 5_000_000)},
            Table("node", v4): {0: SimpleNamespace(gateway_mac=bytes.fromhex("0a706c000002"))},
            Table("endpoints", v4): {
                a("10.244.1.6"): EndpointRow(4000012, 1, bytes.fromhex("02aabbccdd01")),
                a("10.244.1.5"): EndpointRow(4000013, 2, bytes.fromhex("02aabbccdd02")),
            },
            Table("endpoints", v6): {
                a("fd00:1::6"): EndpointRow(4000012, 1, bytes.fromhex("02aabbccdd01")),
            },
            Table("endpoint_counters"): {
                1: EndpointCounter(to_packets=10, to_bytes=1200, from_packets=8, from_bytes=900)
            },
            Table("uplinks", v4): {4000002: UplinkRow(a("172.18.0.2"), 1500, UPLINK_MAC)},
            Table("routes", v4): {
                RouteKey(0, a("0.0.0.0")): RouteRow(
                    RouteKind.WORLD, RouteFlag.MASQUERADE, 4000002, a("172.18.0.1")
                ),
                RouteKey(24, a("10.244.1.0")): RouteRow(RouteKind.LOCAL, RouteFlag.CLUSTER),
                RouteKey(24, a("10.244.2.0")): RouteRow(
                    RouteKind.TUNNEL, RouteFlag.CLUSTER, 0, a("172.18.0.3")
                ),
                RouteKey(16, a("10.244.0.0")): RouteRow(RouteKind.UNREACHABLE, RouteFlag.CLUSTER),
            },
            Table("routes", v6): {
                RouteKey(64, a("fd00:2::")): RouteRow(
                    RouteKind.TUNNEL, RouteFlag.CLUSTER, 0, a("172.18.0.3")
                ),
            },
            Table("flows", v4): {
                "service, original": half(
                    6, to_service, seen=250_000_000, state=("FLOW_SEEN_REPLY",), service=WEB_4,
                    packets=6,
                ),
                "service, reply": half(6, to_service, reply=True, seen=900_000_000, packets=5,
                    state=("FLOW_FIN_BACKEND",), service=WEB_4),
                "masqueraded": half(6, to_world, seen=70_000_000_000),
                "ping, original": half(1, ping, state=("FLOW_SEEN_REPLY",)),
                "ping, reply": half(1, ping, reply=True),
            },
            Table("flows", v6): {"evicted": half(17, to_pod, reply=True, seen=8_000_000_000_00)},
            Table("drops", v4): {
                drop_place("HOOK_FROM_POD", "DROP_NO_BACKEND"): Counter(packets=4, bytes=240),
                drop_place("HOOK_FROM_UPLINK", "DROP_NO_FLOW"): Counter(packets=1200, bytes=72_000),
            },
            Table("drops", v6): {
                drop_place("HOOK_FROM_POD", "DROP_SPOOFED_SOURCE"): Counter(packets=4, bytes=400),
            },
        }
    )  # fmt: skip


VIEWS: dict[str, tuple[render.View, Callable[[Shelf], list[Any]]]] = {
    "services": (services.VIEW, services.rows),
    "backends": (backends.VIEW, backends.rows),
    "endpoints": (endpoints.VIEW, endpoints.rows),
    "routes": (routes.VIEW, routes.rows),
    "flows": (flows.VIEW, lambda tables: flows.rows(tables, NOW_NS)),
    "drops": (drops.VIEW, drops.rows),
}


def printed(name: str, output: str, tables: Shelf) -> tuple[str, str]:
    """What a command writes to stdout and to stderr."""
    view, rows = VIEWS[name]
    out, words = io.StringIO(), io.StringIO()
    render.show(view, rows(tables), output, out, words)
    return out.getvalue(), words.getvalue()


# A row for every reason of abi.h would change with each new one: a test of its own counts them.
SHOWN = [(name, output) for name in VIEWS for output in ("table", "wide", "json")]
SHOWN = [shown for shown in SHOWN if shown not in (("drops", "wide"), ("drops", "json"))]


@pytest.mark.parametrize(("name", "output"), SHOWN)
def test_what_people_and_programs_read_is_as_in_the_golden_file(name: str, output: str) -> None:
    text, words = printed(name, output, node())
    golden = GOLDEN / f"{name}.{output}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
    assert words == ""


@pytest.mark.parametrize("name", VIEWS)
def test_yaml_says_what_json_says(name: str) -> None:
    as_json, _ = printed(name, "json", node())
    as_yaml, _ = printed(name, "yaml", node())
    assert yaml.safe_load(as_yaml) == json.loads(as_json)


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "drops"])
def test_an_empty_node_prints_an_empty_json_list_and_nothing_else(name: str) -> None:
    assert printed(name, "json", Shelf({})) == ("[]\n", "")


@pytest.mark.parametrize("name", VIEWS)
def test_an_empty_node_says_so_on_stderr(name: str) -> None:
    out, words = printed(name, "table", Shelf({}))
    assert out == ""
    assert words == VIEWS[name][0].nothing + "\n"


def test_every_drop_reason_is_listed_at_every_hook_when_asked_for() -> None:
    out, _ = printed("drops", "json", Shelf({}))
    rows = json.loads(out)
    reasons, hooks = abi(Family.V4).enum("drop"), abi(Family.V4).enum("hook")
    assert len(rows) == (len(reasons) - 1) * (len(hooks) - 1) * len(Family)
    assert all(row["packets"] == 0 and row["reason"] for row in rows)


def test_output_does_not_depend_on_the_order_in_the_kernel() -> None:
    there = node()
    back = Shelf({t: dict(reversed(list(rows.items()))) for t, rows in there._tables.items()})
    for name in VIEWS:
        assert printed(name, "json", back) == printed(name, "json", there)


def test_a_flow_with_one_half_evicted_says_which_one_is_left() -> None:
    rows = {row.protocol: row for row in flows.rows(node(), NOW_NS)}
    assert rows["UDP"].halves == "reply"
    assert rows["ICMP"].halves == "both"


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", VIEWS)
def test_a_narrow_terminal_folds_cells_and_cuts_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    view, rows = VIEWS[name]
    screen = Terminal()
    render.show(view, rows(node()), "table", screen, io.StringIO())
    assert "…" not in screen.getvalue()
    assert max(map(len, screen.getvalue().splitlines())) <= 60
