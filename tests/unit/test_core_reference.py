# SPDX-License-Identifier: Apache-2.0
"""The reference model: each rule by an example that a network engineer can review."""

from __future__ import annotations

import ast
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from dataplane.core import reference
from dataplane.core.reference import (
    Answer,
    Entry,
    Fate,
    FlowQuestion,
    Rewritten,
    World,
    answer,
    fate_of,
    rules,
)
from dataplane.core.reference.frontends import frontends_of
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

HERE, LOCAL, OTHER_LOCAL, REMOTE = "192.0.2.1", "10.244.1.10", "10.244.1.11", "10.244.2.10"
OUTSIDE, CLUSTER_IP, BALANCER, EXTERNAL = "203.0.113.9", "10.96.0.1", "198.51.100.1", "198.51.100.2"
ROUTER = "10.244.1.1"

PORT = ServicePort("web", Protocol.TCP, 80, 30080)
SERVICE = Service(
    "shop",
    "cart",
    ServiceType.LOAD_BALANCER,
    (ip_address(CLUSTER_IP),),
    (PORT,),
    external_ips=(ip_address(EXTERNAL),),
    load_balancer_ips=(ip_address(BALANCER),),
)


def endpoint(address: str, **fields: object) -> SliceEndpoint:
    node = "here" if address.startswith("10.244.1.") else "there"
    return SliceEndpoint(ip_address(address), **{"node_name": node, **fields})  # type: ignore[arg-type]


def piece(*endpoints: SliceEndpoint, name: str = "cart-1", port: int = 8080) -> EndpointSlice:
    return EndpointSlice(
        "shop", name, "cart", Family.V4, (SlicePort("web", Protocol.TCP, port),), endpoints
    )


def world(service: Service = SERVICE, *slices: EndpointSlice, **fields: object) -> World:
    known: dict[str, object] = {
        "nodes": (Node("there", (ip_address("192.0.2.2"),), (), (ip_network("10.244.2.0/24"),)),),
        "addresses": (ip_address(HERE), ip_address("192.0.2.5")),
        "routers": {Family.V4: ip_address(ROUTER)},
        "zone": "east",
        "pod_cidrs": (ip_network("10.244.1.0/24"),),
        "cluster_cidrs": (ip_network("10.244.0.0/16"),),
        "service_cidrs": (ip_network("10.96.0.0/16"),),
        "pods": frozenset({ip_address(LOCAL)}),
        **fields,
    }
    return World("here", (service,), slices, **known)  # type: ignore[arg-type]


BOTH = piece(endpoint(OTHER_LOCAL), endpoint(REMOTE))
AWAY = piece(endpoint(REMOTE))
DRAINING = {"ready": False, "serving": True, "terminating": True}


def ask(
    where: World, source: str, to: str, port: int = 80, protocol: Protocol = Protocol.TCP
) -> Answer:
    entry = where.entry_of(ip_address(source))
    return answer(
        where, FlowQuestion(ip_address(source), ip_address(to), port, protocol, entry, 40000)
    )


def names(got: Answer) -> set[str]:
    return {f"{address}:{port}" for address, port in got.backends}


EVERYBODY = pytest.mark.parametrize("source", [LOCAL, OUTSIDE, HERE])
DOORS = pytest.mark.parametrize("to", [CLUSTER_IP, f"{HERE}", BALANCER, EXTERNAL])


def door_port(to: str) -> int:
    return 30080 if to == HERE else 80


# ---- endpoints ----
@EVERYBODY
@DOORS
def test_every_door_leads_to_all_ready_endpoints(source: str, to: str) -> None:
    got = ask(world(SERVICE, BOTH), source, to, door_port(to))
    assert (got.verdict, got.rule, got.service) == (
        reference.Verdict.FORWARD, rules.CLUSTER_POLICY, "shop/cart:web",
    )  # fmt: skip
    assert names(got) == {f"{OTHER_LOCAL}:8080", f"{REMOTE}:8080"}


