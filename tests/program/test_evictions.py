# SPDX-License-Identifier: Apache-2.0
"""Property 3: an eviction never breaks a live flow. Whatever entry the kernel takes away."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from dataplane.kernel import loader
from dataplane.kernel.bundle import Bundle
from dataplane.model.net import Family
from dataplane.model.rows import FlowBudget, SweepRow
from tests.program import world
from tests.program.node import Node
from tests.program.result import (
    ABI,
    CHECKED_WITHIN,
    PASSED,
    Flag,
    dropped,
    into,
    out_by,
    refused,
    through_tunnel,
)
from tests.program.sandbox import Sandbox
from tests.program.state import SIZES

LIFETIME_UDP_STREAM = ABI.constant("LIFETIME_UDP_STREAM")

SERVICE = ("tcp client:40000 > near:80", "tcp neighbour:8080 > client:40000")
PLAIN = ("tcp client:40000 > neighbour:80", "tcp neighbour:80 > client:40000")
FULL, IN_USE = 512, 64  # entries, and flows that are used once more after as many others


class TestEviction:
    def stand(self, here: Node, *lines: str) -> bool:
        """Both halves are there, each in its own place, and nothing else."""
        original, reply = (here.flow(line) for line in lines)
        in_place = reply.flags & Flag.FLOW_REPLY and not original.flags & Flag.FLOW_REPLY
        return bool(in_place) and len(here.flows()) == 2

    def test_a_lost_original_half_of_a_service_flow_is_put_back_by_the_client(
        self, here: Node
    ) -> None:
        """At once: the client's packet finds the reply half by walking the same ports."""
        sent, reply = SERVICE
        here.from_pod("client", sent)
        here.from_pod("neighbour", f"{reply} SA")
        here.forget(sent)
        here.from_pod("client", f"{sent} A").expect(
            into("neighbour"), "tcp client:40000 > neighbour:8080 A ttl=63"
        )
        assert self.stand(here, sent, reply)

    @pytest.mark.parametrize(
        "packet", ["tcp {}:40000 > outside:443 A", "udp {}:40000 > outside:53"]
    )
    def test_a_lost_original_half_of_a_masqueraded_flow_is_put_back_by_the_pod(
        self, here: Node, packet: str
    ) -> None:
        """Under the port that it had, also where that was not the first one tried."""
        here.change("node", 0, masquerade_min=61000, masquerade_max=61003)
        ports = {}
        for pod in ("client", "neighbour"):
            ports[pod] = here.from_pod(pod, packet.format(pod).replace(" A", " S")).port
        for pod in ("client", "neighbour"):
            here.forget(packet.format(pod))
        for pod in ("neighbour", "client"):
            assert here.from_pod(pod, packet.format(pod)).expect(out_by()).port == ports[pod]
        assert len(here.flows()) == 4

    def test_a_lost_original_half_of_a_flow_from_outside_is_put_back_by_its_client(
        self, here: Node
    ) -> None:
        sent = "tcp outside:40000 > here:30080"
        port = here.from_uplink(sent).expect(into("neighbour")).port
        here.forget(sent)
        here.from_uplink(f"{sent} A ack=7").expect(
            into("neighbour"), f"tcp router:{port} > neighbour:8080 A ack=7 ttl=63"
        )
        back = here.from_pod("neighbour", f"tcp neighbour:8080 > router:{port} A ack=7")
        back.expect(out_by(), "tcp here:30080 > outside:40000 A ack=7 ttl=63")

    @pytest.mark.parametrize(("sent", "reply"), [SERVICE, PLAIN], ids=["Service", "plain"])
    @pytest.mark.parametrize("lost", ["original", "reply"])
    def test_a_lost_half_is_put_back_by_a_packet_that_finds_the_other(
        self, here: Node, sent: str, reply: str, lost: str
    ) -> None:
        here.from_pod("client", sent)
        here.from_pod("neighbour", f"{reply} SA")
        here.forget(sent if lost == "original" else reply)
        here.later(CHECKED_WITHIN)
        if lost == "reply":
            here.from_pod("client", f"{sent} A").expect(into("neighbour"))
        else:
            here.from_pod("neighbour", f"{reply} PA data=9").expect(into("client"))
        assert self.stand(here, sent, reply)
        back = here.from_pod("neighbour", f"{reply} PA data=9")
        seen = reply.replace("neighbour:8080", "near:80")
        back.expect(into("client"), f"{seen} PA data=9 ttl=63")
        there = here.from_pod("client", f"{sent} A")
        seen = sent.replace("near:80", "neighbour:8080")
        there.expect(into("neighbour"), f"{seen} A ttl=63")

    def test_a_lost_reply_half_met_by_the_backend_first_is_put_back_by_the_client(
        self, here: Node
    ) -> None:
        """A reply alone does not tell its frontend: the stack takes it, and no client knows it."""
        sent, reply = SERVICE
        here.from_pod("client", sent)
        here.forget(reply)
        here.from_pod("neighbour", f"{reply} SA").expect(PASSED)
        here.later(CHECKED_WITHIN)
        here.from_pod("client", sent).expect(into("neighbour"))
        assert self.stand(here, sent, reply)

    def test_a_reply_to_a_hidden_client_whose_reply_half_is_lost_is_kept_from_the_host(
        self, here: Node, there: Node
    ) -> None:
        """Its reset would end the flow at the backend; the client's next packet puts it right."""
        sent = "tcp outside:40000 > here:30081"
        port = here.from_uplink(sent).expect(through_tunnel()).port
        reply = f"tcp remote:8080 > router:{port}"
        here.forget(reply)
        here.from_overlay(f"{reply} SA ack=1001").expect(dropped("MASQUERADE_UNKNOWN"))
        here.later(CHECKED_WITHIN)
        here.from_uplink(sent).expect(through_tunnel())
        assert self.stand(here, sent, reply)

    def test_a_pod_that_reached_itself_keeps_its_flow_too(self, here: Node) -> None:
        sent = "tcp neighbour:40000 > near:80"
        port = here.from_pod("neighbour", sent).expect(into("neighbour")).port
        reply = f"tcp neighbour:8080 > router:{port}"
        here.forget(reply)
        here.from_pod("neighbour", f"{reply} SA ack=1001").expect(dropped("MASQUERADE_UNKNOWN"))
        here.later(CHECKED_WITHIN)
        here.from_pod("neighbour", sent).expect(into("neighbour"))
        assert self.stand(here, sent, reply)

    def test_a_translated_flow_without_any_half_ends_with_a_reset(self, here: Node) -> None:
        sent, reply = SERVICE
        here.from_pod("client", sent)
        here.forget(sent)
        here.forget(reply)
        here.from_pod("client", f"{sent} A ack=7").expect(refused("NO_FLOW"))
        assert not here.flows()

    def test_a_plain_flow_without_any_half_is_left_to_the_stack(self, here: Node) -> None:
        here.from_pod("client", "tcp client:40000 > neighbour:80 PA ack=7 data=5").expect(PASSED)
        here.from_pod("client", "tcp client:40000 > remote:80 A ack=7").expect(PASSED)
        assert not here.flows()

    def test_a_masqueraded_flow_without_any_half_is_not_sent_under_another_port(
        self, here: Node
    ) -> None:
        """The stack may know it (an older NAT of the node); if not, it may not leave as it is."""
        line = "tcp client:40000 > outside:443 A ack=7"
        here.from_pod("client", line).expect(PASSED)
        here.to_uplink(line).expect(dropped("NO_FLOW"))

    def test_a_datagram_begins_a_flow_anew(self, here: Node) -> None:
        here.from_pod("client", "udp client:40000 > near:53").expect(into("neighbour"))
        here.forget("udp client:40000 > near:53")
        here.forget("udp neighbour:5353 > client:40000")
        here.from_pod("client", "udp client:40000 > near:53").expect(into("neighbour"))
        assert len(here.flows()) == 2

    def test_a_lost_reply_tuple_that_another_flow_has_taken(self, here: Node) -> None:
        """Datagrams go on under another port; a connection is reset, for its peer knows the old."""
        here.change("node", 0, masquerade_min=61000, masquerade_max=61001)
        for protocol, port in (("udp", 53), ("tcp", 443)):
            sent = f"{protocol} client:40000 > outside:{port}"
            first = here.from_pod("client", sent).expect(out_by()).port
            here.forget(f"{protocol} outside:{port} > here:{first}")
            for other in range(40001, 40020):
                taken = here.from_pod("neighbour", f"{protocol} neighbour:{other} > outside:{port}")
                if taken.verdict.action == "WORLD" and taken.port == first:
                    break
            here.later(CHECKED_WITHIN)
            if protocol == "tcp":
                here.from_pod("client", f"{sent} A ack=9").expect(refused("NO_FLOW"))
            else:
                assert here.from_pod("client", sent).expect(out_by()).port != first
                taken_by = here.flow(f"udp outside:53 > here:{first}").client
                assert taken_by == here.addresses["neighbour"]

    def test_a_flow_used_one_way_only_keeps_its_port(self, here: Node) -> None:
        """Its reply half is never found by a packet, but the flow lives."""
        here.change("node", 0, masquerade_min=61000, masquerade_max=61000)
        for _ in range(3):
            here.from_pod("client", "udp client:40000 > outside:514").expect(out_by())
            here.later(20)
        here.from_pod("neighbour", "udp neighbour:40000 > outside:514").expect(
            dropped("PORTS_EXHAUSTED")
        )

    def test_a_silent_flow_gives_its_port_up(self, here: Node) -> None:
        here.change("node", 0, masquerade_min=61000, masquerade_max=61000)
        here.from_pod("client", "udp client:40000 > outside:514").expect(out_by())
        here.later(LIFETIME_UDP_STREAM + 1)
        here.from_pod("neighbour", "udp neighbour:40000 > outside:514").expect(
            out_by(), "udp here:61000 > outside:514 ttl=63"
        )

    def test_a_flow_that_another_cpu_saw_just_now_is_not_dead(self, here: Node) -> None:
        here.change("node", 0, masquerade_min=61000, masquerade_max=61000)
        here.from_pod("client", "udp client:40000 > outside:514").expect(out_by())
        here.later(-1)
        here.from_pod("neighbour", "udp neighbour:40000 > outside:514").expect(
            dropped("PORTS_EXHAUSTED")
        )

    @pytest.mark.parametrize("end", ["A", "RA"], ids=["closed", "reset"])
    def test_a_connection_opened_anew_keeps_its_port_from_others(
        self, here: Node, end: str
    ) -> None:
        """Its reply half is the new connection's, and does not stay as closed as the last left it."""
        here.change("node", 0, masquerade_min=61000, masquerade_max=61000)
        sent, reply = "tcp client:40000 > outside:443", "tcp outside:443 > here:61000"
        here.from_pod("client", sent).expect(out_by())
        here.from_uplink(f"{reply} FA ack=1").expect(into("client"))
        here.from_pod("client", f"{sent} F{end} ack=2").expect(out_by())
        here.from_pod("client", sent).expect(out_by(), "tcp here:61000 > outside:443 ttl=63")
        assert not here.flow(reply).state
        here.from_uplink(f"{reply} SA ack=1").expect(into("client"))
        here.from_pod("neighbour", "tcp neighbour:40000 > outside:443").expect(
            dropped("PORTS_EXHAUSTED")
        )


