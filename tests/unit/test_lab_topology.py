# SPDX-License-Identifier: Apache-2.0
from ipaddress import ip_address
from pathlib import Path

from dataplane.lab import topology
from dataplane.model.net import Family
from dataplane.model.objects import Node

BOTH = (Family.V4, Family.V6)
NODES = [
    Node(f"node-{n}", tuple(topology.node_address(n, family) for family in BOTH)) for n in (1, 2)
]


def test_each_node_and_outside_get_the_other_end_of_a_cable() -> None:
    lines = topology.underlay_commands(NODES, BOTH, lambda name: Path("/lab") / name)
    cables = [line for line in lines if "type veth" in line]
    assert [line.rsplit(" ", 1)[1] for line in cables] == [
        "/lab/node-1",
        "/lab/node-2",
        "/lab/outside",
    ]


def test_a_node_sends_what_it_does_not_know_to_the_underlay() -> None:
    lines = topology.node_commands(NODES[0], NODES, BOTH)
    assert "address add 172.30.0.11/16 dev eth0" in lines
    assert "address add fd00:172:30::b/64 dev eth0 nodad" in lines
    assert "route add default via 172.30.0.1 dev eth0 src 172.30.0.11 onlink" in lines


def test_a_node_without_a_family_has_no_route_of_it() -> None:
    lines = topology.node_commands(NODES[0], NODES, (Family.V4,))
    assert not [line for line in lines if "fd00" in line]


def test_balancers_addresses_are_routed_anew_each_time() -> None:
    lines = topology.service_route_commands(
        NODES,
        {ip_address("198.51.100.1"): "node-2", ip_address("2001:db8::1"): "node-1"},
        Family.V4,
    )
    assert lines[0].startswith("route flush proto")
    assert lines[1].startswith("route replace 198.51.100.1 via 172.30.0.12 ")
    assert len(lines) == 2


def test_outside_is_on_another_network_than_the_nodes() -> None:
    for family in BOTH:
        assert topology.outside_address(family) not in topology.NODE_NETWORKS[family]
