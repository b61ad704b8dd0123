# SPDX-License-Identifier: Apache-2.0
"""What comes from outside by an uplink: front doors, replies of the world, and the rest."""

from __future__ import annotations

import pytest

from dataplane.model.constants import FrontendKind, ServiceFlag
from dataplane.model.net import Family
from dataplane.model.rows import RouteRow
from tests.program import world
from tests.program.node import Node
from tests.program.result import (
    PASSED,
    Verdict,
    by_next_hop,
    dropped,
    into,
    out_by,
    refused,
    through_tunnel,
)
from tests.program.tables import Row, table

FRONT_DOORS: list[Row] = [
    (
        "the node's port, backend on this node: the client is hidden",
        "tcp outside:40000 > here:30080",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8080 ttl=63",
    ),
    (
        "the node's port, backend on the other node: it answers by the node's router",
        "tcp outside:40000 > here:30081",
        through_tunnel(),
        "tcp router:MASQ > remote:8080 ttl=63",
    ),
    (
        "UDP",
        "udp outside:40000 > here:30053",
        into("neighbour"),
        "udp router:MASQ > neighbour:5353 ttl=63",
    ),
    (
        "UDP without a checksum",
        "udp outside:40000 > here:30053 csum=0",
        into("neighbour"),
        "udp router:MASQ > neighbour:5353 csum=0 ttl=63",
    ),
    (
        "the load balancer's address",
        "tcp outside:40000 > balancer:80",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8080 ttl=63",
    ),
    (
        "an external address",
        "tcp outside:40000 > external:80",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8080 ttl=63",
    ),
    (
        "externalTrafficPolicy Local keeps the client's address",
        "tcp outside:40000 > here:30087",
        into("neighbour"),
        "tcp outside:40000 > neighbour:8087 ttl=63",
    ),
    (
        "at the load balancer's address, too",
        "tcp outside:40000 > balancer:8087",
        into("neighbour"),
        "tcp outside:40000 > neighbour:8087 ttl=63",
    ),
    (
        "externalTrafficPolicy Local without an endpoint here is silent",
        "tcp outside:40000 > here:30088",
        dropped("NO_LOCAL_BACKEND"),
        None,
    ),
    (
        "a hostPort keeps the client's address",
        "tcp outside:40000 > here:8888",
        into("neighbour"),
        "tcp outside:40000 > neighbour:8888 ttl=63",
    ),
    (
        "the backend is this node itself: its own stack answers the client",
        "tcp outside:40000 > here:30092",
        PASSED,
        "tcp outside:40000 > here:10250",
    ),
    (
        "a ClusterIP that a router leads here hides the client",
        "tcp outside:40000 > near:80",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8080 ttl=63",
    ),
    (
        "a port that the ClusterIP has not",
        "tcp outside:40000 > near:81",
        refused("NO_PORT"),
        None,
    ),
    (
        "a port that the load balancer's address has not is the network's",
        "tcp outside:40000 > balancer:81",
        PASSED,
        None,
    ),
    ("loopback, from outside", "tcp outside:40000 > loopback:30080", dropped("MARTIAN"), None),
    ("no endpoint", "tcp outside:40000 > here:30084", refused("NO_BACKEND"), None),
    (
        "mid-flow, of a flow that nobody knows",
        "tcp outside:40000 > here:30080 A ack=7",
        refused("NO_FLOW"),
        "tcp here:30080 > outside:40000 R seq=7 window=0 ip-id=0",
    ),
    ("no hop is left", "tcp outside:40000 > here:30080 ttl=1", refused("HOP_LIMIT"), None),
]