@pytest.mark.parametrize(
    ("slices", "rule", "backends"),
    [
        pytest.param(
            (BOTH, piece(endpoint(REMOTE), endpoint("10.244.2.11"), name="cart-2")),
            rules.CLUSTER_POLICY,
            {f"{OTHER_LOCAL}:8080", f"{REMOTE}:8080", "10.244.2.11:8080"},
            id="slices are united, duplicates count once",
        ),
        pytest.param(
            (BOTH, piece(endpoint(REMOTE), name="cart-2", port=9090)),
            rules.CLUSTER_POLICY,
            {f"{OTHER_LOCAL}:8080", f"{REMOTE}:8080", f"{REMOTE}:9090"},
            id="the slice's number counts",
        ),
        pytest.param(
            (piece(endpoint(OTHER_LOCAL, **DRAINING), endpoint(REMOTE, ready=False)),),
            rules.TERMINATING,
            {f"{OTHER_LOCAL}:8080"},
            id="none ready: those that serve and terminate, not those that only serve",
        ),
        pytest.param(
            (piece(endpoint(OTHER_LOCAL, **DRAINING), endpoint(REMOTE)),),
            rules.CLUSTER_POLICY,
            {f"{REMOTE}:8080"},
            id="one ready: no draining ones",
        ),
        pytest.param(
            (
                piece(
                    endpoint(OTHER_LOCAL, node_hints=("here",), zone_hints=("west",)),
                    endpoint(REMOTE, node_hints=("there",), zone_hints=("east",)),
                ),
            ),
            rules.NODE_HINTS,
            {f"{OTHER_LOCAL}:8080"},
            id="node hints go before zone hints",
        ),
        pytest.param(
            (
                piece(
                    endpoint(OTHER_LOCAL, zone_hints=("west",)),
                    endpoint(REMOTE, node_hints=("here",), zone_hints=("east", "west")),
                ),
            ),
            rules.ZONE_HINTS,
            {f"{REMOTE}:8080"},
            id="one endpoint without a node hint: zone hints",
        ),
        pytest.param(
            (
                piece(
                    endpoint(OTHER_LOCAL, zone_hints=("west",)),
                    endpoint(REMOTE, zone_hints=("west",)),
                ),
            ),
            rules.CLUSTER_POLICY,
            {f"{OTHER_LOCAL}:8080", f"{REMOTE}:8080"},
            id="no hint names us",
        ),
        pytest.param(
            (piece(endpoint(OTHER_LOCAL), endpoint(REMOTE, zone_hints=("east",))),),
            rules.CLUSTER_POLICY,
            {f"{OTHER_LOCAL}:8080", f"{REMOTE}:8080"},
            id="hints are all or nothing",
        ),
    ],
)
def test_endpoints_of_the_cluster_policy(
    slices: tuple[EndpointSlice, ...], rule: reference.Rule, backends: set[str]
) -> None:
    got = ask(world(SERVICE, *slices), LOCAL, CLUSTER_IP)
    assert (got.rule, names(got)) == (rule, backends)


@EVERYBODY
@DOORS
def test_no_usable_endpoint_anywhere_is_refused(source: str, to: str) -> None:
    closed = replace(SERVICE, external_local=True, source_ranges=(ip_network("192.0.2.77/32"),))
    got = ask(world(closed, piece(endpoint(REMOTE, ready=False))), source, to, door_port(to))
    assert (got.verdict, got.rule) == (reference.Verdict.REJECT, rules.NO_ENDPOINTS)


# ---- policies ----
@EVERYBODY
def test_internal_policy_local_binds_every_sender(source: str) -> None:
    service = replace(SERVICE, internal_local=True)
    got = ask(world(service, BOTH), source, CLUSTER_IP)
    assert (got.rule, names(got)) == (rules.INTERNAL_LOCAL, {f"{OTHER_LOCAL}:8080"})
    got = ask(world(service, AWAY), source, CLUSTER_IP)
    assert (got.verdict, got.rule) == (reference.Verdict.DROP, rules.INTERNAL_LOCAL_EMPTY)
    assert ask(world(service, AWAY), source, HERE, 30080).verdict is reference.Verdict.FORWARD


@pytest.mark.parametrize("to", [HERE, BALANCER, EXTERNAL])
def test_external_policy_local_binds_outside_alone(to: str) -> None:
    service, port = replace(SERVICE, external_local=True), door_port(to)
    got = ask(world(service, BOTH), OUTSIDE, to, port)
    assert (got.rule, names(got)) == (rules.EXTERNAL_LOCAL, {f"{OTHER_LOCAL}:8080"})
    got = ask(world(service, AWAY), OUTSIDE, to, port)
    assert (got.verdict, got.rule) == (reference.Verdict.DROP, rules.EXTERNAL_LOCAL_EMPTY)
    for inside in (LOCAL, HERE):
        got = ask(world(service, AWAY), inside, to, port)
        assert names(got) == {f"{REMOTE}:8080"}
    assert ask(world(service, AWAY), OUTSIDE, CLUSTER_IP).rule is rules.CLUSTER_POLICY


