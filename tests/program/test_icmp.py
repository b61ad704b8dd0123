# SPDX-License-Identifier: Apache-2.0
"""ICMP errors: those that this node sends as a router, and those that it passes on.

An error about a packet of a translated flow quotes that packet as it was under way; who
gets the error must find it as it was sent, or it means nothing (RFC 5508).
"""

from __future__ import annotations

import sys
import time

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.packet import Packet, Raw

from dataplane.kernel import bpf
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.program import packets, world
from tests.program.node import Node
from tests.program.result import (
    PASSED,
    Frame,
    Result,
    dropped,
    into,
    out_by,
    refused,
    through_tunnel,
)

# What a router quotes at least: the IP header and eight bytes.
QUOTED = {Family.V4: 28, Family.V6: 48}
UPLINK_MTU = 1500
ETHERNET = 14


def icmp(node: Node, kind: str, mtu: int = 0) -> Packet:
    match kind, node.family:
        case "port unreachable", Family.V4:
            return ICMP(type="dest-unreach", code="port-unreachable")
        case "too big", Family.V4:
            return ICMP(type="dest-unreach", code="fragmentation-needed", nexthopmtu=mtu)
        case "time exceeded", Family.V4:
            return ICMP(type="time-exceeded", code=0)
        case "port unreachable", _:
            return ICMPv6DestUnreach(code=4)
        case "too big", _:
            return ICMPv6PacketTooBig(mtu=mtu)
        case "time exceeded", _:
            return ICMPv6TimeExceeded(code=0)
    raise ValueError(kind)


def error(
    node: Node, src: str, dst: str, kind: str, quote: bytes, ttl: int = 64, mtu: int = 0
) -> Packet:
    """An ICMP error, checksums computed."""
    names = node.addresses
    ends = {"src": str(names[src]), "dst": str(names[dst])}
    head: Packet = (
        IP(**ends, ttl=ttl, id=0, flags="DF")
        if node.family is Family.V4
        else IPv6(**ends, hlim=ttl)
    )
    return head / icmp(node, kind, mtu) / Raw(quote)


def quote(node: Node, line: str, length: int | None = None) -> bytes:
    """A packet as an error quotes it."""
    whole = bytes(packets.build(line, node.family, node.addresses))
    return whole[: length or QUOTED[node.family]]


# ---- made here ----
def answer_of(sent: Result, router: str, to: str, kind: str, mtu: int = 0) -> Frame:
    """The error that this node makes of a packet."""
    node = sent.node
    given = sent.given[ETHERNET:][: QUOTED[node.family]]
    made = error(node, router, to, kind, given, mtu=mtu)
    return packets.frame(made, node.family, sent.given[6:12], sent.given[:6])


class TestTimeExceeded:
    """The node is the hop at which a packet ends: traceroute shows it."""

    @pytest.mark.parametrize(
        "line",
        [
            "tcp client:40000 > neighbour:80 ttl=1",
            "udp client:40000 > remote:33434 ttl=1",
            "udp client:40000 > near:53 ttl=1",
            "tcp client:40000 > outside:443 ttl=1",
            "echo client > outside ttl=1",
        ],
    )
    def test_a_pod_is_told_by_the_router(self, here: Node, line: str) -> None:
        sent = here.from_pod("client", line)
        sent.expect(refused("HOP_LIMIT"), answer_of(sent, "router", "client", "time exceeded"))

    def test_outside_is_told_by_the_node(self, here: Node) -> None:
        sent = here.from_uplink("udp outside:40000 > here:30053 ttl=1")
        sent.expect(refused("HOP_LIMIT"), answer_of(sent, "here", "outside", "time exceeded"))

    def test_a_pod_of_another_node_is_told_through_the_tunnel(self, here: Node) -> None:
        sent = here.from_overlay("udp remote:40000 > client:33434 ttl=1")
        sent.expect(refused("HOP_LIMIT"), answer_of(sent, "router", "remote", "time exceeded"))

    def test_an_error_that_ends_here_is_not_answered(self, here: Node) -> None:
        dead = error(here, "client", "neighbour", "port unreachable", bytes(28), ttl=1)
        frame = packets.frame(dead, here.family, world.GATEWAY_MAC, world.mac_of(world.CLIENT))
        here.from_pod("client", frame).expect(dropped("HOP_LIMIT"))


def sized(here: Node, line: str, size: int) -> str:
    head = {Family.V4: 20, Family.V6: 40}[here.family]
    transport = 20 if line.startswith("tcp") else 8
    return f"{line} data={size - head - transport}"


