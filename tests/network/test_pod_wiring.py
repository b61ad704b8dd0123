# SPDX-License-Identifier: Apache-2.0
"""One node with an agent, pods by CNI requests; no pod traffic leaves the node.

pod a ── eth0 ─┐ pl… ┐
pod b ── eth0 ─┘ pl… ┴ node1 ── eth0 ── bridge ── eth0 ── outside
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.cni import protocol
from dataplane.kernel import netns
from dataplane.kernel.maps import Maps
from dataplane.model.net import Family
from dataplane.model.rows import NameKey, NameRow, Table
from tests.network.cluster import AgentNode, Cluster, sh

GATEWAY_MAC = "0a:70:6c:00:00:02"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def node(cluster: Cluster) -> Iterator[AgentNode]:
    node = cluster.nodes[0]
    yield node
    for name in list(node.pods):
        node.delete_pod(name)
    assert not [link for link in links(node) if link.startswith("pl") and link != "podlane0"]
    assert not rows(node, Table("endpoints", Family.V4))
    assert not rows(node, Table("endpoints", Family.V6))


def links(node: AgentNode) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in json.loads(sh(f"ip -n {node.ns} -j link"))}


def rows(node: AgentNode, table: Table) -> dict[Any, Any]:
    maps = Maps(node.folder / "bpf")
    try:
        return dict(maps.items(table))
    finally:
        maps.close()


def host_veth(answer: dict[str, Any]) -> str:
    name: str = answer["interfaces"][0]["name"]
    return name


def test_a_pod_gets_what_it_asks_for(node: AgentNode) -> None:
    answer = node.add_pod("a", "10.244.1.77,fd00:244:1::77")
    assert [ip["address"] for ip in answer["ips"]] == ["10.244.1.77/32", "fd00:244:1::77/128"]
    veth = host_veth(answer)
    assert re.fullmatch(r"pl[0-9a-f]{12}", veth)
    assert links(node)[veth]["address"] == GATEWAY_MAC
    assert links(node)[veth]["mtu"] == 1450
    inside = node.in_pod("a", "ip -4 route") + node.in_pod("a", "ip -6 route")
    assert "default via 169.254.1.1 dev eth0" in inside
    assert "169.254.1.1 dev eth0 proto 112 scope link" in inside
    assert "default via fe80::1 dev eth0" in inside
    permanent = node.in_pod("a", "ip neigh show nud permanent")
    assert f"169.254.1.1 dev eth0 lladdr {GATEWAY_MAC} PERMANENT" in permanent
    assert f"fe80::1 dev eth0 lladdr {GATEWAY_MAC} PERMANENT" in permanent
    routes = sh(f"ip -n {node.ns} -4 route") + sh(f"ip -n {node.ns} -6 route")
    assert f"10.244.1.77 dev {veth} proto 112 scope link src 10.244.1.1" in routes
    assert f"fd00:244:1::77 dev {veth} proto 112 src fd00:244:1::1" in routes
    # The host side answers by program; an address of its own would be a second gateway.
    assert "inet" not in sh(f"ip -n {node.ns} addr show dev {veth}")


def test_both_families_are_one_endpoint_with_a_name(node: AgentNode) -> None:
    answer = node.add_pod("a", "10.244.1.77,fd00:244:1::77")
    (four,) = rows(node, Table("endpoints", Family.V4)).values()
    (six,) = rows(node, Table("endpoints", Family.V6)).values()
    assert four == six
    assert four.mac.hex(":") == answer["interfaces"][1]["mac"]
    assert rows(node, Table("names"))[NameKey(2, four.id)] == NameRow("test/a")


def test_all_five_programs_are_on_the_host_side(node: AgentNode) -> None:
    veth = host_veth(node.add_pod("a"))
    ingress = sh(f"tc -n {node.ns} filter show dev {veth} ingress")
    egress = sh(f"tc -n {node.ns} filter show dev {veth} egress")
    places = re.findall(r"protocol (\w+) pref (\d+) bpf chain 0 handle (\w+) (\w+) direct", ingress)
    assert places == [
        ("ip", "100", "0x706c", "from_pod_4"),
        ("ipv6", "101", "0x706c", "from_pod_6"),
        ("all", "102", "0x706c", "from_pod_l2"),
    ]
    assert re.findall(r"0x706c (\w+) direct", egress) == ["to_pod_4", "to_pod_6"]


def test_the_programs_are_on_before_the_link_is_up(node: AgentNode) -> None:
    """In the order in which the kernel tells of it: five filters, then the device up."""
    listener = netns.run_in(Path("/run/netns") / node.ns, _listen)
    try:
        veth = host_veth(node.add_pod("a"))
        told = [event for event in _events(listener) if event[1] == links(node)[veth]["ifindex"]]
    finally:
        listener.close()
    first_up = told.index(("up", links(node)[veth]["ifindex"]))
    assert told[:first_up].count(("filter", links(node)[veth]["ifindex"])) == 5
    assert ("filter", links(node)[veth]["ifindex"]) not in told[first_up:]


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    listener.bind((0, 0x1 | 0x8))  # RTMGRP_LINK, RTMGRP_TC
    listener.setblocking(False)
    return listener


def _events(listener: socket.socket) -> list[tuple[str, int]]:
    """("filter" or "up", ifindex), as they came."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while data := listener.recv(65536):
            _, kind, _, _, _ = struct.unpack_from("=IHHII", data)
            index = struct.unpack_from("=i", data, 20)[0]
            if kind == 44:  # RTM_NEWTFILTER: struct tcmsg
                found.append(("filter", index))
            elif kind == 16 and struct.unpack_from("=I", data, 24)[0] & 1:  # RTM_NEWLINK, IFF_UP
                found.append(("up", index))
    return found


