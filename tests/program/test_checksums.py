# SPDX-License-Identifier: Apache-2.0
"""Checksums are changed, not computed anew: true over whatever the data are.

Any packet through each kind of translation must come out as scapy would build it. The
corner cases of ones' complement (a sum of 0, of 0xffff) come up among so many.
"""

from __future__ import annotations

import random

import pytest
from scapy.packet import Raw

from tests.program import packets, world
from tests.program.node import Node

PACKETS = 60
SENT_AND_SEEN = [
    pytest.param("tcp {p} > near:80", "tcp {p} > neighbour:8080 ttl=63", id="TCP to a Service"),
    pytest.param("udp {p} > near:53", "udp {p} > neighbour:5353 ttl=63", id="UDP to a Service"),
    pytest.param("tcp {p} > self:80", "tcp router:{m} > client:8080 ttl=63", id="TCP to itself"),
    pytest.param("udp {p} > outside:53", "udp here:{m} > outside:53 ttl=63", id="UDP to the world"),
    pytest.param(
        "tcp {p} > outside:443", "tcp here:{m} > outside:443 ttl=63", id="TCP to the world"
    ),
]


@pytest.mark.parametrize(("sent", "seen"), SENT_AND_SEEN)
def test_any_data_under_any_port(here: Node, sent: str, seen: str) -> None:
    dice = random.Random(f"{sent} over IPv{here.family:d}")
    for _ in range(PACKETS):
        data = dice.randbytes(dice.randrange(0, 60))
        line = sent.format(p=f"client:{dice.randrange(1, 65536)}")
        result = here.from_pod("client", with_data(here, line, data, into=None))
        wanted = seen.format(p=line.split()[1], m=result.port)
        assert result.frame == with_data(here, wanted, data, into=result.verdict.action), line


@pytest.mark.parametrize("corner", [0x0000, 0xFFFF], ids=["sum 0", "sum 0xffff"])
def test_datagrams_whose_sum_comes_out_as_a_corner_case(here: Node, corner: int) -> None:
    """RFC 768: a computed sum of 0 is sent as 0xffff, for 0 means none."""
    seen = "udp client:40000 > neighbour:5353 ttl=63"
    base = packets.build(f"{seen} data=2", here.family, here.addresses)
    base.payload.payload = Raw(bytes(2))
    total = int.from_bytes(bytes(base.payload)[6:8], "big")
    # Data that bring the sum to 0xffff before it is inverted, so that it comes out as 0.
    fill = (total if corner == 0 else total - 1) & 0xFFFF
    data = fill.to_bytes(2, "big")
    result = here.from_pod("client", with_data(here, "udp client:40000 > near:53", data, None))
    assert result.frame == with_data(here, seen, data, "POD")
    assert packets.wrong_checksums(result.frame) == []


def with_data(node: Node, line: str, data: bytes, into: str | None) -> bytes:
    """The line's packet with these data, on Ethernet as before (None) or after a verdict."""
    packet = packets.build(f"{line} data=0", node.family, node.addresses)
    packet.payload.remove_payload()
    packet = packet / Raw(data)
    dst, src = world.GATEWAY_MAC, world.mac_of(world.CLIENT)
    if into == "POD":
        pod = world.CLIENT if "> client" in line else world.NEIGHBOUR
        dst, src = world.mac_of(pod), world.GATEWAY_MAC
    return packets.frame(packet, node.family, dst, src)
