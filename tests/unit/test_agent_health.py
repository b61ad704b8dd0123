# SPDX-License-Identifier: Apache-2.0
"""What a node's health answers are made of, and who has a port. Servers: tests/network/test_health.py."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.agent.health import Vitals
from dataplane.core.desired import Desired, Limits, Settings
from dataplane.kernel import ports
from dataplane.model.errors import TableFull
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

KEY = ("shop", "cart")
SERVICE = Service(
    *KEY,
    ServiceType.LOAD_BALANCER,
    (ip_address("10.96.0.1"),),
    (ServicePort("http", Protocol.TCP, 80),),
    external_local=True,
    health_check_node_port=30200,
)
SLICE = EndpointSlice(
    "shop",
    "cart-1",
    "cart",
    Family.V4,
    (SlicePort("http", Protocol.TCP, 8080),),
    (SliceEndpoint(ip_address("10.244.1.1"), node_name="one"),),
)
FULL = "the map is full", "raise mapSizes"


@pytest.fixture
def vitals() -> Vitals:
    settings = Settings("one", tuple(Family), (ip_address("192.0.2.1"),))
    desired = Desired(settings, Limits(64, 64, 64, 64), {})
    desired.apply(Batch((SERVICE, SLICE), (), True))
    return Vitals(desired)


def statuses(vitals: Vitals) -> tuple[int, ...]:
    """Of the Service, /healthz and /livez."""
    nodes = (vitals.of_node("/healthz"), vitals.of_node("/livez"))
    return vitals.of_service(KEY, Family.V4).status, *(one.status for one in nodes if one)


class TestVitals:
    def test_nothing_is_healthy_before_all_is_written(self, vitals: Vitals) -> None:
        assert statuses(vitals) == (503, 503, 503)
        assert vitals.of_service(KEY, Family.V4).body["serviceProxyHealthy"] is False
        vitals.written(False, ())
        assert statuses(vitals) == (503, 503, 503)
        vitals.written(True, ())
        assert statuses(vitals) == (200, 200, 200)

    def test_a_refused_write_makes_the_datapath_stale_until_the_next_start(
        self, vitals: Vitals
    ) -> None:
        vitals.written(True, (TableFull("frontends_4: x", *FULL),))
        vitals.written(True, ())
        assert statuses(vitals) == (503, 503, 503)
        assert vitals.of_service(KEY, Family.V4).body["localEndpoints"] == 1

    def test_a_name_without_room_makes_nothing_stale(self, vitals: Vitals) -> None:
        vitals.written(True, (TableFull("names: x", *FULL),))
        assert statuses(vitals) == (200, 200, 200)

    def test_a_node_that_is_being_deleted_is_alive_and_takes_no_traffic(
        self, vitals: Vitals
    ) -> None:
        vitals.written(True, ())
        vitals.own = Node("one", deleting=True)
        assert statuses(vitals) == (200, 503, 200)

    def test_the_count_is_that_of_the_moment(self, vitals: Vitals) -> None:
        vitals.written(True, ())
        gone = replace(SLICE, endpoints=())
        vitals.desired.apply(Batch((gone,)))
        assert vitals.of_service(KEY, Family.V4).status == 503

    def test_there_is_no_other_page(self, vitals: Vitals) -> None:
        assert vitals.of_node("/") is None


class TestHealthChecked:
    def test_services_come_and_go(self, vitals: Vitals) -> None:
        desired = vitals.desired
        assert list(desired.health_checked()) == [KEY]
        desired.apply(Batch((replace(SERVICE, health_check_node_port=0),)))
        assert not desired.health_checked()
        desired.apply(Batch((SERVICE,)))
        desired.apply(Batch((), (SERVICE.key,)))
        assert not desired.health_checked()


class TestPorts:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_the_process_that_listens_is_named(self, host: str) -> None:
        inet6 = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=inet6) as held:
            assert f"(pid {os.getpid()})" in ports.listener(held.getsockname()[1])

    def test_a_port_that_nobody_listens_at(self) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            assert ports.listener(held.getsockname()[1]).endswith("not to be seen from here")
