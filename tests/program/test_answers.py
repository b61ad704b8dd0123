# SPDX-License-Identifier: Apache-2.0
"""Refusals: who is answered, with what, and who is not (RFC 9293, RFC 1122, RFC 4443)."""

from __future__ import annotations

import struct
import sys
import time

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dataplane.kernel import bpf
from dataplane.model.net import Family
from tests.program import packets, world
from tests.program.node import Node
from tests.program.result import Result, dropped, refused

RESET_OF = {  # segment sent: reset that answers it
    "S seq=1000": "RA seq=0 ack=1001",
    "SEC seq=1000": "RA seq=0 ack=1001",
    "S seq=4294967295": "RA seq=0 ack=0",
    "S seq=1000 data=10": "RA seq=0 ack=1011",
}
MID_FLOW_RESET_OF = {
    "A seq=1000 ack=7777": "R seq=7777",
    "PA seq=1000 ack=7777 data=10": "R seq=7777",
    "FA seq=1000 ack=7777": "R seq=7777",
    "SA seq=1000 ack=7777": "R seq=7777",
    "P seq=1000 data=10": "RA seq=0 ack=1010",
    "F seq=1000": "RA seq=0 ack=1001",
    "F seq=1000 data=10": "RA seq=0 ack=1011",
}


def answer(node: Node, line: str, dst: bytes, src: bytes) -> bytes:
    """Our own reset: window 0, IPv4 identification 0."""
    return node.build(f"{line} window=0 ip-id=0", dst, src)


@pytest.mark.parametrize(("segment", "reset"), RESET_OF.items(), ids=RESET_OF)
def test_a_connection_to_a_service_without_endpoints_is_reset(
    here: Node, segment: str, reset: str
) -> None:
    sent = here.from_pod("client", f"tcp client:40000 > empty:80 {segment}")
    sent.expect(refused("NO_BACKEND"), f"tcp empty:80 > client:40000 {reset} window=0 ip-id=0")


@pytest.mark.parametrize(("segment", "reset"), MID_FLOW_RESET_OF.items(), ids=MID_FLOW_RESET_OF)
def test_a_segment_of_a_flow_that_nobody_knows_is_reset(
    here: Node, segment: str, reset: str
) -> None:
    sent = here.from_pod("client", f"tcp client:40000 > near:80 {segment}")
    sent.expect(refused("NO_FLOW"), f"tcp near:80 > client:40000 {reset} window=0 ip-id=0")
    assert not here.flows()


def test_options_of_the_refused_segment_are_no_data(here: Node) -> None:
    line = "tcp client:40000 > empty:80"
    syn = packets.build(line, here.family, here.addresses)
    syn[TCP].options = [
        ("MSS", 1460),
        ("SAckOK", b""),
        ("Timestamp", (1, 0)),
        ("NOP", None),
        ("WScale", 7),
    ]
    frame = packets.frame(syn, here.family, world.GATEWAY_MAC, world.mac_of(world.CLIENT))
    sent = here.from_pod("client", frame)
    sent.expect(
        refused("NO_BACKEND"), "tcp empty:80 > client:40000 RA seq=0 ack=1001 window=0 ip-id=0"
    )


def test_ethernet_padding_is_no_data(here: Node) -> None:
    """A minimal segment from a real network is padded to 60 bytes; the sequence ends before."""
    dst, src = world.mac_of(world.UPLINK), world.SWITCH_MAC
    frame = here.build("tcp outside:40000 > here:30084", dst, src)
    padded = frame + bytes(max(60 - len(frame), 6))
    sent = here.from_uplink(padded)
    sent.expect(
        refused("NO_BACKEND"), "tcp here:30084 > outside:40000 RA seq=0 ack=1001 window=0 ip-id=0"
    )