class TestTooBig:
    """The node is the hop before the narrow link."""

    def test_what_just_fits_goes_through_the_tunnel(self, here: Node) -> None:
        line = sized(here, "udp client:40000 > remote:53", world.POD_MTU)
        here.from_pod("client", line).expect(through_tunnel(), f"{line} ttl=63")

    @pytest.mark.parametrize("dst", ["remote:53", "far:80"])
    def test_a_pod_is_told_what_fits_into_the_tunnel(self, here: Node, dst: str) -> None:
        protocol = "udp" if dst == "remote:53" else "tcp"
        line = sized(here, f"{protocol} client:40000 > {dst}", world.POD_MTU + 1)
        sent = here.from_pod("client", line)
        told = answer_of(sent, "router", "client", "too big", world.POD_MTU)
        sent.expect(refused("TOO_BIG"), told)

    def test_a_pod_is_told_what_fits_out_of_the_node(self, here: Node) -> None:
        line = sized(here, "udp client:40000 > outside:53", UPLINK_MTU + 1)
        sent = here.from_pod("client", line)
        sent.expect(refused("TOO_BIG"), answer_of(sent, "router", "client", "too big", UPLINK_MTU))

    def test_outside_is_told_what_fits_into_the_tunnel(self, here: Node) -> None:
        line = sized(here, "tcp outside:40000 > here:30081", world.POD_MTU + 1)
        sent = here.from_uplink(line)
        told = answer_of(sent, "here", "outside", "too big", world.POD_MTU)
        sent.expect(refused("TOO_BIG"), told)

    def test_within_the_node_nothing_is_too_big(self, here: Node) -> None:
        line = sized(here, "udp client:40000 > neighbour:53", UPLINK_MTU + 500)
        here.from_pod("client", line).expect(into("neighbour"), f"{line} ttl=63")

    @pytest.mark.parametrize(("segment", "fits"), [(1000, True), (1390, True), (1420, False)])
    def test_of_a_train_of_segments_one_segment_counts(
        self, here: Node, segment: int, fits: bool
    ) -> None:
        """A GSO packet is cut later; with 20 bytes of TCP, 1390 fit over either family."""
        line = sized(here, "tcp client:40000 > remote:80", 3000)
        frame = here.build(line, world.GATEWAY_MAC, world.mac_of(world.CLIENT))
        sent = here.run("from_pod", world.CLIENT, frame, gso_size=segment)
        assert sent.verdict.action == ("TUNNEL" if fits else "ANSWER")


class TestNarrowUnderlay:
    """A router between the nodes, over IPv6, which fragments nothing."""

    OVERHEAD = 70
    LINE = "udp client:40000 > remote:53"
    OURS = "udp here:50000 > there:8472"

    @pytest.fixture
    def family(self) -> Family:
        return Family.V6

    @pytest.fixture
    def underlay(self) -> world.Underlay:
        return world.Underlay(outer=Family.V6)

    def say(self, here: Node, mtu: int, about: str = OURS) -> None:
        said = error(here, "outside", "here", "too big", quote(here, about), mtu=mtu)
        here.from_uplink(framed(here, said, world.mac_of(world.UPLINK), world.SWITCH_MAC))

    def takes(self, here: Node, mtu: int) -> None:
        """What fits goes, and a byte more does not, which is said."""
        fits = sized(here, self.LINE, mtu)
        here.from_pod("client", fits).expect(through_tunnel(), f"{fits} ttl=63")
        sent = here.from_pod("client", sized(here, self.LINE, mtu + 1))
        sent.expect(refused("TOO_BIG"), answer_of(sent, "router", "client", "too big", mtu))

    def test_a_pod_is_told_what_fits(self, here: Node) -> None:
        self.takes(here, world.POD_MTU)
        self.say(here, 1400)
        self.takes(here, 1400 - self.OVERHEAD)
        self.say(here, 1380)
        self.takes(here, 1380 - self.OVERHEAD)

    def test_outside_is_told_what_fits(self, here: Node) -> None:
        self.say(here, 1400)
        sent = here.from_uplink(sized(here, "tcp outside:40000 > here:30081", 1331))
        sent.expect(refused("TOO_BIG"), answer_of(sent, "here", "outside", "too big", 1330))

    @pytest.mark.parametrize(
        ("about", "mtu"),
        [
            ("udp here:50000 > there:53", 1400),
            ("tcp here:50000 > there:8472", 1400),
            ("udp here2:50000 > there:8472", 1400),
            ("udp here:50000 > outside2:8472", 1400),
            (OURS, 1279),  # less than any path may take
            (OURS, 1600),  # no narrower than our own end
        ],
    )
    def test_what_is_not_about_the_overlay_or_cannot_be_is_not_believed(
        self, here: Node, about: str, mtu: int
    ) -> None:
        self.say(here, mtu, about)
        self.takes(here, world.POD_MTU)

    def test_after_ten_minutes_it_is_tried_again(self, here: Node) -> None:
        self.say(here, 1400)
        fd = here.datapath.maps[Table("path_mtus")]
        ((key, value),) = (pair[:2] for pair in bpf.map_batches(fd, 20, 16))
        until, now = int.from_bytes(value[:8], sys.byteorder), time.monotonic_ns()
        assert 590 * 10**9 < until - now <= 600 * 10**9
        bpf.map_update(fd, key, now.to_bytes(8, sys.byteorder) + value[8:])
        self.takes(here, world.POD_MTU)


