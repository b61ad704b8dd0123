# SPDX-License-Identifier: Apache-2.0
"""The overlay: whose encapsulated packets are taken, and how the node's own are addressed.

A test run has no tunnel key, so a prelude sets one in the same run (kernel.prelude). What
to_overlay sets cannot be read back; that the packets arrive is for the network tests.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from dataplane.kernel.prelude import Setup
from dataplane.model.net import Family
from tests.program import world
from tests.program.node import Node
from tests.program.result import PASSED, Verdict, dropped, into, out_by, refused, through_tunnel
from tests.program.tables import Row, table

STRANGER = {Family.V4: ip_address("192.0.2.99"), Family.V6: ip_address("2001:db8:2::99")}
TC_INDEX_DONE = 0x706C

FROM_THERE: list[Row] = [
    (
        "a pod of the sending node",
        "tcp remote:40000 > client:80 ttl=63",
        into("client"),
        "tcp remote:40000 > client:80 ttl=62",
    ),
    (
        "its router address, which hides a client from outside",
        "udp router-there:61000 > client:53",
        into("client"),
        "udp router-there:61000 > client:53 ttl=63",
    ),
    ("for this node's router", "echo remote > router", PASSED, None),
    (
        "for a port of it that hides no client",
        "udp remote:53 > router:61000",
        dropped("MASQUERADE_UNKNOWN"),
        None,
    ),
    ("for this node itself", "tcp remote:40000 > here:22", PASSED, None),
    ("from a pod of this node", "tcp neighbour:1 > client:80", dropped("OVERLAY_SOURCE"), None),
    ("from an address of no node", "tcp nowhere:1 > client:80", dropped("OVERLAY_SOURCE"), None),
    ("from the world", "tcp outside:1 > client:80", dropped("OVERLAY_SOURCE"), None),
    (
        "from the sending node itself, whose process has bound its socket",
        "tcp there:40000 > client:80",
        into("client"),
        "tcp there:40000 > client:80 ttl=63",
    ),
    ("from this node itself", "tcp here:1 > client:80", dropped("OVERLAY_SOURCE"), None),
    ("for a pod that is gone", "tcp remote:40000 > ghost:80", dropped("NO_POD"), None),
    ("for its own pods", "tcp remote:40000 > remote:80", dropped("NO_POD"), None),
    ("for the world", "tcp remote:40000 > outside:80", dropped("NO_POD"), None),
    ("for a Service, which it should have translated", "tcp remote:1 > near:80", dropped("NO_POD"), None),
    ("no hop is left", "tcp remote:40000 > client:80 ttl=1", refused("HOP_LIMIT"), None),
]  # fmt: skip


@table(FROM_THERE)
def test_an_encapsulated_packet(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_overlay(sent).expect(verdict, seen)


@pytest.mark.parametrize("outer", list(Family), ids=["over IPv4", "over IPv6"])
class TestOuter:
    @pytest.fixture
    def underlay(self, outer: Family) -> world.Underlay:
        return world.Underlay(outer=outer)

    def test_a_known_node_is_heard(self, here: Node, outer: Family) -> None:
        arrived = here.from_overlay("tcp remote:40000 > client:80")
        arrived.expect(into("client"), "tcp remote:40000 > client:80 ttl=63")

    def test_a_host_that_is_no_node_is_not(self, here: Node, outer: Family) -> None:
        arrived = here.from_overlay("tcp remote:40000 > client:80", sender=STRANGER[outer])
        arrived.expect(dropped("OVERLAY_PEER"))

    @pytest.mark.parametrize("vni", [0, world.VNI + 1, 0xFFFFFF])
    def test_another_networks_number_is_not_ours(self, here: Node, outer: Family, vni: int) -> None:
        arrived = here.from_overlay("tcp remote:40000 > client:80", vni=vni)
        arrived.expect(dropped("OVERLAY_VNI"))

    def test_a_node_by_its_address_of_the_other_family_is_not_its_pods(
        self, here: Node, outer: Family
    ) -> None:
        """It is a known node, but this pod range is to come by the other address."""
        other = Family.V6 if outer is Family.V4 else Family.V4
        sender = world.addresses(other)["there"]
        arrived = here.from_overlay("tcp remote:40000 > client:80", sender=sender)
        arrived.expect(dropped("OVERLAY_SOURCE"))


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("tcp there:40000 > client:80", "tcp client:80 > there:40000 SA ack=1001"),
        ("udp there:40000 > client:53", "udp client:53 > there:40000"),
    ],
)
def test_a_node_itself_is_answered_by_the_overlay(
    here: Node, there: Node, asked: str, answered: str
) -> None:
    """The network between nodes need not let a pod's address through."""
    here.from_overlay(asked).expect(into("client"))
    answer = here.from_pod("client", answered)
    answer.expect(through_tunnel(), f"{answered} ttl=63")
    there.from_overlay(answer.frame).expect(PASSED, None)


def test_what_a_pod_begins_with_a_node_goes_as_to_the_world(here: Node) -> None:
    here.from_pod("client", "tcp client:40000 > there:22").expect(out_by())


def test_a_packet_without_a_key_is_dropped(here: Node) -> None:
    frame = here.build("tcp remote:40000 > client:80", world.OVERLAY_MAC, world.OVERLAY_MAC)
    here.run("from_overlay", world.OVERLAY, frame).expect(dropped("OVERLAY_KEY"))


def test_the_inner_mac_does_not_matter(here: Node) -> None:
    frame = here.build("tcp remote:40000 > client:80", world.STRANGER_MAC, world.STRANGER_MAC)
    arrived = here.from_overlay(frame)
    arrived.expect(into("client"), "tcp remote:40000 > client:80 ttl=63")


TO_THERE: list[Row] = [
    ("the node's own packet for a pod there", "tcp router:40000 > remote:80", PASSED, None),
    ("no node has that range", "tcp router:40000 > nowhere:80", dropped("NO_ROUTE"), None),
    ("a pod of this node", "tcp router:40000 > client:80", dropped("NO_ROUTE"), None),
    ("the world", "tcp router:40000 > outside:80", dropped("NO_ROUTE"), None),
    ("multicast", "udp router:5353 > group:5353", dropped("MULTICAST"), None),
]


@table(TO_THERE)
def test_the_nodes_own_packet(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.to_overlay(sent).expect(verdict, sent if verdict is PASSED else None)


def test_the_nodes_own_packet_says_whereto(here: Node) -> None:
    sent = here.to_overlay("tcp router:40000 > remote:80")
    assert sent.outcome.verdict.hop == here.hop("there")


def test_what_another_hook_has_finished_passes_as_it_is(here: Node) -> None:
    """Its key is set already; even a packet that would be dropped here goes out."""
    frame = here.build("tcp outside:40000 > outside2:80", world.OVERLAY_MAC, world.OVERLAY_MAC)
    sent = here.run("to_overlay", world.OVERLAY, frame, Setup(tc_index=TC_INDEX_DONE))
    sent.expect(PASSED, frame)
