# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from dataplane.cni.runtime import Bandwidth, HostPort, Runtime, read_runtime
from dataplane.model.errors import BadInput
from dataplane.model.net import Protocol


def test_letter_case_of_fields_does_not_matter() -> None:
    plain = {"hostPort": 80, "containerPort": 8080, "protocol": "udp", "hostIP": "192.0.2.1"}
    capital = {"HostPort": 80, "ContainerPort": 8080, "Protocol": "UDP", "HostIP": "192.0.2.1"}
    expected = (HostPort(Protocol.UDP, 80, 8080, ip_address("192.0.2.1")),)
    for name, fields in (("portMappings", plain), ("PortMappings", capital)):
        assert read_runtime({"runtimeConfig": {name: [fields]}}).host_ports == expected


def test_what_is_not_asked_for_is_nothing() -> None:
    assert read_runtime({}) == Runtime()
    given = {"aliases": {"net": ["a"]}, "portMappings": None, "mac": "", "bandwidth": {}}
    assert read_runtime({"runtimeConfig": given}) == Runtime()
    unbound = {"portMappings": [{"containerPort": 80, "hostPort": 0}]}
    assert read_runtime({"runtimeConfig": unbound}) == Runtime()


def test_addresses_may_have_a_prefix() -> None:
    found = read_runtime({"runtimeConfig": {"ips": ["10.0.0.9/24", "fd00::9"]}})
    assert found.addresses == (ip_address("10.0.0.9"), ip_address("fd00::9"))


def test_limits_are_read() -> None:
    found = read_runtime({"runtimeConfig": {"bandwidth": {"IngressRate": 5, "egressBurst": 7}}})
    assert found.bandwidth == Bandwidth(ingress_rate=5, egress_burst=7)


@pytest.mark.parametrize(
    "given",
    [
        [],
        {"portMappings": [1]},
        {"portMappings": [{"hostPort": 70000, "containerPort": 1}]},
        {"portMappings": [{"hostPort": True, "containerPort": 1}]},
        {"portMappings": [{"hostPort": 1}]},
        {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]},
        {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "here"}]},
        {"ips": "10.0.0.1"},
        {"ips": [{}]},
        {"mac": "01:00:00:00:00:00"},
        {"mac": 5},
        {"bandwidth": 5},
        {"bandwidth": {"ingressRate": -1}},
    ],
)
def test_what_cannot_be_is_refused_by_name(given: Any) -> None:
    with pytest.raises(BadInput, match="runtimeConfig"):
        read_runtime({"runtimeConfig": given})


def test_ports_clash_where_a_packet_would_be_for_both() -> None:
    everywhere, here = (
        HostPort(Protocol.TCP, 80, 1),
        HostPort(Protocol.TCP, 80, 1, ip_address("192.0.2.1")),
    )
    there = HostPort(Protocol.TCP, 80, 1, ip_address("192.0.2.2"))
    four = HostPort(Protocol.TCP, 80, 1, ip_address("0.0.0.0"))
    six = HostPort(Protocol.TCP, 80, 1, ip_address("::"))
    assert everywhere.clashes(here)
    assert here.clashes(four)
    assert not here.clashes(there)
    assert not four.clashes(six)
    assert not here.clashes(HostPort(Protocol.UDP, 80, 1))
