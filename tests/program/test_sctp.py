# SPDX-License-Identifier: Apache-2.0
"""SCTP: ports are translated, the checksum over all of the packet stays true, flows end.

Where no kernel speaks SCTP, packets are all there is. Each is compared byte for byte with
one that scapy makes, whose CRC32c is its own.
"""

from __future__ import annotations

import pytest

from dataplane.model.net import Family
from tests.program import packets, world
from tests.program.node import Node
from tests.program.result import ABI, State, Verdict, dropped, into, out_by, through_tunnel
from tests.program.tables import Row, table

INIT, HEARTBEAT, ABORT, SHUTDOWN_COMPLETE = 1, 4, 6, 14

FROM_POD: list[Row] = [
    (
        "a Service's other port",
        "sctp client:40000 > near:80",
        into("neighbour"),
        "sctp client:40000 > neighbour:3868 ttl=63",
    ),
    (
        "a Service's own port",
        "sctp client:40000 > far:80",
        through_tunnel(),
        "sctp client:40000 > remote:80 ttl=63",
    ),
    (
        "both ports: the node's port hides the client",
        "sctp client:40000 > here:30080",
        into("neighbour"),
        "sctp router:MASQ > neighbour:3868 ttl=63",
    ),
    (
        "the world sees the node",
        "sctp client:40000 > outside:3868",
        out_by(),
        "sctp here:MASQ > outside:3868 ttl=63",
    ),
    (
        "a sum that a device is to make is left to it",
        "sctp client:40000 > near:80 csum=0",
        into("neighbour"),
        "sctp client:40000 > neighbour:3868 csum=0 ttl=63",
    ),
    (
        "another pod",
        "sctp client:40000 > neighbour:9",
        into("neighbour"),
        "sctp client:40000 > neighbour:9 ttl=63",
    ),
]


@table(FROM_POD)
def test_a_pod_opens(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.from_pod("client", sent).expect(verdict, seen)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 96, 251, 508, 1000, 1399])
def test_the_sum_stays_true_at_any_length(here: Node, size: int) -> None:
    sent = here.from_pod("client", f"sctp client:40000 > near:80 data={size}")
    sent.expect(into("neighbour"), f"sctp client:40000 > neighbour:3868 ttl=63 data={size}")


def test_a_wrong_sum_stays_wrong(here: Node) -> None:
    frame = bytearray(here.build("sctp client:40000 > near:80 data=40", *_macs()))
    frame[-1] ^= 1
    body = here.from_pod("client", bytes(frame)).frame[-56:]
    assert body[8:12] != packets.sctp_sum(body)
    frame[-1] ^= 1
    assert here.from_pod("client", bytes(frame)).frame[-56:-1] == body[:-1]


def _macs() -> tuple[bytes, bytes]:
    return world.GATEWAY_MAC, world.mac_of(world.CLIENT)


def test_an_association_goes_both_ways(here: Node) -> None:
    asked = here.from_uplink("sctp outside:40000 > here:30080 data=100")
    asked.expect(into("neighbour"), "sctp router:MASQ > neighbour:3868 ttl=63 data=100")
    reply = asked.named("sctp neighbour:3868 > router:MASQ chunk=2 data=77")
    answered = here.from_pod("neighbour", reply)
    answered.expect(out_by(), "sctp here:30080 > outside:40000 chunk=2 ttl=63 data=77")
    again = here.from_uplink("sctp outside:40000 > here:30080 chunk=0 data=9")
    again.expect(
        into("neighbour"), asked.named("sctp router:MASQ > neighbour:3868 chunk=0 ttl=63 data=9")
    )


@pytest.mark.parametrize("last", [ABORT, SHUTDOWN_COMPLETE])
def test_an_association_ends_and_its_port_is_balanced_anew(here: Node, last: int) -> None:
    sent = "sctp client:40000 > near:80"
    here.from_pod("client", sent)
    here.from_pod("client", f"{sent} chunk={last}").expect(into("neighbour"))
    assert here.flow(sent).state & State.FLOW_RESET
    other = world.Backend(18, "remote", 3868)
    here.put_service(world.Service(17, world.SCTP, world.NEAR_SCTP.frontends, (other,)))
    here.from_pod("client", f"{sent} chunk={INIT}").expect(through_tunnel())


def test_an_association_stays_with_a_backend_that_is_retained_until_it_is_gone(here: Node) -> None:
    sent = f"sctp client:40000 > near:80 chunk={HEARTBEAT}"
    here.from_pod("client", "sctp client:40000 > near:80")
    [old] = world.NEAR_SCTP.backends
    new = world.Backend(20, "remote", 3868)
    here.put_backend(world.NEAR_SCTP, new, world.USABLE)
    here.put_set(world.NEAR_SCTP, [new])
    here.put_backend(world.NEAR_SCTP, old, world.RETAINED)
    here.from_pod("client", sent).expect(into("neighbour"))
    # whoever gets it next does not know it, and ends it (RFC 9260 8.4)
    here.put_backend(world.NEAR_SCTP, old, world.GONE, generation=9000)
    here.from_pod("client", sent).expect(through_tunnel())


def test_an_idle_association_outlives_its_heartbeats(here: Node) -> None:
    """RFC 9260 15: one every 30 seconds, and up to a minute more with the longest RTO."""
    assert ABI.constant("LIFETIME_SCTP") >= 2 * (30 + 60)


def test_a_fragment_whose_ports_would_change_is_dropped_by_name(here: Node) -> None:
    """Its checksum depends on how much is still to come."""
    if here.family is Family.V6:
        frame = bytearray(here.build("sctp client:40000 > near:80 data=40", *_macs()))
        frame[20] = 44  # next header: fragment, and a fragment header before SCTP
        frame[18:20] = (int.from_bytes(frame[18:20], "big") + 8).to_bytes(2, "big")
        frame[54:54] = bytes([132, 0, 0, 1, 0, 0, 0, 9])
        here.from_pod("client", bytes(frame)).expect(dropped("SCTP_FRAGMENT"))
        return
    packet = packets.build("sctp client:40000 > near:80 data=40", here.family, here.addresses)
    packet.flags = "MF"
    frame_ = packets.frame(packet, here.family, *_macs())
    here.from_pod("client", frame_).expect(dropped("SCTP_FRAGMENT"))


def test_less_than_its_header_is_no_sctp(here: Node) -> None:
    whole = here.build("sctp client:40000 > near:80", *_macs())
    short = bytearray(whole[:-5])
    if here.family is Family.V4:
        short[16:18] = (int.from_bytes(short[16:18], "big") - 5).to_bytes(2, "big")
    else:
        short[18:20] = (int.from_bytes(short[18:20], "big") - 5).to_bytes(2, "big")
    here.from_pod("client", bytes(short)).expect(dropped("TRUNCATED"))
