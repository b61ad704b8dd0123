# SPDX-License-Identifier: Apache-2.0
"""Packets that the node's kernel handles on their way: into pods, and out by an uplink."""

from __future__ import annotations

import pytest

from dataplane.kernel.prelude import Setup
from tests.program import world
from tests.program.node import Node
from tests.program.result import PASSED, Flag, Verdict, dropped, into, out_by
from tests.program.tables import Row, table

DONE = Setup(tc_index=0x706C)

INTO_A_POD: list[Row] = [
    ("the node's own", "tcp router:40000 > client:80", PASSED, None),
    ("the node's own, by its other address", "udp here:40000 > client:53", PASSED, None),
    ("of a bridge beside us", "tcp lan:40000 > client:80", PASSED, None),
    ("mid-flow, of a flow that nobody knows", "tcp lan:40000 > client:80 A ack=7", PASSED, None),
    ("an answer to a ping", "echo-reply lan > client", PASSED, None),
    ("its last hop", "tcp router:40000 > client:80 ttl=1", PASSED, None),
]

OUT_OF_THE_NODE: list[Row] = [
    ("the node's own", "tcp here:40000 > outside:443", PASSED, None),
    ("the node's own ping", "echo here > outside", PASSED, None),
    (
        "a pod's, which nobody outside knows",
        "tcp client:40000 > outside:443",
        PASSED,
        "tcp here:MASQ > outside:443",
    ),
    (
        "a pod's, where pods are known",
        "tcp client:40000 > kept-world:443",
        PASSED,
        "tcp client:40000 > kept-world:443",
    ),
    (
        "a pod's, mid-flow, of a flow that nobody knows",
        "tcp client:40000 > outside:443 A ack=7",
        dropped("NO_FLOW"),
        None,
    ),
    ("of others", "tcp lan:40000 > outside:443", PASSED, None),
]


@table(INTO_A_POD)
def test_the_stack_sends_into_a_pod(
    here: Node, sent: str, verdict: Verdict, seen: str | None
) -> None:
    here.to_pod("client", sent).expect(verdict, seen)


@table(OUT_OF_THE_NODE)
def test_the_stack_sends_out(here: Node, sent: str, verdict: Verdict, seen: str | None) -> None:
    here.to_uplink(sent).expect(verdict, seen)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
class TestOneWayInBothDirections:
    """The kernel's own conntrack must see both directions of a flow, or none."""

    def answer(self, protocol: str, src: str, dst: str) -> str:
        flags = " SA ack=1001" if protocol == "tcp" else ""
        return f"{protocol} {src} > {dst}{flags}"

    def test_a_flow_that_came_by_the_stack_is_answered_by_the_stack(
        self, here: Node, protocol: str
    ) -> None:
        asked = f"{protocol} remote:40000 > client:80"
        here.to_pod("client", asked).expect(PASSED)
        assert here.flow(asked).flags == Flag.FLOW_VIA_STACK
        answer = self.answer(protocol, "client:80", "remote:40000")
        here.from_pod("client", answer).expect(PASSED)
        here.to_pod("client", asked).expect(PASSED)
        here.from_pod("client", answer).expect(PASSED)

    def test_its_answer_to_the_world_leaves_untranslated(self, here: Node, protocol: str) -> None:
        """A reply is never masqueraded: the client asked the pod."""
        here.to_pod("client", f"{protocol} outside:40000 > client:80").expect(PASSED)
        answer = self.answer(protocol, "client:80", "outside:40000")
        here.from_pod("client", answer).expect(PASSED)
        here.to_uplink(answer).expect(PASSED, answer)

    def test_the_nodes_own_flow_needs_no_record(self, here: Node, protocol: str) -> None:
        here.to_pod("client", f"{protocol} router:40000 > client:80").expect(PASSED)
        assert not here.flows()
        answer = self.answer(protocol, "client:80", "router:40000")
        here.from_pod("client", answer).expect(PASSED)

    def test_a_flow_that_went_straight_is_answered_straight(
        self, here: Node, protocol: str
    ) -> None:
        here.from_pod("client", f"{protocol} client:40000 > neighbour:80").expect(into("neighbour"))
        answer = self.answer(protocol, "neighbour:80", "client:40000")
        here.from_pod("neighbour", answer).expect(into("client"))


def test_what_another_hook_has_finished_passes_into_a_pod(here: Node) -> None:
    here.to_pod("client", "tcp lan:40000 > client:80", DONE).expect(PASSED)
    assert not here.flows()


def test_what_another_hook_has_finished_passes_out(here: Node) -> None:
    line = "tcp client:40000 > outside:443"
    here.to_uplink(line, DONE).expect(PASSED, line)
    assert not here.flows()


def test_a_pod_cannot_mark_its_packets_as_finished(here: Node) -> None:
    """The mark is taken off first, so that to_uplink still sees a packet of a pod."""
    frame = here.build(
        "tcp neighbour:1 > outside:443", world.GATEWAY_MAC, world.mac_of(world.CLIENT)
    )
    here.run("from_pod", world.CLIENT, frame, DONE).expect(dropped("SPOOFED_SOURCE"))


def test_a_masqueraded_flow_is_the_same_at_both_hooks(here: Node) -> None:
    """First by the stack, then straight: under one port."""
    line = "udp client:40000 > outside:53"
    first = here.to_uplink(line).expect(PASSED, "udp here:MASQ > outside:53")
    again = here.from_pod("client", line)
    again.expect(out_by(), f"udp here:{first.port} > outside:53 ttl=63")


def test_a_reply_of_a_service_that_comes_by_the_stack_is_translated(here: Node) -> None:
    here.from_pod("client", "tcp client:40000 > far:80")
    here.to_pod("client", "tcp remote:8080 > client:40000 SA ack=1001").expect(
        PASSED, "tcp far:80 > client:40000 SA ack=1001"
    )


@pytest.mark.parametrize("hook", ["to_pod", "to_uplink"])
def test_a_broken_packet_goes_no_further_than_a_hook(here: Node, hook: str) -> None:
    """Into a pod it is dropped by name; the node's own broken packets are the node's own."""
    source = "lan" if hook == "to_pod" else "here"
    frame = here.build(f"tcp {source}:1 > client:80", world.mac_of(world.CLIENT), world.GATEWAY_MAC)
    device = world.CLIENT if hook == "to_pod" else world.UPLINK
    verdict = dropped("TRUNCATED") if hook == "to_pod" else PASSED
    here.run(hook, device, frame[:-1]).expect(verdict)


def test_a_pods_broken_packet_does_not_leave(here: Node) -> None:
    frame = here.build("tcp client:1 > outside:80", world.SWITCH_MAC, world.mac_of(world.UPLINK))
    here.run("to_uplink", world.UPLINK, frame[:-1]).expect(dropped("TRUNCATED"))
