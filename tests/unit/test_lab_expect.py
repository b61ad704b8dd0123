# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from dataplane.lab.expect import rows
from dataplane.lab.question import Outcome, Row, SourceKind, waves
from dataplane.lab.world import World, entries, external_hosts
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.objects import (
    EndpointSlice,
    Node,
    Pod,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

V4 = (Family.V4,)


def address(text: str) -> IPAddress:
    return ip_address(text)


def node(number: int) -> Node:
    return Node(
        f"node-{number}",
        (address(f"172.30.0.{10 + number}"),),
        pod_cidrs=(ip_network(f"10.244.{number}.0/24"),),
    )


def pod(name: str, number: int, last: int, host: bool = False) -> Pod:
    at = address(f"172.30.0.{10 + number}") if host else address(f"10.244.{number}.{last}")
    return Pod("shop", name, f"node-{number}", (at,), host_network=host)


NODES = (node(1), node(2))
ASKERS = (pod("a1", 1, 9), pod("a2", 2, 9))
WEB = (pod("web-1", 1, 2), pod("web-2", 2, 2))
HTTP = ServicePort("http", Protocol.TCP, 80, node_port=30080)


def service(type_: ServiceType = ServiceType.CLUSTER_IP) -> Service:
    return Service("shop", "web", type_, (address("10.96.0.1"),), (HTTP,), selector={"app": "web"})


def slice_of(*pods: Pod) -> EndpointSlice:
    endpoints = tuple(
        SliceEndpoint(p.addresses[0], node_name=p.node_name, target=f"shop/{p.name}") for p in pods
    )
    ports = (SlicePort("http", Protocol.TCP, 8080),)
    return EndpointSlice("shop", "web-1", "web", Family.V4, ports, endpoints)


def world(
    one: Service, *backends: Pod, native: bool = False, pods: tuple[Pod, ...] = ASKERS
) -> World:
    everyone = (*pods, *backends)
    return World(
        families=V4,
        native=native,
        nodes=NODES,
        services=(one,),
        slices=(slice_of(*backends),),
        pods=everyone,
        guests={},
        stand_ins={},
        entries=entries(V4, NODES, [one], [slice_of(*backends)]),
    )


def of(found: list[Row], kind: SourceKind) -> list[Row]:
    return [row for row in found if row.source.kind is kind]


def test_a_pod_of_every_node_asks_and_is_seen_by_its_own_address() -> None:
    found = of(rows(world(service(), *WEB)), SourceKind.POD)
    assert [row.source.name for row in found] == ["shop/a1", "shop/a2"]
    for row, last in zip(found, ("10.244.1.9", "10.244.2.9"), strict=True):
        assert row.outcome is Outcome.ANSWERED
        assert {one.pod for one in row.answerers} == {"shop/web-1", "shop/web-2"}
        assert {one.port for one in row.answerers} == {8080}
        assert {one.clients for one in row.answerers} == {frozenset({address(last)})}
        assert row.requests == 32


def test_a_pod_that_reaches_itself_is_seen_as_its_node() -> None:
    found = of(rows(world(service(), *WEB, pods=())), SourceKind.POD)
    clients = {one.pod: one.clients for one in found[0].answerers}
    assert address("10.244.1.1") in clients["shop/web-1"]
    assert clients["shop/web-2"] == {address("10.244.1.2")}


def test_outside_asks_each_nodes_port_and_is_seen_as_the_node() -> None:
    found = of(rows(world(service(ServiceType.NODE_PORT), *WEB)), SourceKind.OUTSIDE)
    assert [(str(row.address), row.number) for row in found] == [
        ("172.30.0.11", 30080),
        ("172.30.0.12", 30080),
    ]
    assert address("10.244.1.1") in found[0].answerers[0].clients
    assert address("172.31.0.10") not in found[0].answerers[0].clients


def test_the_local_policy_keeps_the_client_and_drops_where_no_endpoint_is() -> None:
    local = replace(service(ServiceType.NODE_PORT), external_local=True)
    first, second = of(rows(world(local, WEB[0])), SourceKind.OUTSIDE)
    assert first.answerers[0].clients == {address("172.31.0.10")}
    assert (second.outcome, second.answerers) == (Outcome.DROPPED, ())


def test_a_cluster_ip_is_not_asked_from_outside() -> None:
    assert not of(rows(world(service(), *WEB)), SourceKind.OUTSIDE)


def test_a_service_without_endpoints_must_refuse() -> None:
    found = of(rows(world(service())), SourceKind.POD)
    assert {row.outcome for row in found} == {Outcome.REFUSED}


def test_vxlan_hides_a_pod_from_a_host_pod_of_another_node() -> None:
    host = pod("host", 2, 0, host=True)
    for native, seen in ((False, {"172.30.0.11", "10.244.1.1"}), (True, {"10.244.1.9"})):
        first = of(rows(world(service(), host, native=native)), SourceKind.POD)[0]
        assert {str(a) for a in first.answerers[0].clients} == seen


def test_a_headless_service_has_a_row_for_each_pods_address() -> None:
    headless = replace(service(), type=ServiceType.HEADLESS, cluster_ips=())
    found = of(rows(world(headless, *WEB)), SourceKind.POD)
    assert {row.type for row in found} == {"Headless"}
    assert [str(row.address) for row in found] == ["10.244.1.2", "10.244.2.2"] * 2
    assert all(row.counted is None for row in found)


def test_every_node_asks_every_pod_and_is_seen_by_its_own_address() -> None:
    some = replace(world(service(), *WEB), stand_ins={"shop/web-1": ((Protocol.TCP, 8080),)})
    found = [row for row in of(rows(some), SourceKind.NODE) if row.type == "Pod"]
    assert [(row.source.name, row.name) for row in found] == [
        ("node-1", "web-1"),
        ("node-2", "web-1"),
    ]
    assert address("10.244.2.1") in found[1].answerers[0].clients


def test_a_node_asks_for_all_that_a_service_opens_and_the_external_policy_does_not_bind_it() -> (
    None
):
    local = replace(
        service(ServiceType.LOAD_BALANCER),
        external_local=True,
        load_balancer_ips=(address("198.51.100.1"),),
        external_ips=(address("198.51.100.2"),),
    )
    found = of(rows(world(local, WEB[0])), SourceKind.NODE)
    assert [(row.entry, str(row.address), row.number) for row in found] == [
        (f"node-{n}", to, number)
        for n in (1, 2)
        for to, number in (
            ("10.96.0.1", 80),
            ("198.51.100.2", 80),
            ("198.51.100.1", 80),
            (f"172.30.0.1{n}", 30080),
        )
    ]
    assert {row.outcome for row in found} == {Outcome.ANSWERED}
    assert address("10.244.2.1") in found[-1].answerers[0].clients


def balanced(*ranges: str) -> Service:
    return replace(
        service(ServiceType.LOAD_BALANCER),
        load_balancer_ips=(address("198.51.100.1"),),
        external_ips=(address("198.51.100.2"),),
        source_ranges=tuple(ip_network(one) for one in ranges),
    )


@pytest.mark.parametrize(
    ("ranges", "served"),
    [
        ((), {"pod", "node", "outside"}),
        (("10.244.0.0/16",), {"pod"}),
        (("172.30.0.0/16", "192.0.2.0/24"), {"node"}),
        (("172.31.0.10/32",), {"outside"}),
        (("192.0.2.0/24",), set()),
        (("fd00::/8",), {"pod", "node", "outside"}),
    ],
)
def test_source_ranges_guard_a_balancers_address_from_everybody(
    ranges: tuple[str, ...], served: set[str]
) -> None:
    found = rows(world(balanced(*ranges), *WEB))
    at = [row for row in found if str(row.address) == "198.51.100.1"]
    assert {row.source.kind.value for row in at} == {"pod", "node", "outside"}
    for row in at:
        allowed = row.source.kind.value in served
        assert row.outcome is (Outcome.ANSWERED if allowed else Outcome.SHUT_OUT)
        assert bool(row.answerers) == allowed
    assert {row.outcome for row in found if row not in at} == {Outcome.ANSWERED}


def test_without_endpoints_who_is_in_no_range_is_refused_like_all() -> None:
    at = [row for row in rows(world(balanced("192.0.2.0/24"))) if row.outcome]
    assert {row.outcome for row in at} == {Outcome.REFUSED}


def test_a_pod_is_hidden_from_what_is_open_to_outside_unless_it_is_local() -> None:
    for local in (False, True):
        found = rows(world(replace(balanced(), external_local=local), *WEB))
        doors = [row for row in of(found, SourceKind.POD) if row.address != address("10.96.0.1")]
        assert {row.number for row in doors} == {80, 30080}
        for row in doors:
            own = {address(f"172.30.0.1{row.entry[-1]}"), address(f"10.244.{row.entry[-1]}.1")}
            seen = {address(f"10.244.{row.entry[-1]}.9")} if local else own
            assert {one.clients for one in row.answerers} == {frozenset(seen)}
            assert len(row.answerers) == 2


def test_a_host_pod_asks_for_the_cluster_ip_as_its_node_does() -> None:
    host = pod("host", 2, 0, host=True)
    found = of(rows(world(service(), WEB[0], pods=(*ASKERS, host))), SourceKind.POD)
    (row,) = (row for row in found if row.source.name == "shop/host")
    assert (row.by_socket, row.entry) == (True, "node-2")
    assert address("10.244.2.1") in row.answerers[0].clients


def test_a_balancers_address_goes_to_a_node_with_an_endpoint_under_the_local_policy() -> None:
    local = replace(
        service(ServiceType.LOAD_BALANCER),
        external_local=True,
        load_balancer_ips=(address("198.51.100.1"),),
    )
    assert entries(V4, NODES, [local], [slice_of(WEB[1])]) == {address("198.51.100.1"): "node-2"}


def test_an_endpoint_that_is_no_pod_is_a_host_outside() -> None:
    bank = Pod("", "", "", (address("203.0.113.10"),))
    some = replace(world(service(), bank), pods=ASKERS)
    assert external_hosts(some) == {address("203.0.113.10"): [(Protocol.TCP, 8080)]}
    answerer = of(rows(some), SourceKind.POD)[0].answerers[0]
    assert answerer.pod == "outside"
    assert address("172.30.0.11") in answerer.clients


def test_no_two_rows_of_a_wave_grow_one_counter() -> None:
    found = rows(world(service(ServiceType.NODE_PORT), *WEB))
    for wave in waves(found):
        keys = [(row.entry, row.counted) for row in wave if row.counted]
        assert len(keys) == len(set(keys))
    assert sorted(map(id, found)) == sorted(id(row) for wave in waves(found) for row in wave)
