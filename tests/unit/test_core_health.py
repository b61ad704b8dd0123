# SPDX-License-Identifier: Apache-2.0
"""Health answers: what is counted, what is said, where, and with which status."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest

from dataplane.core.frontends import Settings
from dataplane.core.health import (
    Liveness,
    health_families,
    health_listeners,
    local_endpoints,
    node_healthz,
    node_livez,
    service_health,
)
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointSlice,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

SETTINGS = Settings(
    "one",
    tuple(Family),
    tuple(map(ip_address, ("192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8:5::1"))),
)
SERVICE = Service(
    "shop",
    "cart",
    ServiceType.LOAD_BALANCER,
    (ip_address("10.96.0.1"), ip_address("fd00:96::1")),
    (ServicePort("http", Protocol.TCP, 80),),
    external_local=True,
    health_check_node_port=30200,
)


def endpoint(address: str, **facts: object) -> SliceEndpoint:
    return replace(SliceEndpoint(ip_address(address), node_name="one"), **facts)  # type: ignore[arg-type]


def piece(name: str, *endpoints: SliceEndpoint, port: str = "http") -> EndpointSlice:
    ports = (SlicePort(port, Protocol.TCP, 80),) if port else ()
    return EndpointSlice("shop", name, "cart", Family.V4, ports, endpoints)


@pytest.mark.parametrize(
    ("slices", "count"),
    [
        pytest.param([], 0, id="no slice"),
        pytest.param(
            [piece("a", endpoint("10.0.0.1"), endpoint("10.0.0.2"))], 2, id="two that are ready"
        ),
        pytest.param(
            [piece("a", endpoint("10.0.0.1")), piece("b", endpoint("10.0.0.1"), port="admin")],
            1, id="one address with two ports",
        ),
        pytest.param([piece("a", endpoint("10.0.0.1", node_name="two"))], 0, id="elsewhere"),
        pytest.param([piece("a", endpoint("10.0.0.1", node_name=""))], 0, id="without a node"),
        pytest.param(
            [piece("a", endpoint("10.0.0.1", ready=False, serving=True, terminating=True))],
            0, id="draining",
        ),
        pytest.param([piece("a", endpoint("10.0.0.1"), port="")], 0, id="a slice without ports"),
    ],
)  # fmt: skip
def test_ready_addresses_on_this_node_are_counted_once(
    slices: list[EndpointSlice], count: int
) -> None:
    assert local_endpoints(slices, Family.V4, "one") == count
    assert local_endpoints(slices, Family.V6, "one") == 0


@pytest.mark.parametrize(
    ("count", "healthy", "status"), [(2, True, 200), (0, True, 503), (2, False, 503)]
)
def test_a_service_is_healthy_here_with_endpoints_and_a_datapath_that_is_up_to_date(
    count: int, healthy: bool, status: int
) -> None:
    answer = service_health("shop", "cart", count, healthy)
    assert answer.status == status
    assert answer.headers == {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": str(count),
    }
    word = str(healthy).lower()
    assert answer.text == (
        '{\n\t"service": {\n\t\t"namespace": "shop",\n\t\t"name": "cart"\n\t},\n'
        f'\t"localEndpoints": {count},\n\t"serviceProxyHealthy": {word}\n}}'
    )


@pytest.mark.parametrize(
    ("healthy", "deleting", "healthz", "livez"),
    [(True, False, 200, 200), (True, True, 503, 200), (False, False, 503, 503)],
)
def test_a_node_that_is_being_deleted_lives_but_wants_no_traffic(
    healthy: bool, deleting: bool, healthz: int, livez: int
) -> None:
    updated = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
    now = datetime(2026, 11, 24, 10, 1, 2, 345678, tzinfo=UTC)
    before, at = "2026-11-24T10:00:00.000000Z", "2026-11-24T10:01:02.345678Z"
    live = Liveness(healthy, updated, (Family.V6, Family.V4))
    answer = node_healthz(live, deleting, now)
    assert answer.status == healthz
    word, eligible = json.dumps(healthy), json.dumps(not deleting)
    of_family = f'{{"lastUpdated":"{before}","healthy":{word}}}'
    families = f'"healthy":{word},"status":{{"IPv4":{of_family},"IPv6":{of_family}}}}}'
    last = at if healthz == 200 else before
    assert answer.text == (
        f'{{"lastUpdated":"{last}","currentTime":"{at}","nodeEligible":{eligible},{families}'
    )
    lives = node_livez(live, now)
    assert lives.status == livez
    last = at if livez == 200 else before
    assert lives.text == f'{{"lastUpdated":"{last}","currentTime":"{at}",{families}'


@pytest.mark.parametrize(
    ("ranges", "where"),
    [
        pytest.param([], ["192.0.2.1", "[2001:db8::1]"], id="the primary addresses"),
        pytest.param(
            ["198.51.100.0/24"], ["198.51.100.1", "[2001:db8::1]"], id="a range of one family"
        ),
        pytest.param(
            ["192.0.0.0/3", "::/1"],
            ["192.0.2.1", "198.51.100.1", "[::1]", "[2001:db8::1]", "[2001:db8:5::1]"],
            id="all that are in the ranges",
        ),
        pytest.param(["127.0.0.0/8"], ["127.0.0.1", "[2001:db8::1]"], id="loopback"),
        pytest.param(["10.0.0.0/8"], ["[2001:db8::1]"], id="a range that the node is not in"),
        pytest.param(["0.0.0.0/0", "::/0"], ["0.0.0.0", "0.0.0.0"], id="all addresses"),
    ],
)
def test_it_is_asked_for_where_node_ports_are(ranges: list[str], where: list[str]) -> None:
    settings = replace(SETTINGS, node_port_ranges=tuple(map(ip_network, ranges)))
    found = health_listeners(SERVICE, settings)
    assert [one.text for one in found] == [f"{host}:30200" for host in where]


def test_nothing_is_answered_for_who_does_not_ask() -> None:
    assert health_families(SERVICE, SETTINGS) == (Family.V4, Family.V6)
    assert health_families(SERVICE, replace(SETTINGS, families=(Family.V6,))) == (Family.V6,)
    for service in (
        replace(SERVICE, health_check_node_port=0),
        replace(SERVICE, skipped="service.kubernetes.io/service-proxy-name"),
    ):
        assert health_listeners(service, SETTINGS) == ()
