# SPDX-License-Identifier: Apache-2.0
"""A pod's host port: one frontend an address of the node, in the map of all frontends."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.agent import hostports
from dataplane.cni.runtime import HostPort
from dataplane.cni.store import Attachment
from dataplane.core.desired import Desired, Limits, Settings
from dataplane.core.plan import FRONTENDS
from dataplane.model.constants import FrontendKind
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import Batch, Problem, Service, ServicePort, ServiceType
from dataplane.model.rows import FrontendKey

SETTINGS = Settings(
    "n1",
    (Family.V4, Family.V6),
    (ip_address("192.0.2.1"), ip_address("192.0.2.7"), ip_address("2001:db8::1")),
)
LIMITS = Limits(frontends=16, services=16, slots=64, backends=16)


def attachment(*ports: HostPort) -> Attachment:
    return Attachment(
        container_id="c1", interface="eth0", veth="pl0", endpoint_id=3, mac=bytes(6), netns="",
        pod="shop/cart-0", mtu=1450, host_ports=ports,
        addresses=(ip_address("10.244.1.2"), ip_address("fd00::2")),
    )  # fmt: skip


def planned(*batches: Batch) -> Desired:
    desired = Desired(SETTINGS, LIMITS, {})
    for batch in (*batches, Batch(synced=True)):
        desired.apply(batch)
        desired.plan(0.0)
    return desired


def frontends(desired: Desired) -> set[tuple[str, int]]:
    tables = desired.tables()
    return {
        (str(key.address), key.port)
        for table in FRONTENDS.values()
        for key, row in tables[table].items()
        if isinstance(key, FrontendKey) and getattr(row, "kind", 0) == FrontendKind.HOST_PORT
    }


def test_without_an_address_it_is_on_all_of_the_nodes() -> None:
    one = attachment(HostPort(Protocol.TCP, 80, 8080))
    desired = planned(hostports.published(one, "n1"))
    own = {("192.0.2.1", 80), ("192.0.2.7", 80), ("2001:db8::1", 80)}
    assert frontends(desired) == {*own, ("127.0.0.1", 80)}
    assert desired.problems() == ()


def test_with_an_address_it_is_on_that_one() -> None:
    one = attachment(HostPort(Protocol.UDP, 53, 53, ip_address("192.0.2.7")))
    assert frontends(planned(hostports.published(one, "n1"))) == {("192.0.2.7", 53)}


@pytest.mark.parametrize(
    ("asked", "found"),
    [("0.0.0.0", {"192.0.2.1", "192.0.2.7", "127.0.0.1"}), ("::", {"2001:db8::1"})],
)
def test_the_unspecified_address_is_all_of_its_family(asked: str, found: set[str]) -> None:
    one = attachment(HostPort(Protocol.TCP, 80, 80, ip_address(asked)))
    assert frontends(planned(hostports.published(one, "n1"))) == {(a, 80) for a in found}


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.8.9.10", "::1"])
def test_loopback_is_this_nodes_own(asked: str) -> None:
    one = attachment(HostPort(Protocol.TCP, 80, 80, ip_address(asked)))
    desired = planned(hostports.published(one, "n1"))
    assert frontends(desired) == {(asked, 80)}
    assert desired.problems() == ()


@pytest.mark.parametrize("asked", ["8.8.8.8", "2001:db8::8", "::ffff:127.0.0.1", "::1%lo"])
def test_what_is_not_this_nodes_own_is_not_taken_over_and_named(asked: str) -> None:
    one = attachment(HostPort(Protocol.UDP, 53, 53, ip_address(asked)))
    desired = planned(hostports.published(one, "n1"))
    assert frontends(desired) == set()
    (key,) = hostports.services(one)
    reason = f"{ip_address(asked)} is not an address of this node"
    assert desired.problems() == (Problem(str(key), "hostIP", reason),)


def test_it_follows_an_address_that_comes_to_the_node_and_goes() -> None:
    one = attachment(HostPort(Protocol.TCP, 80, 80, ip_address("192.0.2.9")))
    desired = planned(hostports.published(one, "n1"))
    came = replace(SETTINGS, addresses=(*SETTINGS.addresses, ip_address("192.0.2.9")))
    for settings, found in ((came, {("192.0.2.9", 80)}), (SETTINGS, set())):
        desired.configure(settings)
        desired.plan(0.0)
        assert frontends(desired) == found
        assert bool(desired.problems()) != bool(found)


def test_withdrawn_nothing_of_it_is_left() -> None:
    one = attachment(HostPort(Protocol.TCP, 80, 8080))
    desired = planned(hostports.published(one, "n1"), Batch(synced=True))
    desired.apply(hostports.withdrawn(one, "n1"))
    desired.plan(0.0)
    assert all(not rows for rows in desired.tables().values())


def test_a_services_frontend_goes_before_it_and_is_named() -> None:
    taken = Service(
        "shop", "web", ServiceType.NODE_PORT, (ip_address("10.96.0.1"),),
        (ServicePort("http", Protocol.TCP, 80, 30080),), families=(Family.V4,),
    )  # fmt: skip
    one = attachment(HostPort(Protocol.TCP, 30080, 80))
    desired = planned(Batch((taken,)), hostports.published(one, "n1"))
    (key,) = hostports.services(one)
    reasons = [p.reason for p in desired.problems() if p.object == str(key)]
    assert reasons == ["192.0.2.1:30080/TCP is taken by Service shop/web"]