THE_REST: list[Row] = [
    ("the node's own services", "tcp outside:40000 > here:22", PASSED, None),
    ("a ping of the node", "echo outside > here", PASSED, None),
    ("an answer to the node's own ping", "echo-reply outside > here id=61000", PASSED, None),
    ("other nodes' encapsulated packets", "udp there:50000 > here:8472", PASSED, None),
    (
        "sent where no node sends them: by a pod that a node hides",
        "udp there:50000 > here2:8472",
        dropped("POD_ENCAPSULATES"),
        None,
    ),
    (
        "encapsulated by whoever else: dropped when unpacked",
        "udp outside:50000 > here:8472",
        PASSED,
        None,
    ),
    (
        "the VXLAN port of a pod",
        "udp outside:50000 > client:8472",
        into("client"),
        "udp outside:50000 > client:8472 ttl=63",
    ),
    ("multicast", "udp outside:5353 > group:5353", PASSED, None),
    ("a network behind the node", "tcp outside:40000 > lan:80", PASSED, None),
    ("from loopback, for the node", "tcp loopback:40000 > here:22", PASSED, None),
    ("from loopback, for behind it", "tcp loopback:40000 > lan:80", dropped("MARTIAN"), None),
    ("from a group, for behind it", "tcp group:40000 > lan:80", dropped("MARTIAN"), None),
    (
        "a pod's own address, where the network leads there",
        "tcp outside:40000 > client:80",
        into("client"),
        "tcp outside:40000 > client:80 ttl=63",
    ),
    ("an address of the range that no pod has", "tcp outside:1 > ghost:80", PASSED, None),
    (
        "a new connection to a masquerade port",
        "tcp outside:443 > here:61000",
        dropped("MASQUERADE_UNKNOWN"),
        None,
    ),
    (
        "a reply to a masquerade port that no flow has",
        "tcp outside:443 > here:61500 SA ack=5",
        dropped("MASQUERADE_UNKNOWN"),
        None,
    ),
    ("by UDP", "udp outside:53 > here:64999", dropped("MASQUERADE_UNKNOWN"), None),
    ("a port just below the range", "udp outside:53 > here:60999", PASSED, None),
    ("a port just above the range", "udp outside:53 > here:65000", PASSED, None),
]


GUARDED: list[Row] = [
    (
        "a client in a range",
        "tcp outside:40000 > balancer:8015",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8015 ttl=63",
    ),
    (
        "a client in none is not answered",
        "tcp outside2:40000 > balancer:8015",
        dropped("SOURCE_RANGE"),
        None,
    ),
    (
        "the balancer's own address as source",
        "tcp balancer:40000 > balancer:8015",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8015 ttl=63",
    ),
    (
        "the node's port is open to all",
        "tcp outside2:40000 > here:30015",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8015 ttl=63",
    ),
    (
        "so is an external address",
        "tcp outside2:40000 > external:8015",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8015 ttl=63",
    ),
    (
        "so is the ClusterIP",
        "tcp outside2:40000 > guarded:80",
        into("neighbour"),
        "tcp router:MASQ > neighbour:8015 ttl=63",
    ),
    ("no endpoint, in a range", "tcp outside:40000 > balancer:8016", refused("NO_BACKEND"), None),
    (
        "no endpoint, in none: refused all the same",
        "tcp outside2:40000 > balancer:8016",
        refused("NO_BACKEND"),
        None,
    ),
]


@table(GUARDED)
def test_source_ranges_guard_a_load_balancers_address_alone(
    here: Node, sent: str, verdict: Verdict, seen: str | None
) -> None:
    here.from_uplink(sent).expect(verdict, seen)


def test_pods_are_checked_against_source_ranges_too(here: Node) -> None:
    asked = here.from_pod("neighbour", "tcp neighbour:40000 > balancer:8015")
    asked.expect(dropped("SOURCE_RANGE"))


def test_a_list_of_ranges_counts_with_the_write_that_names_it(here: Node) -> None:
    open_to_all = world.EVERYWHERE[here.family is Family.V6]
    here.put_range(world.GUARDED, open_to_all, odd=False)
    asked = "tcp outside2:40000 > balancer:8015"
    here.from_uplink(asked).expect(dropped("SOURCE_RANGE"))
    here.change("services", world.GUARDED.id, flags=int(ServiceFlag.SOURCE_RANGES))
    here.from_uplink(asked).expect(into("neighbour"))