def test_a_pod_of_another_node_takes_the_short_cut_where_nodes_route_to_pods() -> None:
    service = replace(SERVICE, external_local=True)
    flow = FlowQuestion(
        ip_address(REMOTE), ip_address(BALANCER), 80, Protocol.TCP, Entry.OUTSIDE, 40000
    )
    elsewhere = piece(endpoint(OTHER_LOCAL), endpoint("10.244.2.11"))
    got = answer(world(service, elsewhere, vxlan=False), flow)
    assert (got.rule, len(got.backends)) == (rules.CLUSTER_POLICY, 2)
    assert set(got.hidden) == {(ip_address("10.244.2.11"), 8080)}
    assert answer(world(service, elsewhere), flow).rule is rules.EXTERNAL_LOCAL


def test_local_policy_falls_back_to_draining_endpoints_of_the_node_and_ignores_hints() -> None:
    service = replace(SERVICE, external_local=True)
    draining = piece(endpoint(OTHER_LOCAL, **DRAINING), endpoint(REMOTE))
    got = ask(world(service, draining), OUTSIDE, BALANCER)
    assert (got.rule, names(got)) == (rules.LOCAL_TERMINATING, {f"{OTHER_LOCAL}:8080"})
    hinted = piece(
        endpoint(OTHER_LOCAL, zone_hints=("west",)), endpoint(REMOTE, zone_hints=("east",))
    )
    assert names(ask(world(service, hinted), OUTSIDE, BALANCER)) == {f"{OTHER_LOCAL}:8080"}


# ---- a client that comes again, a flow that lives on ----
def test_affinity_keeps_a_client_where_it_was_while_that_is_usable() -> None:
    sticky = world(replace(SERVICE, affinity_seconds=60), BOTH)
    flow = FlowQuestion(
        ip_address(LOCAL), ip_address(CLUSTER_IP), 80, Protocol.TCP, Entry.POD,
        remembered=(ip_address(REMOTE), 8080),
    )  # fmt: skip
    got = answer(sticky, flow)
    assert (got.rule, names(got)) == (rules.AFFINITY, {f"{REMOTE}:8080"})
    elsewhere = replace(flow, remembered=(ip_address("10.244.2.11"), 8080))
    assert answer(sticky, elsewhere).rule is rules.CLUSTER_POLICY
    assert answer(world(SERVICE, BOTH), flow).rule is rules.CLUSTER_POLICY


@pytest.mark.parametrize(
    ("state", "tcp", "udp"),
    [
        ({}, "KEEPS", "KEEPS"),
        (DRAINING, "KEEPS", "KEEPS"),
        ({"ready": False, "serving": False}, "KEEPS", "RETAINED"),
        (None, "GONE", "GONE"),
    ],
)
def test_a_flow_lives_as_long_as_its_backend(
    state: dict[str, bool] | None, tcp: str, udp: str
) -> None:
    ports = (PORT, ServicePort("dns", Protocol.UDP, 53))
    listed = () if state is None else (endpoint(REMOTE, **state),)
    now = replace(
        piece(*listed),
        ports=(SlicePort("web", Protocol.TCP, 8080), SlicePort("dns", Protocol.UDP, 8080)),
    )
    where = world(replace(SERVICE, ports=ports), now)
    for port, number, protocol, fate in (
        ("web", 80, Protocol.TCP, tcp), ("dns", 53, Protocol.UDP, udp),
    ):  # fmt: skip
        flow = FlowQuestion(ip_address(LOCAL), ip_address(CLUSTER_IP), number, protocol, Entry.POD)
        backend = ip_address(REMOTE), 8080
        assert fate_of(where, f"shop/cart:{port}", flow, backend).name == fate
        assert fate_of(where, "shop/other:web", flow, backend) is Fate.GONE


def test_a_segment_of_an_unknown_flow_is_refused_by_a_service_and_left_to_the_stack_elsewhere() -> (
    None
):
    flow = FlowQuestion(
        ip_address(LOCAL), ip_address(CLUSTER_IP), 80, Protocol.TCP, Entry.POD, 40000, opens=False
    )
    got = answer(world(SERVICE, BOTH), flow)
    assert (got.verdict, got.rule) == (reference.Verdict.REJECT, rules.UNKNOWN_FLOW)
    got = answer(world(SERVICE, BOTH), replace(flow, destination=ip_address(OUTSIDE)))
    assert (got.verdict.value, got.packets[0].source) == ("pass", ip_address(LOCAL))


