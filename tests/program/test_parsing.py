# SPDX-License-Identifier: Apache-2.0
"""Packets that are odd or broken: each is told by name, and none is read beyond its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.packet import Packet, Raw

from dataplane.abi.layout import abi
from dataplane.kernel.prelude import Setup
from dataplane.model.net import Family
from tests.program import packets, world
from tests.program.node import Node
from tests.program.result import PASSED, Frame, dropped, into, refused

POD_MAC = world.mac_of(world.CLIENT)
EXTENSION_MAX = abi(Family.V6).constant("EXTENSION_MAX")
IP_SIZE = {Family.V4: 20, Family.V6: 40}
ETHERNET = 14


def framed(node: Node, packet: Packet) -> Frame:
    return packets.frame(packet, node.family, world.GATEWAY_MAC, POD_MAC)


def packet_of(node: Node, line: str) -> Packet:
    return packets.build(line, node.family, node.addresses)


def cut(node: Node, line: str, length: int) -> Frame:
    """A packet whose IP header says the truth of a body that ends after `length` bytes."""
    whole = packet_of(node, line)
    body = bytes(whole.payload)[:length]
    head = whole.copy()
    head.remove_payload()
    return framed(node, head / Raw(body))


# ---- too short ----
@pytest.mark.parametrize(
    ("line", "kept"),
    [
        pytest.param("tcp client:1 > neighbour:80", 0, id="TCP, no header at all"),
        pytest.param("tcp client:1 > neighbour:80", 4, id="TCP, ports only"),
        pytest.param("tcp client:1 > neighbour:80", 13, id="TCP, before the flags"),
        pytest.param("tcp client:1 > neighbour:80", 19, id="TCP, before the end of its header"),
        pytest.param("udp client:1 > neighbour:53", 7, id="UDP"),
        pytest.param("echo client > neighbour", 7, id="ICMP"),
    ],
)
@pytest.mark.parametrize("padding", [0, 40], ids=["", "padded"])
def test_a_transport_header_that_is_not_all_there(
    here: Node, line: str, kept: int, padding: int
) -> None:
    """Padding after the IP packet is not taken for its header."""
    here.from_pod("client", cut(here, line, kept) + bytes(padding)).expect(dropped("TRUNCATED"))
    assert not here.flows()


def test_a_body_shorter_than_the_ip_header_says(here: Node) -> None:
    frame = here.build("udp client:1 > neighbour:53 data=100", world.GATEWAY_MAC, POD_MAC)
    here.from_pod("client", frame[:-1]).expect(dropped("TRUNCATED"))


def test_an_ip_header_that_is_not_all_there(here: Node) -> None:
    frame = here.build("udp client:1 > neighbour:53", world.GATEWAY_MAC, POD_MAC)
    setup = Setup(cut=ETHERNET + IP_SIZE[here.family] - 1)
    here.run("from_pod", world.CLIENT, frame, setup).expect(dropped("TRUNCATED"))


class TestBigTcp:
    """A packet beyond 64 KiB that is still to be cut (GSO) cannot say its length."""

    @pytest.fixture
    def frame(self, here: Node) -> Frame:
        frame = bytearray(here.build("tcp client:1 > neighbour:80", world.GATEWAY_MAC, POD_MAC))
        at = ETHERNET + (2 if here.family is Family.V4 else 4)
        frame[at : at + 2] = bytes(2)
        return bytes(frame)

    def test_it_goes_on(self, here: Node, frame: Frame) -> None:
        sent = here.run("from_pod", world.CLIENT, frame, gso_size=1000)
        assert sent.verdict.action == "POD"

    def test_a_single_packet_without_a_length_is_broken(self, here: Node, frame: Frame) -> None:
        name = "MALFORMED" if here.family is Family.V4 else "TRUNCATED"
        here.from_pod("client", frame).expect(dropped(name))


# ---- contradictory ----
def changed(node: Node, line: str, **fields: object) -> Frame:
    """A packet with fields of its IP header overwritten, checksums as scapy computes them then."""
    packet = packet_of(node, line)
    for name, value in fields.items():
        setattr(packet, name, value)
    return framed(node, packet)


def test_a_wrong_version_number(here: Node) -> None:
    other = 6 if here.family is Family.V4 else 4
    frame = changed(here, "tcp client:1 > neighbour:80", version=other)
    here.from_pod("client", frame).expect(dropped("MALFORMED"))


@pytest.mark.parametrize("words", range(5))
def test_a_tcp_header_shorter_than_any(here: Node, words: int) -> None:
    packet = packet_of(here, "tcp client:1 > neighbour:80")
    packet[TCP].dataofs = words
    here.from_pod("client", framed(here, packet)).expect(dropped("MALFORMED"))


def test_a_tcp_header_longer_than_its_packet(here: Node) -> None:
    packet = packet_of(here, "tcp client:1 > neighbour:80")
    packet[TCP].dataofs = 6
    here.from_pod("client", framed(here, packet)).expect(dropped("TRUNCATED"))


class TestIPv4:
    @pytest.fixture
    def family(self) -> Family:
        return Family.V4

    @pytest.mark.parametrize("words", range(5))
    def test_a_header_shorter_than_any(self, here: Node, words: int) -> None:
        frame = changed(here, "tcp client:1 > neighbour:80", ihl=words)
        here.from_pod("client", frame).expect(dropped("MALFORMED"))

    def test_a_total_shorter_than_its_header(self, here: Node) -> None:
        frame = changed(here, "tcp client:1 > neighbour:80", len=19)
        here.from_pod("client", frame).expect(dropped("MALFORMED"))

    @pytest.mark.parametrize("count", [1, 10], ids=["4 bytes", "40 bytes"])
    def test_options_are_stepped_over(self, here: Node, count: int) -> None:
        sent = packet_of(here, "tcp client:40000 > near:80")
        sent.options = [IPOption_NOP()] * 4 * count
        seen = packet_of(here, "tcp client:40000 > neighbour:8080 ttl=63")
        seen.options = sent.options
        wanted = packets.frame(seen, here.family, world.mac_of(world.NEIGHBOUR), world.GATEWAY_MAC)
        here.from_pod("client", framed(here, sent)).expect(into("neighbour"), wanted)

    def test_options_that_reach_beyond_the_packet(self, here: Node) -> None:
        frame = changed(here, "udp client:1 > neighbour:53", ihl=10, options=[], len=32)
        here.from_pod("client", frame).expect(dropped("MALFORMED"))


class TestIPv6:
    """RFC 8200 4.1: extension headers in front of the transport header."""

    @pytest.fixture
    def family(self) -> Family:
        return Family.V6

    def extended(self, here: Node, line: str, *headers: Packet) -> Packet:
        plain = packet_of(here, line)
        packet = IPv6(src=plain.src, dst=plain.dst, hlim=plain.hlim)
        for header in headers:
            packet /= header
        return packet / plain.payload

    @pytest.mark.parametrize(
        "headers",
        [
            pytest.param([IPv6ExtHdrHopByHop()], id="hop-by-hop"),
            pytest.param([IPv6ExtHdrDestOpt()], id="destination options"),
            pytest.param([IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(200))])], id="long ones"),
            pytest.param([IPv6ExtHdrRouting(addresses=[])], id="routing"),
            pytest.param([IPv6ExtHdrFragment(id=5)], id="atomic fragment"),
            pytest.param([IPv6ExtHdrDestOpt()] * EXTENSION_MAX, id="as many as are walked"),
        ],
    )
    def test_extension_headers_are_stepped_over(self, here: Node, headers: list[Packet]) -> None:
        sent = self.extended(here, "tcp client:40000 > near:80", *headers)
        seen = self.extended(here, "tcp client:40000 > neighbour:8080 ttl=63", *headers)
        wanted = packets.frame(seen, here.family, world.mac_of(world.NEIGHBOUR), world.GATEWAY_MAC)
        here.from_pod("client", framed(here, sent)).expect(into("neighbour"), wanted)

    def test_more_extension_headers_than_are_walked(self, here: Node) -> None:
        headers = [IPv6ExtHdrDestOpt()] * (EXTENSION_MAX + 1)
        sent = self.extended(here, "tcp client:40000 > near:80", *headers)
        here.from_pod("client", framed(here, sent)).expect(dropped("EXTENSION"))

    @pytest.mark.parametrize(
        "header", [IPv6ExtHdrDestOpt(), IPv6ExtHdrFragment()], ids=["options", "fragment"]
    )
    def test_an_extension_header_that_is_not_all_there(self, here: Node, header: Packet) -> None:
        sent = self.extended(here, "tcp client:1 > neighbour:80", header)
        whole = bytes(sent)
        head = IPv6(src=sent.src, dst=sent.dst, nh=whole[6])
        frame = framed(here, head / Raw(whole[IP_SIZE[Family.V6] :][:7]))
        here.from_pod("client", frame).expect(dropped("TRUNCATED"))

    def test_an_extension_header_that_reaches_beyond_the_packet(self, here: Node) -> None:
        sent = self.extended(here, "tcp client:1 > neighbour:80", IPv6ExtHdrDestOpt(len=200))
        here.from_pod("client", framed(here, sent)).expect(dropped("TRUNCATED"))

    def test_a_packet_without_a_next_header_goes_on(self, here: Node) -> None:
        line = "protocol-59 client > neighbour"
        here.from_pod("client", line).expect(into("neighbour"), f"{line} ttl=63")


# ---- fragments ----
def fragments_of(node: Node, line: str, size: int = 400) -> list[Packet]:
    """As a sender would cut it; the identification is equal for the same line."""
    packet = packet_of(node, line)
    if node.family is Family.V4:
        packet.flags = 0
        packet = IP(bytes(packet))
        return list(fragment(packet, fragsize=size))
    plain = packet
    packet = IPv6(src=plain.src, dst=plain.dst, hlim=plain.hlim) / IPv6ExtHdrFragment(id=0xABCD)
    packet = IPv6(bytes(packet / plain.payload))
    return list(fragment6(packet, size + 100))


def send_all(node: Node, line: str, seen: str, order: Callable[[list[Frame]], list[Frame]]) -> None:
    """Each fragment of a line is translated as the fragments of `seen` say."""
    wanted = {
        node_frame[ETHERNET + IP_SIZE[node.family] :]: node_frame for node_frame in (
            packets.frame(f, node.family, world.mac_of(world.NEIGHBOUR), world.GATEWAY_MAC)
            for f in fragments_of(node, seen)
        )
    }  # fmt: skip
    arrived = [
        node.from_pod("client", frame).expect(into("neighbour")).frame
        for frame in order([framed(node, f) for f in fragments_of(node, line)])
    ]
    assert sorted(arrived) == sorted(wanted.values())


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        pytest.param(
            "udp client:40000 > near:53 data=1400",
            "udp client:40000 > neighbour:5353 data=1400 ttl=63",
            id="UDP to a Service",
        ),
        pytest.param(
            "udp client:40000 > neighbour:53 data=1400",
            "udp client:40000 > neighbour:53 data=1400 ttl=63",
            id="UDP to a pod",
        ),
        pytest.param(
            "echo client > neighbour data=1400",
            "echo client > neighbour data=1400 ttl=63",
            id="a large ping",
        ),
        pytest.param(
            "tcp client:40000 > near:80 data=1400",
            "tcp client:40000 > neighbour:8080 data=1400 ttl=63",
            id="TCP to a Service",
        ),
    ],
)
def test_later_fragments_follow_their_first_one(here: Node, line: str, seen: str) -> None:
    send_all(here, line, seen, lambda frames: frames)


def test_fragments_may_come_in_any_order_after_the_first(here: Node) -> None:
    line = "udp client:40000 > near:53 data=1400"
    seen = "udp client:40000 > neighbour:5353 data=1400 ttl=63"
    send_all(here, line, seen, lambda frames: [frames[0], *reversed(frames[1:])])


def test_a_later_fragment_whose_first_was_not_seen(here: Node) -> None:
    late = fragments_of(here, "udp client:40000 > near:53 data=1400")[1]
    here.from_pod("client", framed(here, late)).expect(dropped("FRAGMENT"))


def test_fragments_of_another_packet_do_not_follow(here: Node) -> None:
    first, late, *_ = fragments_of(here, "udp client:40000 > near:53 data=1400")
    here.from_pod("client", framed(here, first)).expect(into("neighbour"))
    (late if here.family is Family.V4 else late[IPv6ExtHdrFragment]).id ^= 1
    here.from_pod("client", framed(here, late)).expect(dropped("FRAGMENT"))


def test_only_the_first_fragment_of_a_refused_packet_is_answered(here: Node) -> None:
    """RFC 1122 3.2.2. Its ports are quoted, behind IPv6's fragment header."""
    first, late, *_ = fragments_of(here, "udp client:40000 > empty:53 data=1400")
    told = here.from_pod("client", framed(here, first)).expect(refused("NO_BACKEND"))
    quoted = told.frame[ETHERNET + IP_SIZE[here.family] + 8 :]
    assert len(quoted) == {Family.V4: 20 + 8, Family.V6: 40 + 8 + 8}[here.family]
    assert told.given[ETHERNET:].startswith(quoted)
    here.from_pod("client", framed(here, late)).expect(dropped("NO_BACKEND"))