def test_an_established_connection_outlives_a_change_of_ranges(here: Node) -> None:
    here.from_uplink("tcp outside:40000 > balancer:8015").expect(into("neighbour"))
    here.change("services", world.GUARDED.id, flags=int(ServiceFlag.SOURCE_RANGES))
    here.from_uplink("tcp outside:40000 > balancer:8015 A ack=7").expect(into("neighbour"))
    here.from_uplink("tcp outside:40001 > balancer:8015").expect(dropped("SOURCE_RANGE"))


class TestSendersOfOtherNodes:
    """Native routing: pods of other nodes come by the uplink under their own addresses."""

    @pytest.fixture
    def underlay(self) -> world.Underlay:
        return world.Underlay(vxlan=False)

    @table(
        [
            (
                "externalTrafficPolicy Local does not bind them",
                "tcp remote:40000 > here:30087",
                into("neighbour"),
                "tcp remote:40000 > neighbour:8087 ttl=63",
            ),
            (
                "an endpoint elsewhere answers by this node",
                "tcp remote:40000 > here:30088",
                by_next_hop(),
                "tcp router:MASQ > remote:8088 ttl=63",
            ),
            (
                "nor are they hidden at a ClusterIP",
                "tcp remote:40000 > near:80",
                into("neighbour"),
                "tcp remote:40000 > neighbour:8080 ttl=63",
            ),
            (
                "but behind the node's port",
                "tcp remote:40000 > here:30080",
                into("neighbour"),
                "tcp router:MASQ > neighbour:8080 ttl=63",
            ),
            (
                "a node is an outside sender",
                "tcp there:40000 > here:30088",
                dropped("NO_LOCAL_BACKEND"),
                None,
            ),
        ]
    )
    def test_a_pod_asks(self, here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
        here.from_uplink(sent).expect(verdict, seen)


@table(FRONT_DOORS)
def test_outside_asks_a_service(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_uplink(sent).expect(verdict, seen)


@table(THE_REST)
def test_outside_sends(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_uplink(sent).expect(verdict, seen)


def test_a_service_may_have_the_vxlan_port_at_an_address_of_its_own(here: Node) -> None:
    frontends = tuple(
        (name, world.VXLAN_PORT, kind)
        for name, kind in (
            ("external", FrontendKind.EXTERNAL_IP),
            ("balancer", FrontendKind.LOAD_BALANCER),
        )
    )
    backend = world.Backend(40, "neighbour", 8080)
    here.put_service(world.Service(20, world.UDP, frontends, (backend,)))
    for name in ("external", "balancer"):
        sent = here.from_uplink(f"udp outside:40000 > {name}:8472")
        sent.expect(into("neighbour"), "udp router:MASQ > neighbour:8080 ttl=63")
    here.from_uplink("udp there:50000 > here:8472").expect(PASSED)


def test_link_local_traffic_is_the_nodes(here: Node, family: Family) -> None:
    here.from_uplink("udp outside:546 > gateway:547").expect(PASSED)


def test_native_routing_reaches_the_backend_by_its_node(here: Node, family: Family) -> None:
    here.fill(family, world.Underlay(vxlan=False))
    sent = here.from_uplink("tcp outside:40000 > here:30081")
    sent.expect(by_next_hop(), "tcp router:MASQ > remote:8080 ttl=63")


def test_a_backend_in_the_world_sees_the_uplinks_address(here: Node) -> None:
    """For example one with hostNetwork on another node."""
    here.put_backend(world.FAR, world.Backend(2, "there", 10250), world.USABLE)
    sent = here.from_uplink("tcp outside:40000 > here:30081")
    sent.expect(out_by(), "tcp here:MASQ > there:10250 ttl=63")


def test_local_policy_alone_of_all_policies_binds_outside(here: Node) -> None:
    here.flag(world.NEAR, ServiceFlag.INTERNAL_LOCAL)
    here.from_uplink("tcp outside:40000 > here:30081").expect(through_tunnel())
    here.flag(world.FAR, ServiceFlag.EXTERNAL_LOCAL)
    here.from_uplink("tcp outside:40001 > here:30081").expect(dropped("NO_LOCAL_BACKEND"))


@pytest.mark.parametrize("device", [world.UPLINK, world.UPLINK2])
class TestReplies:
    """A reply leaves by the device that the question came by, from the address that was asked."""

    @pytest.mark.parametrize(
        ("asked", "inside", "frontend"),
        [
            pytest.param("here:30080", "neighbour:8080", "here:30080", id="Cluster policy"),
            pytest.param("here:30087", "neighbour:8087", "here:30087", id="Local policy"),
            pytest.param("balancer:80", "neighbour:8080", "balancer:80", id="load balancer"),
        ],
    )
    def test_of_a_backend_here(
        self, here: Node, device: int, asked: str, inside: str, frontend: str
    ) -> None:
        sent = here.from_uplink(f"tcp outside:40000 > {asked}", device).expect(into("neighbour"))
        seen_as = f"router:{sent.port}" if sent.port != 40000 else "outside:40000"
        reply = here.from_pod("neighbour", f"tcp {inside} > {seen_as} SA ack=1001")
        reply.expect(out_by(device), f"tcp {frontend} > outside:40000 SA ack=1001 ttl=63")

    def test_of_a_backend_on_the_other_node(self, here: Node, device: int) -> None:
        sent = here.from_uplink("udp outside:40000 > here:30053", device)
        sent.expect(into("neighbour"))
        sent = here.from_uplink("tcp outside:40000 > here:30081", device)
        sent.expect(through_tunnel())
        reply = here.from_overlay(f"tcp remote:8080 > router:{sent.port} SA ack=1001 ttl=63")
        reply.expect(out_by(device), "tcp here:30081 > outside:40000 SA ack=1001 ttl=62")

    def test_of_the_node_itself(self, here: Node, device: int) -> None:
        here.from_uplink("tcp outside:40000 > here:30092", device).expect(PASSED, None or (
            here.build(
                "tcp outside:40000 > here:10250", world.mac_of(device), world.SWITCH_MAC
            )
        ))  # fmt: skip
        reply = here.to_uplink("tcp here:10250 > outside:40000 SA ack=1001")
        reply.expect(PASSED, "tcp here:30092 > outside:40000 SA ack=1001")


class TestMasquerade:
    """The world's replies find their pod again."""

    @pytest.mark.parametrize(
        ("sent", "seen", "reply", "received"),
        [
            pytest.param(
                "tcp client:40000 > outside:443",
                "tcp here:MASQ > outside:443 ttl=63",
                "tcp outside:443 > here:MASQ SA ack=1001",
                "tcp outside:443 > client:40000 SA ack=1001 ttl=63",
                id="TCP",
            ),
            pytest.param(
                "udp client:40000 > outside:53",
                "udp here:MASQ > outside:53 ttl=63",
                "udp outside:53 > here:MASQ data=300",
                "udp outside:53 > client:40000 data=300 ttl=63",
                id="UDP",
            ),
            pytest.param(
                "udp client:40000 > outside:53",
                "udp here:MASQ > outside:53 ttl=63",
                "udp outside:53 > here:MASQ csum=0",
                "udp outside:53 > client:40000 csum=0 ttl=63",
                id="UDP, answered without a checksum",
            ),
            pytest.param(
                "echo client > outside id=7",
                "echo here > outside id=MASQ ttl=63",
                "echo-reply outside > here id=MASQ",
                "echo-reply outside > client id=7 ttl=63",
                id="ping",
            ),
        ],
    )
    def test_a_reply_returns_to_its_pod(
        self, here: Node, sent: str, seen: str, reply: str, received: str
    ) -> None:
        out = here.from_pod("client", sent).expect(out_by(), seen)
        here.from_uplink(out.named(reply)).expect(into("client"), received)

    def test_later_packets_keep_the_port(self, here: Node) -> None:
        first = here.from_pod("client", "udp client:40000 > outside:53")
        again = here.from_pod("client", "udp client:40000 > outside:53 data=40")
        again.expect(out_by(), first.named("udp here:MASQ > outside:53 data=40 ttl=63"))

    @pytest.mark.parametrize(
        ("line", "reply", "received"),
        [
            (
                "tcp {}:40000 > outside:443",
                "tcp outside:443 > here:MASQ SA",
                "tcp outside:443 > {}:40000 SA ttl=63",
            ),
            (
                "echo {} > outside id=7",
                "echo-reply outside > here id=MASQ",
                "echo-reply outside > {} id=7 ttl=63",
            ),
        ],
        ids=["TCP", "ping"],
    )
    def test_two_pods_with_one_port_get_two(
        self, here: Node, line: str, reply: str, received: str
    ) -> None:
        """They would be one flow to the world otherwise: each pod gets its own reply."""
        ports = set()
        for pod in ("client", "neighbour"):
            out = here.from_pod(pod, line.format(pod)).expect(out_by())
            here.from_uplink(out.named(reply)).expect(into(pod), received.format(pod))
            ports.add(out.port)
        assert len(ports) == 2

    def test_a_taken_port_is_stepped_over(self, here: Node) -> None:
        """With a range of two, whatever the hash says, the second flow finds the other port."""
        here.change("node", 0, masquerade_min=61000, masquerade_max=61001)
        ports = {
            here.from_pod(pod, f"udp {pod}:40000 > outside:53").expect(out_by()).port
            for pod in ("client", "neighbour")
        }
        assert ports == {61000, 61001}

    def test_a_destination_without_free_ports_is_dropped_by_name(self, here: Node) -> None:
        here.change("node", 0, masquerade_min=61000, masquerade_max=61000)
        here.from_pod("client", "udp client:40000 > outside:53").expect(out_by())
        sent = here.from_pod("neighbour", "udp neighbour:40000 > outside:53")
        sent.expect(dropped("PORTS_EXHAUSTED"))
        other = here.from_pod("neighbour", "udp neighbour:40000 > outside2:53")
        other.expect(out_by(), "udp here:61000 > outside2:53 ttl=63")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_a_port_that_a_socket_of_the_node_has_is_left_alone(
        self, here: Node, protocol: str
    ) -> None:
        here.change("node", 0, masquerade_min=61000, masquerade_max=61001)
        with here.socket(protocol, 61000):
            sent = here.from_pod("client", f"{protocol} client:40000 > outside:443")
            sent.expect(out_by(), f"{protocol} here:61001 > outside:443 ttl=63")

    def test_the_nodes_own_socket_in_the_range_is_served(self, here: Node) -> None:
        with here.socket("udp", 61000):
            here.from_uplink("udp outside:53 > here:61000").expect(PASSED)

    def test_a_reply_from_another_host_is_no_reply(self, here: Node) -> None:
        out = here.from_pod("client", "udp client:40000 > outside:53")
        stranger = here.from_uplink(out.named("udp outside2:53 > here:MASQ"))
        stranger.expect(dropped("MASQUERADE_UNKNOWN"))

    def test_a_reply_to_a_pod_that_is_gone_is_dropped(self, here: Node) -> None:
        out = here.from_pod("client", "udp client:40000 > outside:53")
        here.delete("endpoints", here.addresses["client"])
        here.from_uplink(out.named("udp outside:53 > here:MASQ")).expect(dropped("NO_POD"))


def test_a_front_door_whose_route_is_gone_is_left_to_the_stack(here: Node) -> None:
    """Without a route the node's kernel decides, and says so to the client."""
    network = here.addresses["remote"]
    here.put("routes", world.host_route(network), RouteRow(1))
    here.from_uplink("tcp outside:40000 > here:30081").expect(
        PASSED, "tcp router:MASQ > remote:8080"
    )