# ---- source ranges ----
@pytest.mark.parametrize(
    ("ranges", "source", "verdict"),
    [
        (("203.0.113.0/24",), OUTSIDE, "forward"),
        (("203.0.113.0/30",), OUTSIDE, "drop"),
        (("203.0.113.0/30",), LOCAL, "drop"),
        (("203.0.113.0/30",), HERE, "drop"),
        (("10.244.0.0/16",), LOCAL, "forward"),
        (("2001:db8::/32",), OUTSIDE, "forward"),
        (("192.0.2.1/32",), BALANCER, "forward"),
        (("192.0.2.9/32",), BALANCER, "drop"),
    ],
)
def test_source_ranges_guard_the_load_balancer(
    ranges: tuple[str, ...], source: str, verdict: str
) -> None:
    service = replace(SERVICE, source_ranges=tuple(map(ip_network, ranges)))
    got = ask(world(service, BOTH), source, BALANCER)
    assert got.verdict.value == verdict
    assert (got.rule is rules.SOURCE_RANGES) == (verdict == "drop")
    for open_to_all in (EXTERNAL, CLUSTER_IP):
        assert ask(world(service, BOTH), source, open_to_all).verdict.value == "forward"


# ---- masquerade ----
@pytest.mark.parametrize(
    ("source", "to", "local", "masquerade"),
    [
        (LOCAL, CLUSTER_IP, False, False),
        (OUTSIDE, CLUSTER_IP, False, True),
        (HERE, CLUSTER_IP, False, True),
        (LOCAL, BALANCER, False, True),
        (OUTSIDE, BALANCER, False, True),
        (HERE, BALANCER, False, True),
        (LOCAL, BALANCER, True, False),
        (OUTSIDE, BALANCER, True, False),
        (HERE, BALANCER, True, True),
    ],
)
def test_who_is_hidden(source: str, to: str, local: bool, masquerade: bool) -> None:
    got = ask(world(replace(SERVICE, external_local=local), BOTH), source, to)
    assert (got.masquerade, got.hidden) == (masquerade, got.backends if masquerade else frozenset())


@pytest.mark.parametrize(
    ("source", "to", "masquerade"),
    [(OUTSIDE, BALANCER, False), (OUTSIDE, CLUSTER_IP, True), (LOCAL, BALANCER, True)],
)
def test_direct_return_hides_no_client_outside(source: str, to: str, masquerade: bool) -> None:
    assert ask(world(SERVICE, BOTH, direct_return=True), source, to).masquerade is masquerade


def test_masquerade_all_adds_cluster_ips_and_nothing_else() -> None:
    local = replace(SERVICE, external_local=True)
    everything = world(local, BOTH, masquerade_all=True)
    assert ask(everything, LOCAL, CLUSTER_IP).masquerade
    assert not ask(everything, LOCAL, BALANCER).masquerade
    assert not ask(everything, OUTSIDE, BALANCER).masquerade


def test_a_pod_that_reaches_itself_is_hidden() -> None:
    got = ask(world(SERVICE, piece(endpoint(LOCAL))), LOCAL, CLUSTER_IP)
    assert (got.masquerade, got.packets) == (
        True, (Rewritten(ip_address(ROUTER), None, ip_address(LOCAL), 8080),),
    )  # fmt: skip
    got = ask(world(SERVICE, piece(endpoint(LOCAL), endpoint(REMOTE))), LOCAL, CLUSTER_IP)
    assert (got.masquerade, set(got.hidden)) == (False, {(ip_address(LOCAL), 8080)})


def test_a_backend_of_the_nodes_own_sees_the_client() -> None:
    got = ask(world(SERVICE, piece(endpoint(HERE, node_name="here"))), OUTSIDE, BALANCER)
    assert (got.hidden, got.packets[0].source) == (frozenset(), ip_address(OUTSIDE))


def test_what_the_rules_say_of_a_flow_is_the_same_whoever_is_the_backend() -> None:
    mine = world(SERVICE, piece(endpoint(HERE, node_name="here")))
    assert ask(mine, OUTSIDE, BALANCER).masquerade
    assert not ask(mine, LOCAL, CLUSTER_IP).masquerade
    assert not ask(replace(mine, direct_return=True), OUTSIDE, BALANCER).masquerade


