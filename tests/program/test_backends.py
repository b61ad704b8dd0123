# SPDX-License-Identifier: Apache-2.0
"""Property 2: backends that come and go, and connections that use a tuple again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.program import world
from tests.program.node import Node
from tests.program.result import ABI, CHECKED_WITHIN, dropped, into, out_by, refused, through_tunnel

LIFETIME_TCP_SYN = ABI.constant("LIFETIME_TCP_SYN")
LIFETIME_TCP_TIME_WAIT = ABI.constant("LIFETIME_TCP_TIME_WAIT")
SERVICE = ("tcp client:40000 > near:80", "tcp neighbour:8080 > client:40000")

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

    @pytest.mark.parametrize("before", ["nobody's", "another Service's"])
    def test_a_udp_flow_to_what_became_a_services_address_begins_anew(
        self, here: Node, before: str
    ) -> None:
        """A pod that logs to it without a pause would go past the Service for ever."""
        sent = "udp client:40000 > balancer:514"
        if before == "nobody's":
            here.from_pod("client", sent).expect(out_by(), "udp here:MASQ > balancer:514 ttl=63")
        else:
            here.put_service(world.logs(20, "remote"))
            here.from_pod("client", sent).expect(through_tunnel())
        here.put_service(world.logs(21, "neighbour"))
        here.later(CHECKED_WITHIN)
        anew = here.from_pod("client", sent)
        anew.expect(into("neighbour"))
        answer = here.from_pod("neighbour", f"udp neighbour:514 > router:{anew.port}")
        answer.expect(into("client"), "udp balancer:514 > client:40000 ttl=63")
        here.later(CHECKED_WITHIN)
        here.from_pod("client", sent).expect(into("neighbour"))

    def test_outside_a_udp_flow_begins_anew_too(self, here: Node) -> None:
        sent = "udp outside:40000 > balancer:514"
        here.put_service(world.logs(20, "remote"))
        here.from_uplink(sent).expect(through_tunnel())
        here.put_service(world.logs(21, "neighbour"))
        here.later(CHECKED_WITHIN)
        here.from_uplink(sent).expect(into("neighbour"), "udp router:MASQ > neighbour:514 ttl=63")

    def test_of_tcp_what_has_begun_stays(self, here: Node) -> None:
        sent = "tcp client:40000 > balancer:514"
        here.from_pod("client", sent).expect(out_by())
        here.put_service(replace(world.logs(21, "neighbour"), protocol=world.TCP))
        here.later(CHECKED_WITHIN)
        here.from_pod("client", f"{sent} A ack=7").expect(out_by())

    def test_a_udp_flow_whose_backend_serves_stays_with_its_service(self, here: Node) -> None:
        sent = choose(here, PAIR_UDP, "neighbour")
        self.another_choice(here, sent)
        for _ in range(3):
            here.later(CHECKED_WITHIN)
            here.from_pod("client", sent).expect(BY_POD["neighbour"])

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

    @pytest.mark.parametrize("reset", [False, True], ids=["lingers", "reset since"])
    def test_a_tuple_that_the_backend_holds_in_time_wait_is_not_another_services(
        self, here: Node, reset: bool
    ) -> None:
        """The client's timestamps go on towards one frontend, not from one to the other."""
        sent, reply = SERVICE
        here.from_pod("client", sent)
        here.from_pod("neighbour", f"{reply} FA")
        here.from_pod("client", f"{sent} FA")
        if reset:
            here.from_pod("neighbour", f"{reply} R")
        port = 40000 if reset else "MASQ"
        twin = here.from_pod("client", "tcp client:40000 > twin:80")
        twin.expect(into("neighbour"), f"tcp client:{port} > neighbour:8080 ttl=63")
        answer = here.from_pod("neighbour", f"tcp neighbour:8080 > client:{twin.port} SA")
        answer.expect(into("client"), "tcp twin:80 > client:40000 SA ttl=63")

    @pytest.mark.parametrize("waited", [0, LIFETIME_TCP_TIME_WAIT + 1], ids=["at once", "after"])
    def test_a_client_gets_its_tuple_in_time_wait_again(self, here: Node, waited: int) -> None:
        """As the same Service's client at once, as another's once the backend has let it go."""
        sent, reply = SERVICE
        here.from_pod("client", sent)
        here.from_pod("neighbour", f"{reply} FA")
        here.from_pod("client", f"{sent} FA")
        here.later(waited)
        again = "tcp client:40000 > twin:80" if waited else sent
        here.from_pod("client", again).expect(
            into("neighbour"), "tcp client:40000 > neighbour:8080 ttl=63"
        )

    def test_a_tuple_in_time_wait_is_taken_when_there_is_no_other(self, here: Node) -> None:
        here.change("node", 0, masquerade_min=61000, masquerade_max=61000)
        for service in ("near", "twin"):  # closed behind its own port, and behind the only other
            here.from_pod("client", f"tcp client:40000 > {service}:80")
        for service, port in (("near", 40000), ("twin", 61000)):
            here.from_pod("neighbour", f"tcp neighbour:8080 > client:{port} FA")
            here.from_pod("client", f"tcp client:40000 > {service}:80 FA")
        third = here.from_pod("client", "tcp client:40000 > neighbour:8080")
        third.expect(into("neighbour"), "tcp client:61000 > neighbour:8080 ttl=63")
