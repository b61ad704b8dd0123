# SPDX-License-Identifier: Apache-2.0
"""What stays on a pod's own link: ARP, neighbour discovery, multicast, tags, other protocols."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import (
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from dataplane.kernel.prelude import Setup
from dataplane.model.net import Family
from tests.program import world
from tests.program.node import Node
from tests.program.result import ANSWERED, PASSED, Verdict, dropped, into

POD_MAC = world.mac_of(world.CLIENT)
BROADCAST_MAC = b"\xff" * 6
LINK_LOCAL = "fe80::ff:fe00:65"  # the pod's own
ALL_NODES, ALL_ROUTERS = "ff02::1", "ff02::2"


def _address(here: Node, value: object) -> object:
    """The address of a name; anything else as it is."""
    return str(here.addresses[value]) if isinstance(value, str) else value


# ---- ARP: only IPv4 has it ----
class TestArp:
    @pytest.fixture
    def family(self) -> Family:
        return Family.V4

    def ask(self, here: Node, **fields: object) -> Packet:
        """Who has the gateway? asks the client."""
        question = {
            "op": "who-has",
            "hwsrc": POD_MAC.hex(":"),
            "psrc": str(here.addresses["client"]),
            "pdst": str(here.addresses["gateway"]),
        } | {name: _address(here, value) for name, value in fields.items()}
        return Ether(dst="ff:ff:ff:ff:ff:ff", src=POD_MAC.hex(":")) / ARP(**question)

    def test_the_gateway_is_answered_for(self, here: Node) -> None:
        answer = Ether(dst=POD_MAC.hex(":"), src=world.GATEWAY_MAC.hex(":")) / ARP(
            op="is-at",
            hwsrc=world.GATEWAY_MAC.hex(":"),
            psrc=str(here.addresses["gateway"]),
            hwdst=POD_MAC.hex(":"),
            pdst=str(here.addresses["client"]),
        )
        asked = here.run("from_pod_l2", world.CLIENT, bytes(self.ask(here)))
        asked.expect(ANSWERED, bytes(answer))

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            pytest.param({"pdst": "neighbour"}, "NOT_IP", id="for another pod"),
            pytest.param({"pdst": "here"}, "NOT_IP", id="for the node"),
            pytest.param({"pdst": "client"}, "NOT_IP", id="for itself, gratuitously"),
            pytest.param({"op": 2}, "NOT_IP", id="an answer that nobody asked for"),
            pytest.param({"psrc": "neighbour"}, "NEIGHBOUR", id="as another pod"),
            pytest.param({"psrc": "here"}, "NEIGHBOUR", id="as the node"),
            pytest.param({"psrc": "gateway", "op": 2}, "NEIGHBOUR", id="as the gateway"),
        ],
    )
    def test_other_questions_are_not(
        self, here: Node, fields: dict[str, object], reason: str
    ) -> None:
        asked = here.run("from_pod_l2", world.CLIENT, bytes(self.ask(here, **fields)))
        asked.expect(dropped(reason))

    def test_a_question_cut_short_is_dropped(self, here: Node) -> None:
        cut = bytes(self.ask(here))[:40]
        here.run("from_pod_l2", world.CLIENT, cut).expect(dropped("TRUNCATED"))

    def test_an_interface_that_is_no_pod_asks_in_vain(self, here: Node) -> None:
        asked = here.run("from_pod_l2", world.STRANGER, bytes(self.ask(here)))
        asked.expect(dropped("NEIGHBOUR"))


# ---- neighbour discovery: only IPv6 has it ----
class TestNeighbourDiscovery:
    @pytest.fixture
    def family(self) -> Family:
        return Family.V6

    def send(
        self, here: Node, message: Packet, dst: str, src: str = LINK_LOCAL, **ip: int
    ) -> bytes:
        ip = {"hlim": 255} | ip
        return bytes(
            Ether(dst=world.GATEWAY_MAC.hex(":"), src=POD_MAC.hex(":"))
            / IPv6(
                src=str(here.addresses.get(src, src)), dst=str(here.addresses.get(dst, dst)), **ip
            )
            / message
        )

    def solicit(self, here: Node, target: str, with_mac: bool = True) -> Packet:
        ask = ICMPv6ND_NS(tgt=str(here.addresses.get(target, target)))
        return ask / ICMPv6NDOptSrcLLAddr(lladdr=POD_MAC.hex(":")) if with_mac else ask

    def advertise(self, here: Node, target: str) -> Packet:
        return ICMPv6ND_NA(tgt=str(here.addresses.get(target, target))) / ICMPv6NDOptDstLLAddr(
            lladdr=POD_MAC.hex(":")
        )

    @pytest.mark.parametrize("src", ["client", LINK_LOCAL])
    @pytest.mark.parametrize("dst", ["ff02::1:ff00:1", "gateway"], ids=["multicast", "probe"])
    @pytest.mark.parametrize("with_mac", [True, False], ids=["with MAC", "without MAC"])
    def test_the_gateway_is_answered_for(
        self, here: Node, src: str, dst: str, with_mac: bool
    ) -> None:
        gateway = str(here.addresses["gateway"])
        answer = (
            Ether(dst=POD_MAC.hex(":"), src=world.GATEWAY_MAC.hex(":"))
            / IPv6(src=gateway, dst=str(here.addresses.get(src, src)), hlim=255)
            / ICMPv6ND_NA(tgt=gateway, R=1, S=1, O=1)
            / ICMPv6NDOptDstLLAddr(lladdr=world.GATEWAY_MAC.hex(":"))
        )
        asked = self.send(here, self.solicit(here, "gateway", with_mac), dst, src)
        here.from_pod("client", asked).expect(ANSWERED, bytes(answer))

    @pytest.mark.parametrize("target", ["client", LINK_LOCAL, "neighbour"])
    def test_duplicate_address_detection_passes(self, here: Node, target: str) -> None:
        probe = self.solicit(here, target, with_mac=False)
        asked = self.send(here, probe, "ff02::1:ff00:10", "unspecified")
        here.from_pod("client", asked).expect(PASSED)

    def test_the_node_answers_for_its_other_addresses(self, here: Node) -> None:
        asked = self.send(here, self.solicit(here, "fe80::2"), "ff02::1:ff00:2")
        here.from_pod("client", asked).expect(PASSED)

    @pytest.mark.parametrize("src", ["neighbour", "here", "outside"])
    def test_nobody_asks_from_an_address_of_others(self, here: Node, src: str) -> None:
        asked = self.send(here, self.solicit(here, "gateway"), "ff02::1:ff00:1", src)
        here.from_pod("client", asked).expect(dropped("NEIGHBOUR"))

    @pytest.mark.parametrize("target", ["client", LINK_LOCAL])
    def test_a_pod_says_where_its_own_addresses_are(self, here: Node, target: str) -> None:
        told = self.send(here, self.advertise(here, target), ALL_NODES)
        here.from_pod("client", told).expect(PASSED)

    @pytest.mark.parametrize("target", ["gateway", "neighbour", "remote", "here", "near"])
    def test_a_pod_does_not_say_where_others_are(self, here: Node, target: str) -> None:
        told = self.send(here, self.advertise(here, target), ALL_NODES)
        here.from_pod("client", told).expect(dropped("NEIGHBOUR"))

    def test_a_pod_is_no_router(self, here: Node) -> None:
        told = self.send(here, ICMPv6ND_RA(), ALL_NODES)
        here.from_pod("client", told).expect(dropped("NEIGHBOUR"))

    def test_a_pod_redirects_nobody(self, here: Node) -> None:
        told = self.send(here, ICMPv6ND_Redirect(), "gateway")
        here.from_pod("client", told).expect(dropped("NEIGHBOUR"))

    @pytest.mark.parametrize("what", ["solicit", "advertise"])
    def test_a_message_that_came_over_a_router_is_dropped(self, here: Node, what: str) -> None:
        message = getattr(self, what)(here, "gateway")
        asked = self.send(here, message, "ff02::1:ff00:1", hlim=254)
        here.from_pod("client", asked).expect(dropped("NEIGHBOUR"))

    def test_a_solicitation_cut_short_is_dropped(self, here: Node) -> None:
        asked = self.send(here, Raw(bytes(ICMPv6ND_NS())[:20]), ALL_NODES, nh=58)
        here.from_pod("client", asked).expect(dropped("TRUNCATED"))

    def test_routers_may_be_looked_for(self, here: Node) -> None:
        asked = self.send(here, ICMPv6ND_RS(), ALL_ROUTERS)
        here.from_pod("client", asked).expect(PASSED)

    def test_multicast_membership_stays_on_the_link(self, here: Node) -> None:
        report = IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLReport2()
        told = self.send(here, report, "ff02::16", "unspecified", hlim=1)
        here.from_pod("client", told).expect(PASSED)

    @pytest.mark.parametrize(
        ("dst", "verdict"),
        [
            pytest.param("gateway", PASSED, id="the gateway"),
            pytest.param(ALL_NODES, PASSED, id="all nodes on the link"),
            pytest.param("neighbour", dropped("SPOOFED_SOURCE"), id="another pod"),
            pytest.param("outside", dropped("SPOOFED_SOURCE"), id="the world"),
        ],
    )
    def test_a_link_local_source_reaches(self, here: Node, dst: str, verdict: Verdict) -> None:
        sent = self.send(here, Raw(bytes(16)), dst, nh=50, hlim=64)
        here.from_pod("client", sent).expect(verdict)


# ---- what is no plain IP ----
@pytest.mark.parametrize("tag", [0, 5], ids=["priority tag", "VLAN 5"])
def test_a_tagged_packet_is_dropped(here: Node, tag: int) -> None:
    """The kernel has taken the tag off already; the filter of protocol ip still sees the packet."""
    frame = here.build("tcp client:40000 > neighbour:80", world.GATEWAY_MAC, POD_MAC)
    tagged = here.run("from_pod", world.CLIENT, frame, Setup(vlan=tag))
    tagged.expect(dropped("VLAN"))


def test_a_tag_within_a_tag_is_dropped(here: Node) -> None:
    packet = Ether(here.build("tcp client:40000 > neighbour:80", world.GATEWAY_MAC, POD_MAC))
    packet.payload = Dot1Q(vlan=5) / packet.payload
    packet.type = 0x8100
    here.run("from_pod_l2", world.CLIENT, bytes(packet)).expect(dropped("NOT_IP"))


@pytest.mark.parametrize(
    "ethertype", [0x8847, 0x88CC, 0x8863], ids=["MPLS", "LLDP", "PPPoE discovery"]
)
def test_other_protocols_are_dropped(here: Node, ethertype: int) -> None:
    frame = BROADCAST_MAC + POD_MAC + ethertype.to_bytes(2, "big") + bytes(46)
    here.run("from_pod_l2", world.CLIENT, frame).expect(dropped("NOT_IP"))


def test_what_the_ip_filters_let_pass_passes_the_last_filter(here: Node) -> None:
    """The last filter is of protocol all, so it sees these packets again."""
    frame = here.build("tcp client:40000 > here:22", world.GATEWAY_MAC, POD_MAC)
    here.from_pod("client", frame).expect(PASSED)
    assert here.run("from_pod_l2", world.CLIENT, frame).outcome.retval == 0xFFFFFFFF


def test_a_packet_for_another_mac_is_still_delivered(here: Node) -> None:
    """A pod that has learnt a wrong MAC is forwarded all the same: only the IP header decides."""
    frame = here.build("tcp client:40000 > neighbour:80", world.STRANGER_MAC, POD_MAC)
    sent = here.from_pod("client", frame)
    sent.expect(into("neighbour"), "tcp client:40000 > neighbour:80 ttl=63")
