# SPDX-License-Identifier: Apache-2.0
"""Frames of `podlane explain` are packets that anybody would take."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from dataplane.explain import frames
from dataplane.model.net import Protocol
from tests.program.packets import wrong_checksums

ENDS = {
    4: ((ip_address("10.244.1.5"), 20000), (ip_address("10.96.0.1"), 80)),
    6: ((ip_address("fd00:244:1::5"), 20000), (ip_address("fd00:96::1"), 80)),
}


@pytest.mark.parametrize("version", ENDS)
@pytest.mark.parametrize("protocol", Protocol)
def test_a_frame_is_whole_and_its_checksums_are_right(version: int, protocol: Protocol) -> None:
    source, target = ENDS[version]
    frame = frames.build((bytes(6), bytes(6)), protocol, source, target)
    assert wrong_checksums(frame) == []
    packet = Ether(frame)
    assert packet.payload.version == version
    assert (packet.sport, packet.dport) == (20000, 80)
    if protocol is Protocol.SCTP:
        sent = packet[SCTP].chksum
        del packet[SCTP].chksum
        assert Ether(bytes(packet))[SCTP].chksum == sent
    seen = frames.read(frame)
    assert ((seen.source, seen.source_port), (seen.target, seen.target_port)) == (source, target)