class TestMayBeFragmented:
    """IPv4 without "don't fragment": the stack fragments, for BPF cannot."""

    @pytest.fixture
    def family(self) -> Family:
        return Family.V4

    def test_it_goes_on_by_the_stack(self, here: Node) -> None:
        packet = packets.build(
            "udp client:40000 > remote:53 data=1500", here.family, here.addresses
        )
        packet.flags = 0
        frame = packets.frame(packet, here.family, world.GATEWAY_MAC, world.mac_of(world.CLIENT))
        here.from_pod("client", frame).expect(PASSED)


# ---- passed on ----
KINDS = ["port unreachable", "too big", "time exceeded"]
CSUM = "csum=0x1234"  # of a quoted datagram: nobody can check it, so it is left as it was


def framed(node: Node, packet: Packet, dst: bytes, src: bytes) -> Frame:
    return packets.frame(packet, node.family, dst, src)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [None, 400], ids=["short quote", "long quote"])
class TestPassedOn:
    def into_pod(
        self, here: Node, src: str, kind: str, about: str, length: int | None, pod: str = "client"
    ) -> Frame:
        made = error(here, src, pod, kind, quote(here, about, length), ttl=63, mtu=1280)
        return framed(here, made, world.mac_of(world.PODS[pod]), world.GATEWAY_MAC)

    @pytest.mark.parametrize("by", ["outside", "outside2"], ids=["by the peer", "by a router"])
    def test_from_the_world_to_a_masqueraded_pod(
        self, here: Node, by: str, kind: str, length: int | None
    ) -> None:
        out = here.from_pod("client", "udp client:40000 > outside:53").expect(out_by())
        about = out.named(f"udp here:MASQ > outside:53 ttl=60 data=500 {CSUM}")
        told = error(here, by, "here", kind, quote(here, about, length), mtu=1280)
        arrived = here.from_uplink(framed(here, told, world.mac_of(world.UPLINK), world.SWITCH_MAC))
        seen = f"udp client:40000 > outside:53 ttl=60 data=500 {CSUM}"
        arrived.expect(into("client"), self.into_pod(here, by, kind, seen, length))

    def test_about_a_masqueraded_ping(self, here: Node, kind: str, length: int | None) -> None:
        out = here.from_pod("client", "echo client > outside id=7").expect(out_by())
        about = quote(here, out.named("echo here > outside id=MASQ data=500 ttl=60"), length)
        told = error(here, "outside2", "here", kind, about, mtu=1280)
        arrived = here.from_uplink(framed(here, told, world.mac_of(world.UPLINK), world.SWITCH_MAC))
        assert arrived.verdict == into("client")
        assert packets.wrong_checksums(arrived.frame) == []
        seen = quote(here, "echo client > outside id=7 data=500 ttl=60", length)
        at = ETHERNET + QUOTED[here.family]
        # Its own checksum (two bytes) is left, as a datagram's is.
        csum = QUOTED[here.family] - 6
        got = arrived.frame[at:]
        assert got[:csum] + got[csum + 2 :] == seen[:csum] + seen[csum + 2 :]

    def test_from_a_backend_to_a_services_client(
        self, here: Node, kind: str, length: int | None
    ) -> None:
        here.from_pod("client", "udp client:40000 > near:53").expect(into("neighbour"))
        about = quote(here, f"udp client:40000 > neighbour:5353 ttl=63 data=500 {CSUM}", length)
        told = error(here, "neighbour", "client", kind, about, mtu=1280)
        frame = framed(here, told, world.GATEWAY_MAC, world.mac_of(world.NEIGHBOUR))
        seen = f"udp client:40000 > near:53 ttl=63 data=500 {CSUM}"
        wanted = self.into_pod(here, "near", kind, seen, length)
        here.from_pod("neighbour", frame).expect(into("client"), wanted)

    def test_from_a_services_client_to_the_backend(
        self, here: Node, kind: str, length: int | None
    ) -> None:
        """It complains of an answer, which came to it from the Service's address."""
        here.from_pod("client", "udp client:40000 > near:53").expect(into("neighbour"))
        about = quote(here, f"udp near:53 > client:40000 ttl=63 data=500 {CSUM}", length)
        told = error(here, "client", "near", kind, about, mtu=1280)
        frame = framed(here, told, world.GATEWAY_MAC, world.mac_of(world.CLIENT))
        seen = f"udp neighbour:5353 > client:40000 ttl=63 data=500 {CSUM}"
        wanted = self.into_pod(here, "client", kind, seen, length, pod="neighbour")
        here.from_pod("client", frame).expect(into("neighbour"), wanted)

    def test_from_a_backend_to_a_client_outside(
        self, here: Node, kind: str, length: int | None
    ) -> None:
        """Translated both ways: the client sees its own packet to the node's port."""
        out = here.from_uplink("udp outside:40000 > here:30053").expect(into("neighbour"))
        about = f"udp router:{out.port} > neighbour:5353 ttl=63 data=500 {CSUM}"
        told = error(here, "neighbour", "router", kind, quote(here, about, length), mtu=1280)
        frame = framed(here, told, world.GATEWAY_MAC, world.mac_of(world.NEIGHBOUR))
        seen = f"udp outside:40000 > here:30053 ttl=63 data=500 {CSUM}"
        left = error(here, "here", "outside", kind, quote(here, seen, length), ttl=63, mtu=1280)
        wanted = framed(here, left, frame[:6], frame[6:12])
        here.from_pod("neighbour", frame).expect(out_by(), wanted)

    def test_by_a_node_on_the_way_through_the_overlay(
        self, here: Node, kind: str, length: int | None
    ) -> None:
        here.from_pod("client", "udp client:40000 > far:80")
        here.from_pod("client", "tcp client:40000 > far:80").expect(through_tunnel())
        about = quote(here, "tcp client:40000 > remote:8080 ttl=62 data=500", length)
        told = error(here, "router-there", "client", kind, about, mtu=1280)
        arrived = here.from_overlay(framed(here, told, world.OVERLAY_MAC, world.OVERLAY_MAC))
        assert arrived.verdict == into("client")
        seen = quote(here, "tcp client:40000 > far:80 ttl=62 data=500", QUOTED[here.family])
        at = ETHERNET + QUOTED[here.family]
        assert arrived.frame[at:][: len(seen)] == seen
        assert packets.wrong_checksums(arrived.frame) == []

    def test_about_an_untranslated_flow_it_goes_on_as_it_is(
        self, here: Node, kind: str, length: int | None
    ) -> None:
        here.from_pod("client", "udp client:40000 > neighbour:53").expect(into("neighbour"))
        line = f"udp client:40000 > neighbour:53 ttl=63 data=500 {CSUM}"
        told = error(here, "neighbour", "client", kind, quote(here, line, length), mtu=1280)
        frame = framed(here, told, world.GATEWAY_MAC, world.mac_of(world.NEIGHBOUR))
        wanted = self.into_pod(here, "neighbour", kind, line, length)
        here.from_pod("neighbour", frame).expect(into("client"), wanted)