def test_a_client_is_hidden_behind_the_uplink_from_the_world() -> None:
    got = ask(world(SERVICE, piece(endpoint("192.0.2.2"))), LOCAL, CLUSTER_IP)
    assert (got.masquerade, got.packets[0].source) == (False, ip_address(HERE))
    native = world(SERVICE, piece(endpoint("192.0.2.2")), vxlan=False)
    assert ask(native, LOCAL, CLUSTER_IP).packets[0].source == ip_address(LOCAL)


# ---- doors ----
@pytest.mark.parametrize(
    ("ranges", "served"),
    [((), {HERE}), (("192.0.2.0/24",), {HERE, "192.0.2.5"}), (("192.0.2.5/32",), {"192.0.2.5"}),
     (("2001:db8::/32",), {HERE}), (("127.0.0.0/8",), set())],
)  # fmt: skip
def test_node_ports_are_on_addresses_in_the_ranges(
    ranges: tuple[str, ...], served: set[str]
) -> None:
    where = world(SERVICE, BOTH, node_port_ranges=tuple(map(ip_network, ranges)))
    for address in (HERE, "192.0.2.5", ROUTER):
        verdict = ask(where, OUTSIDE, address, 30080).verdict.value
        assert verdict == ("forward" if address in served else "pass")


def test_loopback_has_node_ports_only_if_asked_for_and_in_range() -> None:
    loop = (ip_network("127.0.0.0/8"),)
    for ranges, wanted, verdict in (
        (loop, True, "forward"), (loop, False, "pass"), ((), True, "pass"),
    ):  # fmt: skip
        where = world(SERVICE, BOTH, node_port_ranges=ranges, localhost_node_ports=wanted)
        assert ask(where, HERE, "127.0.0.1", 30080).verdict.value == verdict
        assert ask(where, LOCAL, "127.0.0.1", 30080).rule is rules.IMPOSSIBLE_ADDRESS


@pytest.mark.parametrize(
    "service",
    [
        replace(SERVICE, skipped="service.kubernetes.io/headless"),
        replace(SERVICE, type=ServiceType.HEADLESS, cluster_ips=()),
        replace(SERVICE, type=ServiceType.EXTERNAL_NAME),
        replace(SERVICE, cluster_ips=()),
    ],
)
def test_services_of_others_are_skipped(service: Service) -> None:
    got = ask(world(service, BOTH), LOCAL, BALANCER)
    assert (got.verdict, got.rule) == (reference.Verdict.PASS, rules.NETWORK)


def test_the_older_service_has_a_contested_address_and_doors_have_an_order() -> None:
    old = replace(SERVICE, name="old", created="2026-01-01T00:00:00Z")
    new = replace(SERVICE, created="2026-01-02T00:00:00Z")
    got = ask(replace(world(new, BOTH), services=(new, old)), LOCAL, BALANCER)
    assert (got.service, got.rule) == ("shop/old:web", rules.NO_ENDPOINTS)
    greedy = replace(
        old, external_ips=(ip_address(CLUSTER_IP),), cluster_ips=(ip_address("10.96.0.2"),)
    )
    got = ask(replace(world(new, BOTH), services=(new, greedy)), LOCAL, CLUSTER_IP)
    assert got.service == "shop/cart:web"


def test_one_port_for_two_protocols() -> None:
    both = replace(SERVICE, ports=(PORT, ServicePort("dns", Protocol.SCTP, 80, 30080)))
    assert ask(world(both, BOTH), LOCAL, CLUSTER_IP).service == "shop/cart:web"
    got = ask(world(both, BOTH), LOCAL, CLUSTER_IP, protocol=Protocol.SCTP)
    assert (got.service, got.rule) == ("shop/cart:dns", rules.NO_ENDPOINTS)


PUBLISHED = Service(
    "shop", "pod/web/1.0", ServiceType.HOST_PORT, (), (ServicePort("web", Protocol.TCP, 8888),),
    families=(Family.V4, Family.V6),
)  # fmt: skip


def test_host_ports_keep_the_client() -> None:
    slices = replace(BOTH, service=PUBLISHED.name)
    got = ask(world(PUBLISHED, slices), OUTSIDE, HERE, 8888)
    assert (got.verdict.value, got.masquerade) == ("forward", False)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ((), {HERE, "127.0.0.1"}),
        (("127.0.0.1",), {"127.0.0.1"}),
        (("127.8.9.10",), {"127.8.9.10"}),
        (("::1",), {"::1"}),
        ((OUTSIDE,), set()),
        ((OUTSIDE, HERE), {HERE}),
    ],
)
def test_host_ports_are_on_the_nodes_own_addresses(
    asked: tuple[str, ...], served: set[str]
) -> None:
    service = replace(PUBLISHED, external_ips=tuple(map(ip_address, asked)))
    seen = replace(world(service, BOTH), addresses=(ip_address(HERE),))
    assert {str(a) for a, _, _ in frontends_of(seen).by_place} == served