def test_a_reset_is_made_of_whole_segments_only(here: Node) -> None:
    first = fragments_of(here, "tcp client:40000 > empty:80 data=1400")[0]
    here.from_pod("client", framed(here, first)).expect(dropped("NO_BACKEND"))


def test_a_fragment_too_small_for_its_ports(here: Node) -> None:
    first = fragments_of(here, "tcp client:40000 > near:80 data=600", size=8)[0]
    if here.family is Family.V6:  # scapy will not cut there
        plain = packet_of(here, "tcp client:40000 > near:80")
        first = IPv6(src=plain.src, dst=plain.dst) / IPv6ExtHdrFragment(m=1, nh=6, id=1)
        first /= Raw(bytes(plain.payload)[:8])
    here.from_pod("client", framed(here, first)).expect(dropped("TRUNCATED"))


# ---- at the uplink: the host's own broken packets are the host's ----
@pytest.mark.parametrize(("dst", "is_ours"), [("here", False), ("neighbour", True), ("near", True)])
def test_from_outside_only_what_is_for_pods_is_judged(here: Node, dst: str, is_ours: bool) -> None:
    frame = cut(here, f"tcp outside:1 > {dst}:80", 8)
    frame = world.mac_of(world.UPLINK) + world.SWITCH_MAC + frame[12:]
    here.from_uplink(frame).expect(dropped("TRUNCATED") if is_ours else PASSED)
    whole = here.build(f"tcp outside:1 > {dst}:80", frame[:6], frame[6:12])
    here.from_uplink(whole[:-1]).expect(dropped("TRUNCATED") if is_ours else PASSED)


def test_an_icmp_error_is_no_flow_of_its_ports(here: Node) -> None:
    """It has no ports: it goes where its addresses say, and translates nothing."""
    quoted = packet_of(here, "udp neighbour:53 > client:40000")
    plain = packet_of(here, "echo client > neighbour")
    if here.family is Family.V4:
        error: Packet = (
            IP(src=plain.src, dst=plain.dst) / ICMP(type=3, code=3) / Raw(bytes(quoted)[:28])
        )
    else:
        error = (
            IPv6(src=plain.src, dst=plain.dst)
            / ICMPv6EchoRequest(type=1, code=4)
            / Raw(bytes(quoted)[:48])
        )
    assert here.from_pod("client", framed(here, error)).expect(into("neighbour")).frame


def test_a_refusal_needs_ports(here: Node) -> None:
    here.from_pod("client", "protocol-50 client > near").expect(dropped("NO_PORT"))
    here.from_pod("client", "tcp client:1 > near:81").expect(refused("NO_PORT"))