class TestRefusedErrors:
    def told_by(self, here: Node, pod: str, dst: str, about: str) -> Result:
        told = error(here, pod, dst, "port unreachable", quote(here, about))
        frame = framed(here, told, world.GATEWAY_MAC, world.mac_of(world.PODS[pod]))
        return here.from_pod(pod, frame)

    def test_a_pod_does_not_complain_of_a_packet_that_it_never_got(self, here: Node) -> None:
        """Or it could end the connections of others."""
        here.from_pod("client", "udp client:40000 > near:53")
        told = self.told_by(here, "neighbour", "client", "udp client:40000 > remote:53")
        told.expect(dropped("ICMP_QUOTE"))

    def test_the_world_is_not_told_of_an_unknown_flow_under_a_pods_address(
        self, here: Node
    ) -> None:
        told = self.told_by(here, "client", "outside", "udp outside:53 > client:40000")
        told.expect(dropped("NO_FLOW"))

    def test_an_error_makes_no_flow(self, here: Node) -> None:
        told = self.told_by(here, "client", "neighbour", "udp neighbour:53 > client:40000")
        told.expect(into("neighbour"))
        assert not here.flows()

    def test_an_error_is_never_answered(self, here: Node) -> None:
        told = self.told_by(here, "client", "empty", "udp empty:53 > client:40000")
        assert told.verdict.action == "DROP"

    def test_the_hosts_own_errors_are_the_hosts(self, here: Node) -> None:
        about = quote(here, "udp here:40000 > outside:53")
        told = error(here, "outside", "here", "port unreachable", about)
        here.from_uplink(framed(here, told, world.mac_of(world.UPLINK), world.SWITCH_MAC)).expect(
            PASSED
        )
