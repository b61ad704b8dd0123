# SPDX-License-Identifier: Apache-2.0
"""Direct server return: a packet goes on to the backend's node as it came, which answers itself.

outside ── here (asked) ── overlay, VNI + 1 ── there (has the pod) ── outside
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.packet import Packet

from dataplane.model.constants import FrontendKind, NodeFlag, RouteFlag, RouteKind
from dataplane.model.net import Family
from tests.program import packets, world
from tests.program.node import Node
from tests.program.result import (
    ABI,
    Flag,
    Verdict,
    by_next_hop,
    dropped,
    into,
    out_by,
    through_tunnel,
)
from tests.program.test_icmp import QUOTED, error, quote

VNI = world.VNI + 1
BALANCED = replace(
    world.FAR,
    frontends=(*world.FAR.frontends, ("balancer", 8100, FrontendKind.LOAD_BALANCER)),
)
ASKED = "tcp outside:40000 > here:30081"
TO_PEER = through_tunnel()
BY_UPLINK = out_by(world.UPLINK_THERE)


@pytest.fixture
def here(here: Node) -> Node:
    return direct(here)


@pytest.fixture
def there(there: Node) -> Node:
    return direct(there)


def direct(node: Node) -> Node:
    node.change("node", 0, flags=node.get("node", 0).flags | NodeFlag.DIRECT)
    node.put_service(BALANCED)
    return node


@pytest.mark.parametrize("frontend", ["here:30081", "balancer:8100"])
def test_a_connection_takes_the_short_way_back(here: Node, there: Node, frontend: str) -> None:
    asked = f"tcp outside:40000 > {frontend}"
    sent = here.from_uplink(asked).expect(TO_PEER, f"{asked} ttl=63")
    came = there.from_overlay(sent.frame, vni=VNI)
    came.expect(into("remote"), "tcp outside:40000 > remote:8080 ttl=62")
    answer = there.from_pod("remote", "tcp remote:8080 > outside:40000 SA ack=7")
    answer.expect(BY_UPLINK, f"tcp {frontend} > outside:40000 SA ack=7 ttl=63")
    # What goes on goes the same way.
    again = here.from_uplink(f"{asked} A ack=9").expect(TO_PEER, f"{asked} A ack=9 ttl=63")
    there.from_overlay(again.frame, vni=VNI).expect(into("remote"))
    assert not here.flow(asked).flags & (Flag.FLOW_NAT_DST | Flag.FLOW_NAT_SRC)
    assert len(here.flows()) == 1


def test_the_reply_is_not_waited_for(here: Node) -> None:
    """It never comes by here, and the flow must not be taken for one that was never answered."""
    here.from_uplink(ASKED)
    assert not here.flow(ASKED).state
    here.from_uplink(f"{ASKED} A")
    here.later(ABI.constant("LIFETIME_TCP_SYN") + 1)
    here.from_uplink(f"{ASKED} A").expect(TO_PEER)
    here.from_uplink(f"{ASKED} FA").expect(TO_PEER)
    here.from_uplink(f"{ASKED} A").expect(TO_PEER)
    here.put_set(BALANCED, [world.Backend(40, "neighbour", 8080)])
    here.put_backend(BALANCED, world.Backend(40, "neighbour", 8080), world.USABLE)
    here.from_uplink(ASKED).expect(into("neighbour"))


def test_a_backend_of_this_node_sees_its_client(here: Node) -> None:
    here.from_uplink("tcp outside:40000 > here:30080").expect(
        into("neighbour"), "tcp outside:40000 > neighbour:8080 ttl=63"
    )
    here.from_pod("neighbour", "tcp neighbour:8080 > outside:40000 SA").expect(
        out_by(), "tcp here:30080 > outside:40000 SA ttl=63"
    )


@pytest.mark.parametrize("kept", [True, False])
def test_a_lost_record_is_made_again(here: Node, there: Node, kept: bool) -> None:
    """The asked node's by any segment; the other's from its other half, or the client is reset."""
    there.from_overlay(here.from_uplink(ASKED).frame, vni=VNI)
    here.forget(ASKED)
    there.forget(ASKED)
    if not kept:
        there.forget("tcp remote:8080 > outside:40000")
    sent = here.from_uplink(f"{ASKED} A ack=7").expect(TO_PEER, f"{ASKED} A ack=7 ttl=63")
    came = there.from_overlay(sent.frame, vni=VNI)
    if kept:
        came.expect(into("remote"))
    else:
        assert came.verdict == Verdict("WORLD", "NO_FLOW", world.UPLINK_THERE)
        reset = "tcp here:30081 > outside:40000 R seq=7 window=0 ip-id=0"
        assert came.frame[14:] == there.build(reset, bytes(6), bytes(6))[14:]


def test_the_node_that_has_the_pods_knows_which_one_it_was(here: Node, there: Node) -> None:
    """The asked node's own choice may be gone while the connection is another's."""
    there.from_overlay(here.from_uplink(ASKED).frame, vni=VNI)
    backend = BALANCED.backends[0]
    here.put_backend(BALANCED, backend, world.GONE, generation=9000)
    sent = here.from_uplink(f"{ASKED} A ack=7").expect(TO_PEER)
    there.from_overlay(sent.frame, vni=VNI).expect(into("remote"))
    there.put_backend(BALANCED, backend, world.GONE, generation=9000)
    sent = here.from_uplink(f"{ASKED} A ack=7").expect(TO_PEER)
    came = there.from_overlay(sent.frame, vni=VNI)
    assert came.verdict == Verdict("WORLD", "BACKEND_GONE", world.UPLINK_THERE)


def test_an_error_about_the_answer_finds_the_pod(here: Node, there: Node) -> None:
    """A router of the client's side tells whom the packet was from: the node that was asked."""
    there.from_overlay(here.from_uplink(ASKED).frame, vni=VNI)
    told = quote(here, "tcp here:30081 > outside:40000 A")
    made = error(here, "outside2", "here", "too big", told, mtu=1280)
    sent = here.from_uplink(framed(here, made, world.mac_of(world.UPLINK)))
    assert sent.verdict == Verdict("TUNNEL", device=world.OVERLAY)
    wanted = error(
        there, "outside2", "remote", "too big", quote(there, "tcp remote:8080 > outside:40000 A"),
        ttl=62, mtu=1280,
    )  # fmt: skip
    pod = framed(there, wanted, world.mac_of(world.REMOTE), world.GATEWAY_MAC)
    there.from_overlay(sent.frame, vni=VNI).expect(into("remote"), pod)