@pytest.fixture
def full(tmp_path: Path, bundle: Bundle, family: Family) -> Iterator[Node]:
    """A node with a small flow table."""
    with ExitStack() as stack:
        sandbox = Sandbox(tmp_path, world.DEVICE_MACS)
        stack.callback(sandbox.close)
        sizes = SIZES | {"flows": FULL}
        datapath = sandbox.do(partial(loader.load, bundle, sandbox.bpffs / "here", sizes))
        stack.callback(datapath.close)
        node = Node("here", datapath, sandbox)
        node.fill(family, world.Underlay())
        yield node


@pytest.mark.speed  # not of times, but its 4,096 packets take five minutes on an emulated CPU
@pytest.mark.parametrize("half", ["reply", "original"])
def test_a_full_table_does_not_evict_a_flow_that_was_just_written(full: Node, half: str) -> None:
    """The kernel's LRU evicts first what nobody has looked up since, where most is in use.

    It does so when a CPU has no free entry left: here, always at the same half of a flow.
    """
    if half == "original":
        full.from_pod("client", "tcp client:1 > near:80")
        full.forget("tcp client:1 > near:80")
    open_: deque[tuple[str, str]] = deque(maxlen=IN_USE)
    for port in range(40000, 40000 + 2 * FULL):
        sent, reply = f"tcp client:{port} > near:80", f"tcp neighbour:8080 > client:{port}"
        full.from_pod("client", sent).expect(into("neighbour"))
        full.from_pod("neighbour", f"{reply} SA ack=1001").expect(into("client"))
        if len(open_) == IN_USE:
            full.from_pod("client", f"{open_[0][0]} A ack=1001")
            full.from_pod("neighbour", f"{open_[0][1]} A ack=1001")
        open_.append((sent, reply))


