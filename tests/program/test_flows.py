# SPDX-License-Identifier: Apache-2.0
"""The life of a flow: journeys over both nodes, evictions, and backends that come and go."""

from __future__ import annotations

from collections import Counter

import pytest

from dataplane.abi.layout import abi
from dataplane.model.net import Family
from tests.program import world
from tests.program.node import (
    PASSED,
    Node,
    dropped,
    into,
    out_by,
    refused,
    through_tunnel,
)

ABI = abi(Family.V4)
Flag, State = ABI.enum("flow_flag"), ABI.enum("flow_state")
LIFETIME_TCP_SYN = ABI.constant("LIFETIME_TCP_SYN")
LIFETIME_UDP_SINGLE = ABI.constant("LIFETIME_UDP_SINGLE")


# ---- journeys ----
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
        assert original is not None
        assert reply is not None
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
        assert original is not None
        assert reply is not None
        assert (original.packets, original.bytes) == (3, sizes["out"])
        assert (reply.packets, reply.bytes) == (1, len(back.given))

    @pytest.mark.parametrize(
        ("segments", "state"),
        [
            ([], 0),
            ([("neighbour", "SA")], State.FLOW_SEEN_REPLY),
            ([("client", "FA")], State.FLOW_FIN_CLIENT),
            (
                [("neighbour", "FA")],
                State.FLOW_SEEN_REPLY | State.FLOW_FIN_BACKEND | State.FLOW_BACKEND_FIRST,
            ),
            (
                [("client", "FA"), ("neighbour", "FA")],
                State.FLOW_SEEN_REPLY | State.FLOW_FIN_CLIENT | State.FLOW_FIN_BACKEND,
            ),
            ([("client", "RA")], State.FLOW_RESET),
            ([("neighbour", "RA")], State.FLOW_SEEN_REPLY | State.FLOW_RESET),
        ],
        ids=["opened", "answered", "client closes", "backend closes", "closed", "reset", "refused"],
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
            assert half is not None
            assert half.state == state

    def test_the_families_have_tables_of_their_own(self, here: Node, family: Family) -> None:
        here.from_pod("client", "tcp client:40000 > near:80")
        here.from_pod("client", "tcp client:1 > nowhere:80")
        other = Family.V6 if family is Family.V4 else Family.V4
        assert here.flows(family)
        assert here.drops(family)
        assert not here.flows(other)
        assert not here.drops(other)


# ---- evictions (property 3: an eviction never breaks a live flow) ----
SERVICE = ("tcp client:40000 > near:80", "tcp neighbour:8080 > client:40000")
PLAIN = ("tcp client:40000 > neighbour:80", "tcp neighbour:80 > client:40000")
# A packet looks after its flow's other half at least this often.
CHECKED_WITHIN = 0.2


class TestEviction:
    def stand(self, here: Node, *lines: str) -> bool:
        """Both halves are there, each in its own place, and nothing else."""
        original, reply = (here.flow(line) for line in lines)
        return (
            original is not None
            and reply is not None
            and not original.flags & Flag.FLOW_REPLY
            and bool(reply.flags & Flag.FLOW_REPLY)
            and len(here.flows()) == 2
        )

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
                assert here.from_pod("client", sent).frame != here.from_pod("client", sent).given
                assert (
                    here.flow(f"udp outside:53 > here:{first}").client
                    == here.addresses["neighbour"]
                )  # type: ignore[union-attr]

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
        here.later(LIFETIME_UDP_SINGLE + 1)
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


# ---- backends that come and go (property 2) ----
PAIR_TCP = "tcp client:{port} > pair:80"
PAIR_UDP = "udp client:{port} > pair:53"
BY_POD = {"neighbour": into("neighbour"), "remote": through_tunnel()}


def choose(here: Node, line: str, pod: str) -> str:
    """The line of a new flow that this pod is chosen for."""
    for port in range(40000, 40200):
        sent = line.format(port=port)
        if here.from_pod("client", sent).verdict.action == BY_POD[pod].action:
            return sent
    raise AssertionError(f"{pod} was never chosen")


def backend_of(service: world.Service, pod: str) -> world.Backend:
    return next(b for b in service.backends if b.pod == pod)


class TestBackends:
    @pytest.mark.parametrize("pod", ["neighbour", "remote"])
    @pytest.mark.parametrize("flags", [world.RETAINED, world.DRAINING], ids=["unready", "draining"])
    def test_a_connection_stays_with_a_backend_that_is_retained(
        self, here: Node, pod: str, flags: int
    ) -> None:
        sent = choose(here, PAIR_TCP, pod)
        backend = backend_of(world.PAIR, pod)
        here.put_set(world.PAIR, [b for b in world.PAIR.backends if b is not backend])
        here.put_backend(world.PAIR, backend, flags)
        here.from_pod("client", f"{sent} A ack=7").expect(BY_POD[pod])

    @pytest.mark.parametrize("pod", ["neighbour", "remote"])
    def test_a_connection_to_a_backend_that_is_gone_is_reset(self, here: Node, pod: str) -> None:
        sent = choose(here, PAIR_TCP, pod)
        backend = backend_of(world.PAIR, pod)
        here.put_set(world.PAIR, [b for b in world.PAIR.backends if b is not backend])
        here.put_backend(world.PAIR, backend, world.GONE, generation=9000)
        gone = here.from_pod("client", f"{sent} PA ack=7 data=5")
        client = sent.split()[1]
        gone.expect(refused("BACKEND_GONE"), f"tcp pair:80 > {client} R seq=7 window=0 ip-id=0")

    def test_a_new_attempt_of_that_connection_gets_another_backend(self, here: Node) -> None:
        sent = choose(here, PAIR_TCP, "neighbour")
        gone, left = world.PAIR.backends
        here.put_set(world.PAIR, [left])
        here.put_backend(world.PAIR, gone, world.GONE, generation=9000)
        here.from_pod("client", sent).expect(BY_POD["remote"])

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"flags": world.GONE, "generation": 9000}, id="gone"),
            pytest.param({"flags": world.USABLE, "generation": 9000}, id="id of another now"),
            pytest.param({"flags": world.RETAINED}, id="does not serve"),
        ],
    )
    def test_datagrams_move_with_the_very_packet(self, here: Node, change: dict[str, int]) -> None:
        sent = choose(here, PAIR_UDP, "neighbour")
        gone, left = world.PAIR_UDP.backends
        here.put_set(world.PAIR_UDP, [left])
        here.put_backend(world.PAIR_UDP, gone, **change)
        moved = here.from_pod("client", sent)
        client = sent.split()[1]
        moved.expect(BY_POD["remote"], f"udp {client} > remote:9053 ttl=63")
        again = here.from_pod("client", sent)
        again.expect(BY_POD["remote"], f"udp {client} > remote:9053 ttl=63")
        flow = here.flow(sent)
        assert flow is not None
        assert (flow.backend_id, flow.generation) == (left.id, left.generation)

    def test_datagrams_stay_with_a_backend_that_drains(self, here: Node) -> None:
        sent = choose(here, PAIR_UDP, "neighbour")
        draining, left = world.PAIR_UDP.backends
        here.put_set(world.PAIR_UDP, [left])
        here.put_backend(world.PAIR_UDP, draining, world.DRAINING)
        here.from_pod("client", sent).expect(BY_POD["neighbour"])

    def test_a_reused_id_is_another_backend(self, here: Node) -> None:
        """The old connection does not reach who has the id now, whatever its Service."""
        sent = choose(here, PAIR_TCP, "neighbour")
        backend = backend_of(world.PAIR, "neighbour")
        reused = world.Backend(backend.id, "neighbour", 7777)
        here.put_backend(world.NEAR, reused, world.USABLE, generation=9001)
        here.from_pod("client", f"{sent} A ack=7").expect(refused("BACKEND_GONE"))

    def test_a_gone_backends_own_packets_still_pass(self, here: Node) -> None:
        sent = choose(here, PAIR_TCP, "neighbour")
        port = sent.split()[1].split(":")[1]
        backend = backend_of(world.PAIR, "neighbour")
        here.put_backend(world.PAIR, backend, world.GONE, generation=9000)
        last = here.from_pod("neighbour", f"tcp neighbour:9080 > client:{port} FA ack=7")
        last.expect(into("client"), f"tcp pair:80 > client:{port} FA ack=7 ttl=63")

    def test_a_service_scaled_to_zero_and_back_is_heard_again(self, here: Node) -> None:
        """Pitfall 14: one datagram flow that talks all the time."""
        sent = "udp client:40000 > near:53"
        here.from_pod("client", sent).expect(into("neighbour"))
        backend = world.NEAR_UDP.backends[0]
        here.put_set(world.NEAR_UDP, [])
        here.put_backend(world.NEAR_UDP, backend, world.GONE, generation=9000)
        here.from_pod("client", sent).expect(refused("NO_BACKEND"))
        here.put_backend(world.NEAR_UDP, backend, world.USABLE, generation=9001)
        here.put_set(world.NEAR_UDP, [backend])
        here.from_pod("client", sent).expect(
            into("neighbour"), "udp client:40000 > neighbour:5353 ttl=63"
        )

    def test_slots_of_another_epoch_are_told_apart(self, here: Node) -> None:
        """A packet that read the set before a write and the slot after it."""
        place = world.NEAR.id * world.SLOTS_PER_SERVICE
        here.change("slots", place, epoch=world.EPOCH + 1)
        here.from_pod("client", "tcp client:40000 > near:80").expect(dropped("BACKEND_SET"))

    def test_new_flows_spread_over_all_backends(self, here: Node) -> None:
        backends = [world.Backend(20 + i, "neighbour", 9100 + i) for i in range(8)]
        service = world.Service(10, world.TCP, world.PAIR.frontends, tuple(backends))
        here.put_service(service)
        for port in range(20000, 20400):
            here.from_pod("client", f"tcp client:{port} > pair:80")
        flows = [here.backend_counter(b).flows for b in backends]
        assert sum(flows) == 400
        # 50 each are expected; 20 is more than four standard deviations below
        assert min(flows) > 20
        assert max(flows) < 90