# ---- no Service ----
@pytest.mark.parametrize(
    ("source", "to", "port", "verdict", "rule"),
    [
        (LOCAL, CLUSTER_IP, 81, "reject", rules.NO_SUCH_PORT),
        (OUTSIDE, CLUSTER_IP, 81, "reject", rules.NO_SUCH_PORT),
        (HERE, CLUSTER_IP, 81, "reject", rules.NO_SUCH_PORT),
        (LOCAL, "10.96.0.9", 80, "drop", rules.UNASSIGNED),
        (OUTSIDE, "10.96.0.9", 80, "drop", rules.UNASSIGNED),
        (HERE, "10.96.0.9", 80, "drop", rules.UNASSIGNED),
        (LOCAL, "10.244.1.99", 80, "drop", rules.NO_SUCH_POD),
        (OUTSIDE, "10.244.1.99", 80, "pass", rules.HOST),
        (LOCAL, "10.244.9.9", 80, "drop", rules.NO_SUCH_NODE),
        (LOCAL, REMOTE, 80, "pass", rules.POD),
        (LOCAL, OTHER_LOCAL, 80, "pass", rules.POD),
        (LOCAL, OUTSIDE, 80, "pass", rules.NETWORK),
        (LOCAL, HERE, 22, "pass", rules.HOST),
        (OUTSIDE, HERE, 22, "pass", rules.HOST),
        (OUTSIDE, HERE, 61000, "drop", rules.MASQUERADE_PORT),
        (LOCAL, HERE, 61000, "pass", rules.HOST),
        (LOCAL, ROUTER, 22, "pass", rules.HOST),
        (LOCAL, ROUTER, 61000, "drop", rules.MASQUERADE_PORT),
        (LOCAL, "224.0.0.251", 80, "drop", rules.MULTICAST),
        (OUTSIDE, "224.0.0.251", 80, "pass", rules.LINK),
        (LOCAL, "0.0.0.1", 80, "drop", rules.IMPOSSIBLE_ADDRESS),
        ("0.0.0.1", BALANCER, 80, "drop", rules.IMPOSSIBLE_ADDRESS),
        ("0.0.0.1", HERE, 30080, "pass", rules.HOST),
    ],
)
def test_addresses_without_a_service(
    source: str, to: str, port: int, verdict: str, rule: reference.Rule
) -> None:
    got = ask(world(SERVICE, BOTH), source, to, port)
    assert (got.verdict.value, got.rule) == (verdict, rule)


def test_pods_send_nothing_to_an_overlay_port() -> None:
    for to in (HERE, "192.0.2.2"):
        got = ask(world(SERVICE, BOTH), LOCAL, to, 8472, Protocol.UDP)
        assert (got.verdict.value, got.rule) == ("drop", rules.OVERLAY_PORT)


def test_pods_are_hidden_from_the_world_alone() -> None:
    kept = world(SERVICE, BOTH, non_masquerade_cidrs=(ip_network("198.18.0.0/15"),))
    for to, seen in ((OUTSIDE, HERE), ("198.18.0.1", LOCAL), (REMOTE, LOCAL)):
        got = ask(kept, LOCAL, to)
        assert (got.masquerade, got.packets[0].source) == (False, ip_address(seen))


# ---- the model itself ----
def test_who_sends_is_told_by_the_address() -> None:
    where = world()
    for source, entry in (
        (HERE, Entry.NODE), (ROUTER, Entry.NODE), ("127.0.0.1", Entry.NODE), (LOCAL, Entry.POD),
        (REMOTE, Entry.POD), (OUTSIDE, Entry.OUTSIDE),
    ):  # fmt: skip
        assert where.entry_of(ip_address(source)) is entry


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in rules.ALL}) == len(rules.ALL)
    assert all(rule.words and rule.source for rule in rules.ALL)


def test_the_model_knows_the_objects_and_itself_only() -> None:
    """So that model and tables can't be wrong together, whatever modules core gets."""
    folder = Path(reference.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dataplane"):
                assert (node.module or "").startswith(
                    ("dataplane.model", "dataplane.core.reference")
                )
