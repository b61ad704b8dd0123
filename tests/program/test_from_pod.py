# SPDX-License-Identifier: Apache-2.0
"""What a pod sends: where it goes, and as what. The first packet of each flow."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from dataplane.model.constants import EndpointFlag, NodeFlag
from dataplane.model.net import Family
from dataplane.model.rows import RouteKey
from tests.program import world
from tests.program.node import Node
from tests.program.result import (
    PASSED,
    Verdict,
    by_next_hop,
    dropped,
    into,
    into_by_shaper,
    out_by,
    refused,
    through_tunnel,
)
from tests.program.tables import Row, table

ANYWHERE: list[Row] = [
    (
        "a pod of the same node is reached directly",
        "tcp client:40000 > neighbour:80",
        into("neighbour"),
        "tcp client:40000 > neighbour:80 ttl=63",
    ),
    (
        "UDP without a checksum keeps none",
        "udp client:40000 > neighbour:53 csum=0",
        into("neighbour"),
        "udp client:40000 > neighbour:53 csum=0 ttl=63",
    ),
    (
        "a ping, too",
        "echo client > neighbour",
        into("neighbour"),
        "echo client > neighbour ttl=63",
    ),
    (
        "a protocol without ports, too",
        "protocol-50 client > neighbour",
        into("neighbour"),
        "protocol-50 client > neighbour ttl=63",
    ),
    (
        "the last hop is used up inside the pod's own node",
        "tcp client:40000 > neighbour:80 ttl=2",
        into("neighbour"),
        "tcp client:40000 > neighbour:80 ttl=1",
    ),
    ("no hop is left", "tcp client:40000 > neighbour:80 ttl=1", refused("HOP_LIMIT"), None),
    ("the node itself", "tcp client:40000 > here:22", PASSED, None),
    ("the node's second address", "udp client:40000 > here2:22", PASSED, None),
    ("the node's router address", "echo client > router", PASSED, None),
    ("what only the node's kernel knows", "tcp client:40000 > lan:80", PASSED, None),
    ("an address of the node's range that no pod has", "tcp client:1 > ghost:80", dropped("NO_POD"), None),
    (
        "an address of the cluster that no node has",
        "tcp client:1 > nowhere:80",
        dropped("NO_ROUTE"),
        None,
    ),
    ("multicast", "udp client:5353 > group:5353", dropped("MULTICAST"), None),
    ("broadcast", "udp client:5353 > broadcast:5353", dropped("MULTICAST"), None),
]  # fmt: skip

SERVICES: list[Row] = [
    (
        "a Service's only backend is on this node",
        "tcp client:40000 > near:80",
        into("neighbour"),
        "tcp client:40000 > neighbour:8080 ttl=63",
    ),
    (
        "a Service's only backend is on the other node",
        "tcp client:40000 > far:80",
        through_tunnel(),
        "tcp client:40000 > remote:8080 ttl=63",
    ),
    (
        "UDP",
        "udp client:40000 > near:53",
        into("neighbour"),
        "udp client:40000 > neighbour:5353 ttl=63",
    ),
    (
        "UDP without a checksum keeps none through the translation",
        "udp client:40000 > near:53 csum=0",
        into("neighbour"),
        "udp client:40000 > neighbour:5353 csum=0 ttl=63",
    ),
    (
        "a pod that is its own backend is answered by a third address",
        "tcp client:40000 > self:80",
        into("client"),
        "tcp router:MASQ > client:8080 ttl=63",
    ),
    (
        "the backend is the node itself",
        "tcp client:40000 > daemon:80",
        PASSED,
        "tcp client:40000 > here:10250",
    ),
    (
        "the node's port hides pods, too",
        "tcp client:40000 > here:30081",
        through_tunnel(),
        "tcp router:MASQ > remote:8080 ttl=63",
    ),
    (
        "the load balancer's address",
        "tcp client:40000 > balancer:80",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8080 ttl=63",
    ),
    (
        "an external address",
        "tcp client:40000 > external:80",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8080 ttl=63",
    ),
    (
        "the node's port, and the backend is the node itself",
        "tcp client:40000 > here:30092",
        PASSED,
        "tcp client:40000 > here:10250",
    ),
    (
        "a hostPort keeps the pod's address",
        "tcp client:40000 > here:8888",
        into("neighbour"),
        "tcp client:40000 > neighbour:8888 ttl=63",
    ),
    (
        "externalTrafficPolicy Local neither binds nor hides a pod",
        "tcp client:40000 > here:30088",
        through_tunnel(),
        "tcp client:40000 > remote:8088 ttl=63",
    ),
    (
        "internalTrafficPolicy Local, and no endpoint on this node",
        "tcp client:40000 > inside:80",
        dropped("NO_LOCAL_BACKEND"),
        None,
    ),
    (
        "TTL 1 is used up before the backend",
        "tcp client:40000 > near:80 ttl=1",
        refused("HOP_LIMIT"),
        None,
    ),
    ("no endpoint", "tcp client:40000 > empty:80", refused("NO_BACKEND"), None),
    ("no endpoint, UDP", "udp client:40000 > empty:53", refused("NO_BACKEND"), None),
    ("a port that the Service has not", "tcp client:40000 > near:81", refused("NO_PORT"), None),
    ("a protocol that the port has not", "udp client:40000 > near:80", refused("NO_PORT"), None),
    ("a ping of a Service is not answered", "echo client > near", dropped("NO_PORT"), None),
    (
        "a load balancer's address for some, and the pod is one of them",
        "tcp client:40000 > balancer:8015",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8015 ttl=63",
    ),
    (
        "an address of the range that no Service has",
        "tcp client:40000 > no-service:80",
        dropped("NO_SERVICE"),
        None,
    ),
]

WORLD: list[Row] = [
    (
        "TCP to the world leaves as the node",
        "tcp client:40000 > outside:443",
        out_by(),
        "tcp here:MASQ > outside:443 ttl=63",
    ),
    (
        "UDP",
        "udp client:40000 > outside:53",
        out_by(),
        "udp here:MASQ > outside:53 ttl=63",
    ),
    (
        "UDP without a checksum",
        "udp client:40000 > outside:53 csum=0",
        out_by(),
        "udp here:MASQ > outside:53 csum=0 ttl=63",
    ),
    (
        "a ping gets an identifier of the node",
        "echo client > outside id=77",
        out_by(),
        "echo here > outside id=MASQ ttl=63",
    ),
    (
        "a protocol without ports keeps what it has",
        "protocol-50 client > outside",
        out_by(),
        "protocol-50 here > outside ttl=63",
    ),
    (
        "a range that is not to be masqueraded sees the pod",
        "tcp client:40000 > kept-world:443",
        out_by(),
        "tcp client:40000 > kept-world:443 ttl=63",
    ),
    (
        "the other node is the world, where the underlay does not know pods",
        "tcp client:40000 > there:22",
        out_by(),
        "tcp here:MASQ > there:22 ttl=63",
    ),
    ("no hop is left", "tcp client:40000 > outside:443 ttl=1", refused("HOP_LIMIT"), None),
]

ENCAPSULATED: list[Row] = [
    ("its own node's VXLAN port", "udp client:1 > here:8472", dropped("POD_ENCAPSULATES"), None),
    ("at the router's address", "udp client:1 > router:8472", dropped("POD_ENCAPSULATES"), None),
    ("another node's VXLAN port", "udp client:1 > there:8472", dropped("POD_ENCAPSULATES"), None),
    ("the same port of the node by TCP", "tcp client:1 > here:8472", PASSED, None),
    (
        "the same port of a pod",
        "udp client:1 > neighbour:8472",
        into("neighbour"),
        "udp client:1 > neighbour:8472 ttl=63",
    ),
]


@table(ANYWHERE)
def test_a_pod_reaches(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_pod("client", sent).expect(verdict, seen)


@table(SERVICES)
def test_a_pod_asks_a_service(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_pod("client", sent).expect(verdict, seen)


@table(WORLD)
def test_a_pod_reaches_the_world(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_pod("client", sent).expect(verdict, seen)


@table(ENCAPSULATED)
def test_a_pod_cannot_reach_the_overlay(
    here: Node, sent: str, verdict: Verdict, seen: str | None
) -> None:
    here.from_pod("client", sent).expect(verdict, seen)


@pytest.mark.parametrize("outer", list(Family), ids=["over IPv4", "over IPv6"])
def test_a_remote_pod_is_reached_through_a_tunnel_of_either_family(
    here: Node, family: Family, outer: Family
) -> None:
    here.fill(family, world.Underlay(outer=outer))
    sent = here.from_pod("client", "tcp client:40000 > remote:80")
    sent.expect(through_tunnel(), "tcp client:40000 > remote:80 ttl=63")


class TestNativeRouting:
    """The underlay knows the pods' ranges: next hops in place of a tunnel."""

    @pytest.fixture
    def underlay(self) -> world.Underlay:
        return world.Underlay(vxlan=False)

    @table(
        [
            (
                "a pod of another node by its node",
                "tcp client:40000 > remote:80",
                by_next_hop(),
                "tcp client:40000 > remote:80 ttl=63",
            ),
            (
                "a Service's backend there",
                "tcp client:40000 > far:80",
                by_next_hop(),
                "tcp client:40000 > remote:8080 ttl=63",
            ),
            (
                "behind the node's port",
                "tcp client:40000 > here:30081",
                by_next_hop(),
                "tcp router:MASQ > remote:8080 ttl=63",
            ),
            (
                "the other node sees the pod itself",
                "tcp client:40000 > there:22",
                out_by(),
                "tcp client:40000 > there:22 ttl=63",
            ),
            (
                "the world does not",
                "tcp client:40000 > outside:443",
                out_by(),
                "tcp here:MASQ > outside:443 ttl=63",
            ),
        ]
    )
    def test_a_pod_reaches(self, here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
        here.from_pod("client", sent).expect(verdict, seen)


# ---- who may send what ----
SPOOFED: list[Row] = [
    ("another pod's address", "tcp neighbour:1 > remote:80", dropped("SPOOFED_SOURCE"), None),
    ("a pod's address of another node", "tcp remote:1 > client:80", dropped("SPOOFED_SOURCE"), None),
    ("the node's address", "udp here:1 > neighbour:53", dropped("SPOOFED_SOURCE"), None),
    ("an address of the world", "udp outside:1 > neighbour:53", dropped("SPOOFED_SOURCE"), None),
    ("a Service's address", "udp near:53 > neighbour:53", dropped("SPOOFED_SOURCE"), None),
    ("no address", "udp unspecified:68 > neighbour:67", dropped("SPOOFED_SOURCE"), None),
    ("to the node, too", "udp neighbour:1 > here:53", dropped("SPOOFED_SOURCE"), None),
]  # fmt: skip


@table(SPOOFED)
def test_a_pod_cannot_send_from(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_pod("client", sent).expect(verdict, seen)
    assert not here.flows()


def test_a_pod_cannot_send_from_another_mac(here: Node) -> None:
    frame = here.build("tcp client:40000 > neighbour:80", world.GATEWAY_MAC, world.STRANGER_MAC)
    here.from_pod("client", frame).expect(dropped("SPOOFED_MAC"))


def test_an_interface_that_is_no_known_pod_sends_nothing(here: Node) -> None:
    frame = here.build(
        "tcp client:40000 > neighbour:80", world.GATEWAY_MAC, world.mac_of(world.CLIENT)
    )
    here.run("from_pod", world.STRANGER, frame).expect(dropped("SPOOFED_SOURCE"))


MASQUERADE_ALL: list[Row] = [
    (
        "a ClusterIP hides pods",
        "tcp client:40000 > far:80",
        through_tunnel(),
        "tcp router:MASQ > remote:8080 ttl=63",
    ),
    (
        "not before the node's own servers",
        "tcp client:40000 > daemon:80",
        PASSED,
        "tcp client:40000 > here:10250",
    ),
    (
        "nothing else: externalTrafficPolicy Local",
        "tcp client:40000 > here:30088",
        through_tunnel(),
        "tcp client:40000 > remote:8088 ttl=63",
    ),
    (
        "nothing else: a hostPort",
        "tcp client:40000 > here:8888",
        into("neighbour"),
        "tcp client:40000 > neighbour:8888 ttl=63",
    ),
    (
        "nothing else: another pod",
        "tcp client:40000 > neighbour:80",
        into("neighbour"),
        "tcp client:40000 > neighbour:80 ttl=63",
    ),
]


@table(MASQUERADE_ALL)
def test_masquerade_all_adds_what_asks_a_cluster_ip(
    here: Node, sent: str, verdict: Verdict, seen: str | None
) -> None:
    here.change("node", 0, flags=int(NodeFlag.VXLAN | NodeFlag.MASQUERADE_ALL))
    here.from_pod("client", sent).expect(verdict, seen)


def test_a_cluster_ip_refuses_unknown_ports_though_no_service_range_is_known(here: Node) -> None:
    """Without serviceCIDRs a ClusterIP's address is the world, were it not for its frontends."""
    network = ip_network(world.SERVICE_RANGE[here.family is Family.V6])
    assert here.delete("routes", RouteKey(network.prefixlen, network.network_address))
    here.from_pod("client", "tcp client:40000 > near:81").expect(refused("NO_PORT"))
    here.from_pod("client", "tcp client:40000 > no-service:80").expect(out_by())


def test_masquerade_uses_the_address_of_the_uplink_that_leads_there(here: Node) -> None:
    outside2 = ip_address(here.addresses["outside2"])
    key = world.host_route(outside2)
    here.put("routes", key, world.masqueraded(world.UPLINK2))
    sent = here.from_pod("client", "tcp client:40000 > outside2:443")
    sent.expect(out_by(world.UPLINK2), "tcp here2:MASQ > outside2:443 ttl=63")


def test_without_an_address_on_the_uplink_nothing_leaves(here: Node) -> None:
    here.change("uplinks", world.UPLINK, address=here.addresses["unspecified"])
    here.from_pod("client", "tcp client:40000 > outside:443").expect(dropped("NO_UPLINK"))


def test_a_pod_that_is_its_own_backend_needs_the_routers_address(here: Node) -> None:
    here.change("node", 0, router=here.addresses["unspecified"])
    here.from_pod("client", "tcp client:40000 > self:80").expect(dropped("NO_UPLINK"))


def test_a_pod_with_a_limit_is_entered_where_its_shaper_is(here: Node) -> None:
    """From every side: the redirect straight into the pod would go round the host veth's qdisc."""
    here.change("endpoints", here.addresses["neighbour"], flags=int(EndpointFlag.SHAPED))
    seen = "tcp {}:40000 > neighbour:80 ttl=63"
    limited = into_by_shaper("neighbour")
    here.from_pod("client", "tcp client:40000 > neighbour:80").expect(
        limited, seen.format("client")
    )
    here.from_overlay("tcp remote:40000 > neighbour:80").expect(limited, seen.format("remote"))
    here.from_uplink("tcp outside:40000 > neighbour:80").expect(limited, seen.format("outside"))