@pytest.mark.parametrize("flags", ["R", "RA"])
@pytest.mark.parametrize("dst", ["empty:80", "near:80", "near:81"])
def test_a_reset_is_never_answered(here: Node, flags: str, dst: str) -> None:
    sent = here.from_pod("client", f"tcp client:40000 > {dst} {flags}")
    assert sent.verdict.action == "DROP"
    assert sent.outcome.retval == 2


def unreachable(node: Node, sent: Result, answer_from: str, to: str) -> bytes:
    """Port unreachable, quoting the IP header and eight bytes of what was sent."""
    names, given = node.addresses, sent.given[14:]
    quote: Packet
    if node.family is Family.V4:
        head = IP(src=str(names[answer_from]), dst=str(names[to]), ttl=64, id=0, flags="DF")
        quote = head / ICMP(type="dest-unreach", code="port-unreachable") / Raw(given[:28])
    else:
        head = IPv6(src=str(names[answer_from]), dst=str(names[to]), hlim=64)
        quote = head / ICMPv6DestUnreach(code=4) / Raw(given[:48])
    return packets.frame(quote, node.family, sent.given[6:12], sent.given[:6])


@pytest.mark.parametrize("data", [0, 1, 12, 1200])
def test_a_datagram_to_a_service_without_endpoints_is_told_so(here: Node, data: int) -> None:
    sent = here.from_pod("client", f"udp client:40000 > empty:53 data={data}")
    sent.expect(refused("NO_BACKEND"), unreachable(here, sent, "empty", "client"))


def test_a_datagram_to_a_port_that_the_service_has_not_is_told_so(here: Node) -> None:
    sent = here.from_pod("client", "udp client:40000 > near:54")
    sent.expect(refused("NO_PORT"), unreachable(here, sent, "near", "client"))


def test_outside_is_told_so_too(here: Node) -> None:
    sent = here.from_uplink("udp outside:40000 > here:30054")
    sent.expect(refused("NO_BACKEND"), unreachable(here, sent, "here", "outside"))
    sent = here.from_uplink("tcp outside:40000 > here:30084")
    sent.expect(
        refused("NO_BACKEND"), "tcp here:30084 > outside:40000 RA seq=0 ack=1001 window=0 ip-id=0"
    )


def test_a_packet_with_options_is_refused_in_silence(here: Node) -> None:
    """An answer is built for plain headers only; the sender's own timer tells it."""
    packet = packets.build("tcp client:40000 > empty:80", here.family, here.addresses)
    if here.family is Family.V4:
        packet.options = [IPOption_NOP()]
    else:
        packet = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrDestOpt() / packet.payload
    frame = packets.frame(packet, here.family, world.GATEWAY_MAC, world.mac_of(world.CLIENT))
    here.from_pod("client", frame).expect(dropped("NO_BACKEND"))


def test_an_answer_is_made_of_a_short_segment(here: Node) -> None:
    """20 bytes of TCP become 20 bytes; nothing of the old packet is left behind it."""
    sent = here.from_pod("client", "tcp client:40000 > empty:80 data=900")
    assert len(sent.frame) == 14 + (20 if here.family is Family.V4 else 40) + 20
    assert Ether(sent.frame)[TCP].flags == "RA"


def spend(node: Node, sender: str) -> int:
    """All answers of this second that a pod may get; the second."""
    fd = node.datapath.maps[node.table("answer_budget")]
    second = time.monotonic_ns() // 10**9
    spent = struct.pack("=QII", second, 1 << 31, 0) * bpf.possible_cpus()
    bpf.map_update(fd, world.POD_IDS[sender].to_bytes(4, sys.byteorder), spent)
    return second


def test_what_one_pod_asks_for_leaves_answers_to_the_others(here: Node) -> None:
    question = "tcp {}:40000 > empty:80"
    while True:
        second = spend(here, "client")
        first = here.from_pod("client", question.format("client"))
        other = here.from_pod("neighbour", question.format("neighbour"))
        if second == time.monotonic_ns() // 10**9:
            break
    first.expect(dropped("NO_BACKEND"))
    other.expect(refused("NO_BACKEND"))