# ---- one tuple, several connections ----
class TestReuse:
    def another_choice(self, here: Node, sent: str) -> None:
        """Leave only the backend that the flow has not."""
        flow = here.flow(sent)
        assert flow is not None
        here.put_set(world.PAIR, [b for b in world.PAIR.backends if b.id != flow.backend_id])

    @pytest.mark.parametrize(
        "ending",
        [
            pytest.param([("client", "FA"), ("backend", "FA")], id="both closed"),
            pytest.param([("client", "RA")], id="reset by the client"),
            pytest.param([("backend", "R")], id="reset by the backend"),
        ],
    )
    def test_a_port_reused_after_the_end_is_balanced_anew(
        self, here: Node, ending: list[tuple[str, str]]
    ) -> None:
        sent = choose(here, PAIR_TCP, "neighbour")
        client = sent.split()[1]
        for who, flags in ending:
            if who == "client":
                here.from_pod("client", f"{sent} {flags}")
            else:
                here.from_pod("neighbour", f"tcp neighbour:9080 > {client} {flags}")
        self.another_choice(here, sent)
        here.from_pod("client", sent).expect(BY_POD["remote"])

    @pytest.mark.parametrize(
        "ending",
        [
            pytest.param([], id="nothing"),
            pytest.param([("client", "FA")], id="one side closed"),
            pytest.param([("backend", "FA")], id="the other side closed"),
        ],
    )
    def test_a_repeated_syn_of_a_live_connection_keeps_its_backend(
        self, here: Node, ending: list[tuple[str, str]]
    ) -> None:
        sent = choose(here, PAIR_TCP, "neighbour")
        client = sent.split()[1]
        for who, flags in ending:
            if who == "client":
                here.from_pod("client", f"{sent} {flags}")
            else:
                here.from_pod("neighbour", f"tcp neighbour:9080 > {client} {flags}")
        self.another_choice(here, sent)
        here.from_pod("client", sent).expect(BY_POD["neighbour"])

    def test_a_syn_after_long_silence_is_balanced_anew(self, here: Node) -> None:
        sent = choose(here, PAIR_TCP, "neighbour")
        self.another_choice(here, sent)
        here.later(LIFETIME_TCP_SYN + 1)
        here.from_pod("client", sent).expect(BY_POD["remote"])

    def test_late_segments_of_a_closed_connection_still_find_their_way(self, here: Node) -> None:
        sent, reply = SERVICE
        here.from_pod("client", sent)
        here.from_pod("client", f"{sent} FA")
        here.from_pod("neighbour", f"{reply} FA")
        here.from_pod("client", f"{sent} A ack=9").expect(into("neighbour"))
        here.from_pod("neighbour", f"{reply} FA").expect(into("client"))

    def test_the_backend_may_open_a_connection_over_the_closed_ones_tuple(self, here: Node) -> None:
        """It is a flow of its own, not a reply of the Service."""
        sent, reply = SERVICE
        here.from_pod("client", sent)
        here.from_pod("client", f"{sent} RA")
        here.from_pod("neighbour", f"{reply} S").expect(into("client"), f"{reply} S ttl=63")
