# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from dataplane.core.routes import KernelRoute, RouteFacts, Routes, make_routes
from dataplane.model.constants import RouteFlag, RouteKind
from dataplane.model.net import Family
from dataplane.model.objects import Node
from dataplane.model.rows import RouteKey, RouteRow

UPLINK, DOCKER, SECOND = 2, 3, 5
CLUSTER, MASQUERADE = int(RouteFlag.CLUSTER), int(RouteFlag.MASQUERADE)
HOP_IS_NODE = int(RouteFlag.HOP_IS_NODE)


def route(prefix: str, index: int, gateway: str = "", metric: int = 0) -> KernelRoute:
    way = ip_address(gateway) if gateway else None
    return KernelRoute(ip_network(prefix), index, way, metric)


def node(name: str, addresses: str, cidrs: str) -> Node:
    return Node(
        name,
        tuple(map(ip_address, addresses.split())),
        pod_cidrs=tuple(map(ip_network, cidrs.split())),
    )


FACTS = RouteFacts(
    node="one",
    vxlan=True,
    addresses=(ip_address("192.0.2.1"), ip_address("2001:db8::1")),
    routers=(ip_address("10.244.1.1"), ip_address("fd00:10:244:1::1")),
    pod_cidrs=(ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")),
    cluster_cidrs=(ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48")),
    service_cidrs=(ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112")),
    uplinks=frozenset({UPLINK}),
    kernel=(
        route("0.0.0.0/0", UPLINK, "192.0.2.254"),
        route("192.0.2.0/24", UPLINK),
        route("172.17.0.0/16", DOCKER),
        route("::/0", UPLINK, "2001:db8::ff"),
        route("2001:db8::/64", UPLINK),
        route("fe80::/64", UPLINK),
        route("10.244.1.7/32", 9),
    ),
)
TWO = node("two", "192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64")
NATIVE = replace(FACTS, vxlan=False)


def test_the_cluster_ip_of_another_proxys_service_is_the_stacks() -> None:
    facts = replace(FACTS, left_alone=(ip_address("10.96.0.9"), ip_address("fd00:10:96::9")))
    routes = make_routes(facts, [TWO])
    assert lookup(routes, "10.96.0.9") == RouteRow(RouteKind.STACK)
    assert lookup(routes, "fd00:10:96::9") == RouteRow(RouteKind.STACK)
    assert lookup(routes, "10.96.0.8").kind == RouteKind.SERVICE


def row(routes: Routes, prefix: str) -> RouteRow | None:
    found = ip_network(prefix)
    return routes.rows[Family(found.version)].get(RouteKey(found.prefixlen, found.network_address))


def lookup(routes: Routes, address: str) -> RouteRow:
    """What the longest-prefix map answers."""
    wanted = ip_address(address)
    rows = routes.rows[Family(wanted.version)]
    best = max(
        (k for k in rows if wanted in ip_network((int(k.address), k.prefix)))
        if wanted.version == 4
        else (k for k in rows if wanted in ip_network(f"{k.address}/{k.prefix}")),
        key=lambda k: k.prefix,
    )
    return rows[best]


def test_own_ranges_are_local_and_own_addresses_the_node() -> None:
    routes = make_routes(FACTS, [TWO])
    assert row(routes, "10.244.1.0/24") == RouteRow(RouteKind.LOCAL, CLUSTER)
    for address in ("192.0.2.1", "10.244.1.1", "2001:db8::1", "fd00:10:244:1::1"):
        assert lookup(routes, address) == RouteRow(RouteKind.NODE)
    assert lookup(routes, "10.244.1.2").kind == RouteKind.LOCAL


def test_remote_pods_are_tunnelled_to_their_node_in_either_inner_family() -> None:
    routes = make_routes(FACTS, [TWO])
    tunnel = RouteRow(RouteKind.TUNNEL, CLUSTER, hop=ip_address("192.0.2.2"))
    assert lookup(routes, "10.244.2.9") == tunnel
    assert lookup(routes, "fd00:10:244:2::9") == tunnel
    assert set(routes.peers) == {ip_address("192.0.2.2"), ip_address("2001:db8::2")}


def test_tunnels_use_the_family_that_both_nodes_have() -> None:
    only6 = node("six", "2001:db8::6", "10.244.6.0/24")
    routes = make_routes(FACTS, [only6])
    assert lookup(routes, "10.244.6.1").hop == ip_address("2001:db8::6")
    mine, theirs = FACTS, TWO
    back = replace(FACTS, node="two", addresses=theirs.addresses[::-1], pod_cidrs=theirs.pod_cidrs)
    me = Node("one", mine.addresses, pod_cidrs=mine.pod_cidrs)
    assert lookup(make_routes(back, [me]), "10.244.1.9").hop == ip_address("192.0.2.1")


def test_node_without_a_shared_family_is_a_problem_and_its_pods_unreachable() -> None:
    facts = replace(FACTS, addresses=(ip_address("192.0.2.1"),))
    routes = make_routes(facts, [node("six", "2001:db8::6", "10.244.6.0/24")])
    assert [p.object for p in routes.problems] == ["Node six"]
    assert lookup(routes, "10.244.6.1").kind == RouteKind.UNREACHABLE


def test_native_mode_sends_remote_pods_to_the_next_hop_on_the_link() -> None:
    routes = make_routes(NATIVE, [TWO])
    assert lookup(routes, "10.244.2.9") == RouteRow(
        RouteKind.NATIVE, CLUSTER | HOP_IS_NODE, UPLINK, ip_address("192.0.2.2")
    )
    assert lookup(routes, "fd00:10:244:2::9").hop == ip_address("2001:db8::2")
    assert not routes.peers


def test_native_mode_asks_the_gateway_for_a_node_behind_it() -> None:
    routes = make_routes(NATIVE, [node("far", "198.51.100.7", "10.244.7.0/24")])
    found = lookup(routes, "10.244.7.1")
    assert (found.hop, found.flags) == (ip_address("192.0.2.254"), CLUSTER)


def test_in_native_mode_other_nodes_encapsulate_for_direct_return_alone() -> None:
    assert not make_routes(NATIVE, [TWO]).peers
    assert len(make_routes(replace(NATIVE, direct=True), [TWO]).peers) == 2


def test_native_mode_names_a_node_that_no_uplink_leads_to() -> None:
    facts = replace(NATIVE, kernel=(route("172.17.0.0/16", DOCKER),))
    routes = make_routes(facts, [TWO])
    assert {p.object for p in routes.problems} == {"Node two"}
    assert lookup(routes, "10.244.2.1").kind == RouteKind.UNREACHABLE


def test_other_nodes_are_world_in_vxlan_mode_and_unmasqueraded_in_native_mode() -> None:
    assert lookup(make_routes(FACTS, [TWO]), "192.0.2.2") == RouteRow(
        RouteKind.WORLD, MASQUERADE, UPLINK, ip_address("192.0.2.2")
    )
    assert lookup(make_routes(NATIVE, [TWO]), "192.0.2.2") == RouteRow(RouteKind.WORLD, 0, UPLINK)


def test_world_leaves_masqueraded_by_the_uplink_and_other_links_by_the_stack() -> None:
    routes = make_routes(FACTS, [TWO])
    world = RouteRow(RouteKind.WORLD, MASQUERADE, UPLINK)
    assert lookup(routes, "198.51.100.1") == world
    assert lookup(routes, "192.0.2.77") == world
    assert lookup(routes, "172.17.0.5") == RouteRow(RouteKind.STACK)


def test_node_without_a_default_route_gives_the_world_to_the_stack() -> None:
    facts = replace(FACTS, kernel=(route("192.0.2.0/24", UPLINK), route("0.0.0.0/1", UPLINK)))
    routes = make_routes(facts, [])
    assert row(routes, "0.0.0.0/0") == RouteRow(RouteKind.STACK)
    assert lookup(routes, "192.0.2.9").kind == RouteKind.WORLD
    assert lookup(routes, "9.9.9.9").kind == RouteKind.WORLD
    assert lookup(routes, "203.0.113.1").kind == RouteKind.STACK


def test_non_masquerade_ranges_keep_the_pods_address_whatever_route_is_longer() -> None:
    facts = replace(
        FACTS,
        non_masquerade_cidrs=(ip_network("192.0.0.0/8"), ip_network("203.0.113.0/24")),
    )
    routes = make_routes(facts, [TWO])
    for address in ("192.0.2.77", "192.0.2.2", "192.9.9.9", "203.0.113.4"):
        assert replace(lookup(routes, address), hop=None) == RouteRow(RouteKind.WORLD, 0, UPLINK)
    assert lookup(routes, "198.51.100.1").flags == MASQUERADE


def test_cluster_and_service_ranges_without_owner_are_named_by_kind() -> None:
    routes = make_routes(FACTS, [TWO])
    assert lookup(routes, "10.244.99.1") == RouteRow(RouteKind.UNREACHABLE, CLUSTER)
    assert lookup(routes, "10.96.0.10") == RouteRow(RouteKind.SERVICE)
    assert lookup(routes, "fd00:10:96::a") == RouteRow(RouteKind.SERVICE)


def test_kernel_routes_of_pods_and_link_local_ones_stay_out() -> None:
    routes = make_routes(FACTS, [TWO])
    assert row(routes, "10.244.1.7/32") is None
    assert row(routes, "fe80::/64") is None


def test_lower_metric_decides_between_two_uplinks() -> None:
    facts = replace(
        FACTS,
        uplinks=frozenset({UPLINK, SECOND}),
        kernel=(route("0.0.0.0/0", SECOND, "", 200), route("0.0.0.0/0", UPLINK, "", 100)),
    )
    assert lookup(make_routes(facts, []), "9.9.9.9").ifindex == UPLINK


def test_second_node_with_the_same_range_is_a_problem() -> None:
    rival = node("zwei", "192.0.2.3", "10.244.2.0/24")
    routes = make_routes(FACTS, [rival, TWO])
    assert lookup(routes, "10.244.2.1").hop == ip_address("192.0.2.2")
    assert [str(p) for p in routes.problems] == [
        "Node zwei: spec.podCIDRs: 10.244.2.0/24 is taken by Node two"
    ]


def test_ranges_that_overlap_are_named() -> None:
    wide = node("wide", "192.0.2.3", "10.244.0.0/16")
    odd = node("odd", "192.0.2.4", "10.96.5.0/24")
    found = {str(problem) for problem in make_routes(FACTS, [TWO, wide, odd]).problems}
    assert found == {
        "Node one: spec.podCIDRs: 10.244.1.0/24 overlaps 10.244.0.0/16 of Node wide",
        "Node two: spec.podCIDRs: 10.244.2.0/24 overlaps 10.244.0.0/16 of Node wide",
        "Node odd: spec.podCIDRs: 10.96.5.0/24 overlaps 10.96.0.0/12 of Service ranges",
    }
    assert make_routes(FACTS, [TWO]).problems == []
