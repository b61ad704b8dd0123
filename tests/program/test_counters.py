# SPDX-License-Identifier: Apache-2.0
"""Counters: exact, a Service, backend and pod; drops by hook and reason."""

from __future__ import annotations

from dataplane.model.flow import EndpointCounter, ServiceCounter
from dataplane.model.net import Family
from tests.program import world
from tests.program.node import Node
from tests.program.result import dropped, into, refused, through_tunnel

SIZE = {Family.V4: 14 + 20, Family.V6: 14 + 40}


def test_a_service_and_its_backend_count_flows_and_both_directions(here: Node) -> None:
    sizes = [
        len(here.from_pod(pod, line).expect(into(to)).given)
        for pod, to, line in (
            ("client", "neighbour", "tcp client:40000 > near:80"),
            ("neighbour", "client", "tcp neighbour:8080 > client:40000 SA"),
            ("client", "neighbour", "tcp client:40000 > near:80 PA data=100"),
            ("client", "neighbour", "tcp client:40001 > near:80"),
        )
    ]
    wanted = ServiceCounter(flows=2, packets=4, bytes=sum(sizes))
    assert here.service_counter(world.NEAR) == wanted
    assert here.backend_counter(world.NEAR.backends[0]) == wanted
    assert here.service_counter(world.TWIN) == ServiceCounter(0, 0, 0)


def test_bytes_are_those_of_the_whole_frame(here: Node, family: Family) -> None:
    here.from_pod("client", "udp client:40000 > near:53 data=100")
    assert here.service_counter(world.NEAR_UDP).bytes == SIZE[family] + 8 + 100


def test_a_backend_of_two_services_counts_for_each(here: Node) -> None:
    here.from_pod("client", "tcp client:40000 > near:80")
    here.from_pod("client", "tcp client:40001 > twin:80")
    assert here.service_counter(world.NEAR).flows == 1
    assert here.service_counter(world.TWIN).flows == 1


def test_a_revived_flow_is_no_new_one(here: Node) -> None:
    here.from_pod("client", "tcp client:40000 > near:80")
    here.forget("tcp client:40000 > near:80")
    here.from_pod("client", "tcp client:40000 > near:80 A ack=7").expect(into("neighbour"))
    counted = here.service_counter(world.NEAR)
    assert (counted.flows, counted.packets) == (1, 2)


def test_refused_packets_count_as_drops_not_as_the_services(here: Node) -> None:
    here.from_pod("client", "tcp client:40000 > empty:80").expect(refused("NO_BACKEND"))
    assert here.service_counter(world.EMPTY) == ServiceCounter(0, 0, 0)


def test_plain_flows_are_no_services(here: Node) -> None:
    here.from_pod("client", "tcp client:40000 > neighbour:80").expect(into("neighbour"))
    assert all(here.service_counter(s) == ServiceCounter(0, 0, 0) for s in world.SERVICES)


def test_pods_count_what_they_send_and_get(here: Node) -> None:
    out = here.from_pod("client", "udp client:40000 > neighbour:53 data=50")
    back = here.from_pod("neighbour", "udp neighbour:53 > client:40000 data=500")
    sent, got = len(out.given), len(back.given)
    assert here.endpoint_counter("client") == EndpointCounter(1, got, 1, sent)
    assert here.endpoint_counter("neighbour") == EndpointCounter(1, sent, 1, got)


def test_what_enters_a_pod_by_the_stack_or_the_overlay_counts_too(here: Node) -> None:
    by_stack = len(here.to_pod("client", "udp router:1 > client:53").given)
    by_overlay = len(here.from_overlay("udp remote:1 > client:53 data=99").given)
    from_outside = len(here.from_uplink("udp outside:1 > client:53 data=9").given)
    counted = here.endpoint_counter("client")
    total = by_stack + by_overlay + from_outside
    assert (counted.to_packets, counted.to_bytes) == (3, total)


def test_a_spoofed_packet_does_not_count_for_the_pod_that_it_names(here: Node) -> None:
    here.from_pod("client", "udp neighbour:1 > client:53").expect(dropped("SPOOFED_SOURCE"))
    assert here.endpoint_counter("neighbour") == EndpointCounter(0, 0, 0, 0)
    assert here.endpoint_counter("client") == EndpointCounter(0, 0, 0, 0)


def test_a_remote_backend_counts_where_the_service_was_chosen(here: Node, there: Node) -> None:
    asked = here.from_pod("client", "tcp client:40000 > far:80").expect(through_tunnel())
    there.from_overlay(asked.frame).expect(into("remote"))
    assert here.service_counter(world.FAR).flows == 1
    assert there.service_counter(world.FAR).flows == 0
    assert there.endpoint_counter("remote").to_packets == 1


def test_drops_add_up_by_hook_and_reason(here: Node) -> None:
    for _ in range(3):
        here.from_pod("client", "tcp client:1 > nowhere:80")
    here.from_pod("client", "tcp neighbour:1 > client:80")
    here.from_uplink("tcp outside:1 > here:61000")
    here.from_overlay("tcp outside:1 > client:80")
    here.to_overlay("udp router:1 > group:53")
    assert here.drops() == {
        ("FROM_POD", "NO_ROUTE"): 3,
        ("FROM_POD", "SPOOFED_SOURCE"): 1,
        ("FROM_UPLINK", "MASQUERADE_UNKNOWN"): 1,
        ("FROM_OVERLAY", "OVERLAY_SOURCE"): 1,
        ("TO_OVERLAY", "MULTICAST"): 1,
    }