class TestClosedFlows:
    """They rest for their last packets, and only so many of them: else they push others out."""

    @pytest.fixture(autouse=True)
    def two_places(self, here: Node) -> None:
        here.change("node", 0, closed_flows=2)

    def close(self, here: Node, port: int) -> None:
        here.from_pod("client", f"tcp client:{port} > near:80")
        here.from_pod("client", f"tcp client:{port} > near:80 R")

    def ports(self, here: Node) -> list[int]:
        """Of the flows that are there, whole."""
        return sorted(flow.client_port for flow in here.flows().values())

    def test_the_one_that_closed_longest_ago_goes_whole(self, here: Node) -> None:
        for port in range(1, 6):
            self.close(here, port)
        assert self.ports(here) == [4, 4, 5, 5]

    def test_one_that_was_opened_anew_stays(self, here: Node) -> None:
        self.close(here, 1)
        here.from_pod("client", "tcp client:1 > near:80")
        for port in range(2, 5):
            self.close(here, port)
        assert self.ports(here) == [1, 1, 3, 3, 4, 4]

    def test_a_live_flow_has_no_place_among_them(self, here: Node) -> None:
        here.from_pod("client", "tcp client:1 > near:80")
        for port in range(2, 6):
            self.close(here, port)
        assert self.ports(here) == [1, 1, 4, 4, 5, 5]

    def test_a_flow_that_closes_again_does_not_make_room_for_itself(self, here: Node) -> None:
        for _ in range(4):
            self.close(here, 1)
        assert self.ports(here) == [1, 1]

    def test_both_sides_closings_are_one(self, here: Node) -> None:
        """FINs and their acknowledgements, then a reset: one place."""
        self.close(here, 1)
        for sent in ("S", "A", "FA"):
            here.from_pod("client", f"tcp client:2 > near:80 {sent}")
            here.from_pod("neighbour", f"tcp neighbour:8080 > client:2 {sent}")
        here.from_pod("client", "tcp client:2 > near:80 A")
        here.from_pod("client", "tcp client:2 > near:80 R")
        assert self.ports(here) == [1, 1, 2, 2]


