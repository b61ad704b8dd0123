# SPDX-License-Identifier: Apache-2.0
"""Our encoding of requests, as pyroute2 reads it."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from dataplane.kernel.netlink import (
    Address,
    Direction,
    Filter,
    KernelRoute,
    Neighbour,
    Shaper,
    requests,
    wire,
)
from dataplane.kernel.netlink.requests import Request

MAC, PEER_MAC = bytes.fromhex("0a706c000002"), bytes.fromhex("0e0102030405")
V4, V6 = ip_address("10.244.1.2"), ip_address("fd00::2")


def read(request: Request) -> Any:
    """The request as pyroute2 decodes it."""
    head = struct.pack("=IHHII", 16 + len(request.body), request.number, request.flags, 1, 0)
    message = wire._KINDS[request.number & ~3](head + request.body)
    message.decode()
    return message


def test_a_veth_pair_has_all_that_it_needs_in_one_request() -> None:
    new = read(requests.new_veth("pl0", MAC, "eth0", PEER_MAC, 7, 1450))
    info = new.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    for end, name, mac in ((new, "pl0", MAC), (peer, "eth0", PEER_MAC)):
        assert end.get_attr("IFLA_IFNAME") == name
        assert end.get_attr("IFLA_ADDRESS") == mac.hex(":")
        assert end.get_attr("IFLA_MTU") == 1450
    assert peer.get_attr("IFLA_NET_NS_FD") == 7


@pytest.mark.parametrize("address", [V4, V6], ids=str)
def test_addresses_routes_and_neighbours(address: Any) -> None:
    length = address.max_prefixlen
    one = read(requests.put_address(Address(5, address, length)))
    assert (one["index"], one["prefixlen"], one.get_attr("IFA_LOCAL")) == (5, length, str(address))
    assert (one.get_attr("IFA_FLAGS") or 0) == (2 if address.version == 6 else 0)
    via = ip_address("169.254.1.1" if address.version == 4 else "fe80::1")
    route = KernelRoute(ip_network(address), 5, via, address, onlink=True, metric=9, mtu=1400)
    sent = read(requests.put_route(route))
    assert (sent["dst_len"], sent["proto"], sent["flags"]) == (length, 0x70, 4)
    assert sent.get_attr("RTA_DST") == str(address)
    assert sent.get_attr("RTA_GATEWAY") == str(via)
    assert sent.get_attr("RTA_PREFSRC") == str(address)
    assert sent.get_attr("RTA_PRIORITY") == 9
    assert sent.get_attr("RTA_METRICS").get_attr("RTAX_MTU") == 1400
    entry = read(requests.put_neighbour(Neighbour(5, address, MAC)))
    assert (entry["ifindex"], entry["state"]) == (5, 0x80)
    assert entry.get_attr("NDA_DST") == str(address)
    assert entry.get_attr("NDA_LLADDR") == MAC.hex(":")


def test_a_program_and_a_shaper_have_their_places() -> None:
    place = Filter(5, Direction.EGRESS, 100, 0x0800, 0x706C, "bpf", "to_pod_4")
    sent = read(requests.put_program(place, 11))
    assert (sent["parent"], sent["handle"], sent["info"] >> 16) == (0xFFFFFFF3, 0x706C, 100)
    options = sent.get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_BPF_FD") == 11
    assert options.get_attr("TCA_BPF_NAME") == "to_pod_4"
    slow, fast = Shaper(1_000_000, 65536), Shaper(10_000_000_000, 1 << 20)
    parms = read(requests.put_shaper(5, slow)).get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    assert (parms["rate"], parms["limit"]) == (1_000_000, 65536 + 50_000)
    options = read(requests.put_shaper(5, fast)).get_attr("TCA_OPTIONS")
    assert options.get_attr("TCA_TBF_RATE64") == fast.rate


def test_a_long_name_is_told_whole() -> None:
    up = read(requests.set_up(5, "c" * 200))
    assert (up["index"], up["flags"], up["change"]) == (5, 1, 1)
    assert up.get_attr("IFLA_IFALIAS") == "c" * 200
