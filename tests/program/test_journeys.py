# SPDX-License-Identifier: Apache-2.0
"""A flow from its first packet to its answer, over one node or two, and what is remembered of it."""

from __future__ import annotations

from collections import Counter

import pytest

from dataplane.model.net import Family
from tests.program import world
from tests.program.node import Node
from tests.program.result import ABI, PASSED, Flag, State, into, out_by, through_tunnel


class TestJourneys:
    def test_service_on_another_node_and_back(self, here: Node, there: Node) -> None:
        asked = here.from_pod("client", "tcp client:40000 > far:80")
        asked.expect(through_tunnel(), "tcp client:40000 > remote:8080 ttl=63")
        arrived = there.from_overlay(asked.frame)
        arrived.expect(into("remote"), "tcp client:40000 > remote:8080 ttl=62")

        answer = there.from_pod("remote", "tcp remote:8080 > client:40000 SA ack=1001")
        way_back = through_tunnel(world.OVERLAY_THERE, "here")
        answer.expect(way_back, "tcp remote:8080 > client:40000 SA ack=1001 ttl=63")
        returned = here.from_overlay(answer.frame)
        returned.expect(into("client"), "tcp far:80 > client:40000 SA ack=1001 ttl=62")

    def test_service_on_the_same_node_and_back(self, here: Node) -> None:
        here.from_pod("client", "tcp client:40000 > near:80").expect(into("neighbour"))
        answer = here.from_pod("neighbour", "tcp neighbour:8080 > client:40000 SA ack=1001")
        answer.expect(into("client"), "tcp near:80 > client:40000 SA ack=1001 ttl=63")

    def test_a_pod_that_is_its_own_backend_and_back(self, here: Node) -> None:
        asked = here.from_pod("client", "tcp client:40000 > self:80")
        asked.expect(into("client"), "tcp router:MASQ > client:8080 ttl=63")
        answer = here.from_pod("client", asked.named("tcp client:8080 > router:MASQ SA ack=1001"))
        answer.expect(into("client"), "tcp self:80 > client:40000 SA ack=1001 ttl=63")

    def test_outside_to_the_other_node_and_back(self, here: Node, there: Node) -> None:
        asked = here.from_uplink("tcp outside:40000 > here:30081").expect(through_tunnel())
        arrived = there.from_overlay(asked.frame)
        arrived.expect(into("remote"), f"tcp router:{asked.port} > remote:8080 ttl=62")
        answer = there.from_pod("remote", f"tcp remote:8080 > router:{asked.port} SA ack=1001")
        answer.expect(through_tunnel(world.OVERLAY_THERE, "here"))
        returned = here.from_overlay(answer.frame)
        returned.expect(out_by(), "tcp here:30081 > outside:40000 SA ack=1001 ttl=62")

    def test_the_daemon_of_a_node_and_back(self, here: Node) -> None:
        """Its answer comes through the stack."""
        here.from_pod("client", "tcp client:40000 > daemon:80").expect(
            PASSED, "tcp client:40000 > here:10250"
        )
        answer = here.to_pod("client", "tcp here:10250 > client:40000 SA ack=1001")
        answer.expect(PASSED, "tcp daemon:80 > client:40000 SA ack=1001")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_pods_of_two_nodes_see_each_other_untranslated(
        self, here: Node, there: Node, protocol: str
    ) -> None:
        asked = here.from_pod("client", f"{protocol} client:40000 > remote:99")
        asked.expect(through_tunnel(), f"{protocol} client:40000 > remote:99 ttl=63")
        there.from_overlay(asked.frame).expect(
            into("remote"), f"{protocol} client:40000 > remote:99 ttl=62"
        )
        flags = " SA ack=1001" if protocol == "tcp" else ""
        answer = there.from_pod("remote", f"{protocol} remote:99 > client:40000{flags}")
        here.from_overlay(answer.frame).expect(
            into("client"), f"{protocol} remote:99 > client:40000{flags} ttl=62"
        )

    def test_one_backend_behind_two_services_answers_each_as_itself(self, here: Node) -> None:
        """After translation the tuples would be equal, so the second flow gets another port."""
        first = here.from_pod("client", "tcp client:40000 > near:80")
        first.expect(into("neighbour"), "tcp client:40000 > neighbour:8080 ttl=63")
        second = here.from_pod("client", "tcp client:40000 > twin:80")
        second.expect(into("neighbour"), "tcp client:MASQ > neighbour:8080 ttl=63")
        for service, port in (("near", first.port), ("twin", second.port)):
            answer = here.from_pod("neighbour", f"tcp neighbour:8080 > client:{port} SA")
            answer.expect(into("client"), f"tcp {service}:80 > client:40000 SA ttl=63")

    def test_a_service_and_its_backend_itself_are_two_flows(self, here: Node) -> None:
        here.from_pod("client", "udp client:40000 > near:53").expect(into("neighbour"))
        direct = here.from_pod("client", "udp client:40000 > neighbour:5353")
        direct.expect(into("neighbour"), "udp client:MASQ > neighbour:5353 ttl=63")
        answer = here.from_pod("neighbour", f"udp neighbour:5353 > client:{direct.port}")
        answer.expect(into("client"), "udp neighbour:5353 > client:40000 ttl=63")