class TestBound:
    """One pod may open so many flows; while nobody counts off those that fell silent, more."""

    MOST = 3

    @pytest.fixture(autouse=True)
    def bounded(self, here: Node) -> None:
        here.change("node", 0, flows_per_pod=self.MOST)
        here.put("endpoint_flows", world.POD_IDS["client"], FlowBudget(0))
        self.sweep(here, 60)

    def sweep(self, here: Node, seconds: int) -> None:
        """As after a sweep that may be believed for so long."""
        here.put("sweep", 0, SweepRow(time.monotonic_ns() + seconds * 10**9))

    def test_a_flow_too_many_is_a_named_drop(self, here: Node) -> None:
        for port in range(1, 1 + self.MOST):
            here.from_pod("client", f"udp client:{port} > neighbour:53").expect(into("neighbour"))
        for line in ("udp client:9 > neighbour:53", "tcp client:9 > near:80"):
            here.from_pod("client", line).expect(dropped("FLOW_LIMIT"))
        here.from_pod("client", "udp client:1 > neighbour:53").expect(into("neighbour"))
        here.from_pod("neighbour", "udp neighbour:9 > client:53").expect(into("client"))

    def test_a_flow_that_begins_anew_counts_once(self, here: Node) -> None:
        for port in range(1, 1 + self.MOST):
            here.from_pod("client", f"udp client:{port} > balancer:514").expect(out_by())
        here.put_service(world.logs(20, "neighbour"))
        here.later(CHECKED_WITHIN)
        here.from_pod("client", "udp client:1 > balancer:514").expect(into("neighbour"))
        here.from_pod("client", "udp client:9 > balancer:514").expect(dropped("FLOW_LIMIT"))

    def test_a_flow_that_closed_no_longer_counts(self, here: Node) -> None:
        for port in range(1, 3 * self.MOST):
            here.from_pod("client", f"tcp client:{port} > neighbour:80").expect(into("neighbour"))
            here.from_pod("client", f"tcp client:{port} > neighbour:80 R")

    def test_without_sweeps_no_pod_is_held_to_what_it_opened_since(self, here: Node) -> None:
        self.sweep(here, -1)
        for port in range(1, 3 * self.MOST):
            here.from_pod("client", f"udp client:{port} > neighbour:53").expect(into("neighbour"))