def test_addresses_are_given_in_turn_and_freed_ones_rest(node: AgentNode) -> None:
    first = node.add_pod("a")["ips"][0]["address"]
    second = node.add_pod("b")["ips"][0]["address"]
    node.delete_pod("a")
    third = node.add_pod("c")["ips"][0]["address"]
    assert len({first, second, third}) == 3
    assert not {first, second, third} & {"10.244.1.0/32", "10.244.1.1/32", "10.244.1.255/32"}


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        ("10.245.0.9", "is outside this node's pod ranges"),
        ("10.244.1.1", "is the node's own router address"),
        ("10.244.1.9,10.244.1.10", "more than one address of a family"),
        ("10.244.1", "does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_an_address_that_no_pod_may_have_is_refused(
    node: AgentNode, addresses: str, words: str
) -> None:
    answer = node.add_pod("a", addresses)
    assert answer["code"] == protocol.BAD_ENVIRONMENT
    assert words in answer["msg"]


def test_an_address_that_a_pod_has_is_refused_with_the_pods_name(node: AgentNode) -> None:
    node.add_pod("a", "10.244.1.77")
    answer = node.add_pod("b", "10.244.1.77")
    assert "is given to pod test/a" in answer["msg"]


def test_an_interface_that_exists_is_an_error_and_is_left_alone(node: AgentNode) -> None:
    node.add_pod("a")
    again = node.cni("ADD", f"c-{node.pods['a']}", f"/run/netns/{node.pods['a']}")
    assert "has interface eth0 already" in again["msg"]
    other = node.cni("ADD", "another-container", f"/run/netns/{node.pods['a']}")
    assert "interface eth0 exists in" in other["msg"]
    assert node.in_pod("a", "ping -c1 -W1 10.244.1.1")
    assert len(rows(node, Table("endpoints", Family.V4))) == 1


def test_a_namespace_that_is_none_is_an_error_and_leaves_nothing(node: AgentNode) -> None:
    for path in ("/run/netns/there-is-none", "/etc/hostname", f"/run/netns/{node.ns}"):
        answer = node.cni("ADD", "c1", path)
        assert "code" in answer
        assert not rows(node, Table("endpoints", Family.V4))
    assert "is the node's own namespace" in answer["msg"]


def test_delete_can_be_repeated_and_needs_no_namespace(node: AgentNode) -> None:
    node.add_pod("a")
    ns = node.pods["a"]
    netns.delete(Path("/run/netns") / ns)
    assert node.cni("DEL", f"c-{ns}") == {}
    assert node.cni("DEL", f"c-{ns}") == {}
    assert node.cni("DEL", "never-there") == {}
    del node.pods["a"]
    assert not rows(node, Table("endpoints", Family.V4))


def test_check_names_what_is_not_as_it_was_made(node: AgentNode) -> None:
    veth = host_veth(node.add_pod("a", "10.244.1.77,fd00:244:1::77"))
    container, path = f"c-{node.pods['a']}", f"/run/netns/{node.pods['a']}"
    assert node.cni("CHECK", container, path) == {}
    sh(f"tc -n {node.ns} filter del dev {veth} ingress pref 100")
    sh(f"ip -n {node.ns} route del 10.244.1.77")
    sh(f"ip -n {node.ns} neigh del fd00:244:1::77 dev {veth}")
    sh(f"ip -n {node.pods['a']} addr del fd00:244:1::77/128 dev eth0")
    answer = node.cni("CHECK", container, path)
    assert answer["code"] == protocol.POD_BROKEN
    for words in (
        f"filter from_pod_4 is not on {veth}",
        "route to 10.244.1.77 is missing",
        "neighbour entry of fd00:244:1::77 is missing",
        "address fd00:244:1::77 is gone",
    ):
        assert words in answer["msg"]
    assert node.cni("CHECK", "unknown", path)["code"] == protocol.UNKNOWN_CONTAINER


def test_others_filters_on_the_uplink_stay(node: AgentNode) -> None:
    nothing = "bpf bytecode '1,6 0 0 0' flowid 1:1"
    sh(f"tc -n {node.ns} filter add dev eth0 ingress pref 50 protocol ip {nothing}")
    try:
        node.add_pod("a")
        assert "pref 50 bpf" in sh(f"tc -n {node.ns} filter show dev eth0 ingress")
        assert node.in_pod("a", "ping -c1 -W1 192.0.2.100")
    finally:
        sh(f"tc -n {node.ns} filter del dev eth0 ingress pref 50")


def test_pods_of_one_node_reach_each_other_their_node_and_outside(node: AgentNode) -> None:
    node.add_pod("a", "10.244.1.11,fd00:244:1::11")
    node.add_pod("b", "10.244.1.12,fd00:244:1::12")
    for target in (
        ["10.244.1.12", "fd00:244:1::12"]
        + ["10.244.1.1", "fd00:244:1::1", "192.0.2.1", "2001:db8::1"]
        + ["192.0.2.100", "2001:db8::100"]
    ):
        node.in_pod("a", f"ping -c2 -i0.05 -W1 {target}")
    for target in ("10.244.1.11", "fd00:244:1::12"):
        node.run(f"ping -c2 -i0.05 -W1 {target}")
