# SPDX-License-Identifier: Apache-2.0
"""The small node that the map commands are shown on, as tables in memory.

A dual-stack Service in use, a UDP one with a draining backend, two pods, flows in every state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from dataplane.abi.layout import abi
from dataplane.model.constants import (
    BackendFlag,
    FrontendKind,
    NameKind,
    RouteFlag,
    RouteKind,
    ServiceFlag,
)
from dataplane.model.flow import (
    Counter,
    EndpointCounter,
    ExhaustedKey,
    Flow,
    FlowKey,
    ServiceCounter,
)
from dataplane.model.net import Family
from dataplane.model.rows import (
    BackendRow,
    EndpointRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    NodeRow,
    RouteKey,
    RouteRow,
    ServiceRow,
    Table,
    UplinkRow,
)

NOW_NS = 1_000_000_000_000
WEB_4, WEB_6, DNS_4 = 1, 2, 3
USABLE = BackendFlag.LISTED | BackendFlag.SERVING | BackendFlag.SELECTABLE
DRAINING = BackendFlag.LISTED | BackendFlag.SERVING
GONE = 0
UPLINK_MAC = bytes.fromhex("02aabbccdd99")
NODE = NodeRow(
    router=ip_address("10.244.1.1"), gateway=ip_address("169.254.1.1"), flags=1,
    overlay_ifindex=4000003, vni=7000, hash_seed=1, masquerade_min=61000, masquerade_max=64999,
    vxlan_port=8472, pod_mtu=1450, overlay_mac=bytes.fromhex("0a706c000001"),
    gateway_mac=bytes.fromhex("0a706c000002"), primary=ip_address("192.168.200.1"),
)  # fmt: skip


class Shelf:
    """Tables in memory: what `kernel.maps.Maps` gives, without a kernel."""

    def __init__(self, tables: Mapping[Table, Mapping[Any, Any]]) -> None:
        self.tables = tables

    def items(self, table: Table) -> Iterable[tuple[Any, Any]]:
        return self.tables.get(table, {}).items()

    def counters(self, table: Table) -> Mapping[int, Any]:
        return self.tables.get(table, {})


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


def entries(*halves: Flow) -> dict[FlowKey, Flow]:
    """Halves by the tuple of the packets that they are found by."""
    reply = number("flow_flag", "FLOW_REPLY")
    return {
        FlowKey(f.backend, f.source, f.backend_port, f.source_port, f.protocol)
        if f.flags & reply
        else FlowKey(f.client, f.frontend, f.client_port, f.frontend_port, f.protocol): f
        for f in halves
    }


def drop_place(hook: str, reason: str) -> int:
    return number("hook", hook) * abi(Family.V4).constant("DROP_MAX") + number("drop", reason)


def node() -> Shelf:
    """The node that every golden file shows."""
    v4, v6 = Family.V4, Family.V6
    a = ip_address
    to_service = ("10.244.1.5", 40000, "10.96.0.10", 80, "10.244.1.5", 40000, "10.244.2.7", 8080)
    to_world = ("10.244.1.5", 40001, "192.0.2.9", 443, "172.18.0.2", 61001, "192.0.2.9", 443)
    to_pod = ("fd00:1::5", 5353, "fd00:2::7", 53, "fd00:1::5", 5353, "fd00:2::7", 53)
    from_outside = (
        "192.0.2.7",
        40002,
        "172.18.0.2",
        30080,
        "10.244.1.1",
        61002,
        "10.244.2.7",
        8080,
    )
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
            Table("node", v4): {0: NODE},
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
            Table("flows", v4): entries(
                half(6, to_service, seen=250_000_000, state=("FLOW_SEEN_REPLY",), service=WEB_4,
                    packets=6),
                half(6, to_service, reply=True, seen=900_000_000, state=("FLOW_FIN_BACKEND",),
                    service=WEB_4, packets=5),
                half(6, to_world, seen=70_000_000_000),
                half(6, from_outside),
                half(6, from_outside, reply=True, state=("FLOW_SYN_ANSWERED",)),
                half(1, ping, state=("FLOW_SEEN_REPLY",)),
                half(1, ping, reply=True),
            ),
            Table("flows", v6): entries(half(17, to_pod, reply=True, seen=800_000_000_000)),
            Table("drops", v4): {
                drop_place("HOOK_FROM_POD", "DROP_NO_BACKEND"): Counter(packets=4, bytes=240),
                drop_place("HOOK_FROM_UPLINK", "DROP_NO_FLOW"): Counter(packets=1200, bytes=72_000),
            },
            Table("drops", v6): {
                drop_place("HOOK_FROM_POD", "DROP_SPOOFED_SOURCE"): Counter(packets=4, bytes=400),
            },
            Table("exhausted", v6): {
                ExhaustedKey(ip_address("2001:db8::53"), 53, 17): Counter(packets=9, bytes=0),
            },
        }
    )  # fmt: skip