# ---- what is remembered ----
class TestRecord:
    def test_both_halves_hold_the_whole_flow(self, here: Node) -> None:
        here.from_pod("client", "tcp client:40000 > near:80")
        original = here.flow("tcp client:40000 > near:80")
        reply = here.flow("tcp neighbour:8080 > client:40000")
        assert len(here.flows()) == 2
        names = here.addresses
        for half in (original, reply):
            assert (half.client, half.client_port) == (names["client"], 40000)
            assert (half.frontend, half.frontend_port) == (names["near"], 80)
            assert (half.source, half.source_port) == (names["client"], 40000)
            assert (half.backend, half.backend_port) == (names["neighbour"], 8080)
            assert (half.service_id, half.backend_id) == (1, 1)
            assert half.generation == world.NEAR.backends[0].generation
            assert half.version == ABI.constant("FLOW_VERSION")
        assert original.flags == Flag.FLOW_NAT_DST
        assert reply.flags == Flag.FLOW_NAT_DST | Flag.FLOW_REPLY

    def test_each_half_counts_its_own_direction(self, here: Node) -> None:
        sizes: Counter[str] = Counter()
        for _ in range(3):
            sizes["out"] += len(here.from_pod("client", "udp client:40000 > near:53").given)
        back = here.from_pod("neighbour", "udp neighbour:5353 > client:40000 data=99")
        original = here.flow("udp client:40000 > near:53")
        reply = here.flow("udp neighbour:5353 > client:40000")
        assert (original.packets, original.bytes) == (3, sizes["out"])
        assert (reply.packets, reply.bytes) == (1, len(back.given))

    @pytest.mark.parametrize(
        ("segments", "state"),
        [
            ([], 0),
            ([("neighbour", "SA")], State.FLOW_SYN_ANSWERED),
            (
                [("neighbour", "SA"), ("client", "A")],
                State.FLOW_SYN_ANSWERED | State.FLOW_SEEN_REPLY,
            ),
            ([("client", "FA")], State.FLOW_FIN_CLIENT),
            (
                [("neighbour", "FA")],
                State.FLOW_SYN_ANSWERED | State.FLOW_FIN_BACKEND | State.FLOW_BACKEND_FIRST,
            ),
            (
                [("client", "FA"), ("neighbour", "FA")],
                State.FLOW_SYN_ANSWERED | State.FLOW_FIN_CLIENT | State.FLOW_FIN_BACKEND,
            ),
            ([("client", "RA")], State.FLOW_RESET),
            ([("neighbour", "RA")], State.FLOW_SYN_ANSWERED | State.FLOW_RESET),
        ],
        ids=[
            "opened",
            "answered",
            "established",
            "client closes",
            "backend closes",
            "closed",
            "reset",
            "refused",
        ],
    )
    def test_both_halves_know_how_far_the_connection_is(
        self, here: Node, segments: list[tuple[str, str]], state: int
    ) -> None:
        here.from_pod("client", "tcp client:40000 > near:80")
        lines = {"client": "client:40000 > near:80", "neighbour": "neighbour:8080 > client:40000"}
        for pod, flags in segments:
            here.from_pod(pod, f"tcp {lines[pod]} {flags}")
        for line in lines.values():
            half = here.flow(f"tcp {line}")
            assert half.state == state

    def test_the_families_have_tables_of_their_own(self, here: Node, family: Family) -> None:
        here.from_pod("client", "tcp client:40000 > near:80")
        here.from_pod("client", "tcp client:1 > nowhere:80")
        other = Family.V6 if family is Family.V4 else Family.V4
        assert here.flows(family)
        assert here.drops(family)
        assert not here.flows(other)
        assert not here.drops(other)