def framed(node: Node, packet: Packet, dst: bytes, src: bytes = world.SWITCH_MAC) -> bytes:
    return packets.frame(packet, node.family, dst, src)


def test_a_client_is_told_by_the_node_that_it_was_sent_on_to(there: Node) -> None:
    sent = there.from_overlay(f"{ASKED} ttl=1", vni=VNI)
    assert sent.verdict == Verdict("WORLD", "HOP_LIMIT", world.UPLINK_THERE)
    made = error(
        there, "there", "outside", "time exceeded", sent.given[14:][: QUOTED[there.family]]
    )
    assert sent.frame[14:] == bytes(made)


def test_what_does_not_fit_into_the_overlay_is_told_so(here: Node) -> None:
    """Whoever may fragment it, too: the node's stack would take it for its own."""
    sent = here.from_uplink(f"{ASKED} A data={world.POD_MTU}")
    assert (sent.verdict.action, sent.verdict.reason) == ("ANSWER", "TOO_BIG")


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        pytest.param("tcp outside:1 > here:30099", dropped("DIRECT"), id="no such port"),
        pytest.param("tcp outside:1 > far:80", dropped("DIRECT"), id="a ClusterIP"),
        pytest.param("tcp outside:1 > remote:8080", dropped("DIRECT"), id="a pod"),
        pytest.param("tcp outside:1 > here:30080", dropped("DIRECT"), id="no endpoint here"),
        pytest.param("tcp client:1 > here:30081", dropped("OVERLAY_SOURCE"), id="as a pod"),
    ],
)
def test_what_is_not_for_direct_return_goes_nowhere(
    there: Node, packet: str, verdict: Verdict
) -> None:
    there.from_overlay(packet, vni=VNI).expect(verdict)


def test_only_nodes_may_send_so(there: Node) -> None:
    there.from_overlay(ASKED, sender=there.addresses["outside"], vni=VNI).expect(
        dropped("OVERLAY_PEER")
    )
    there.change("node", 0, flags=int(NodeFlag.VXLAN))
    there.from_overlay(ASKED, vni=VNI).expect(dropped("OVERLAY_VNI"))


class TestNative:
    @pytest.fixture
    def underlay(self, family: Family) -> world.Underlay:
        return world.Underlay(vxlan=False)

    @pytest.mark.parametrize("beyond", [False, True], ids=["next to us", "behind a router"])
    def test_the_overlay_carries_it_in_native_mode_too(self, here: Node, beyond: bool) -> None:
        """Where the next hop is a router, the node's address is not known: the client is hidden."""
        key = next(k for k, r in here.items("routes").items() if r.kind == RouteKind.NATIVE)
        flags = RouteFlag.CLUSTER if beyond else RouteFlag.CLUSTER | RouteFlag.HOP_IS_NODE
        here.change("routes", key, flags=int(flags))
        here.change("node", 0, overlay_ifindex=world.OVERLAY)
        sent = here.from_uplink(ASKED)
        if beyond:
            sent.expect(by_next_hop(), "tcp router:MASQ > remote:8080 ttl=63")
        else:
            sent.expect(Verdict("TUNNEL", device=world.OVERLAY, hop="there"), f"{ASKED} ttl=63")
