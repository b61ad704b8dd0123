# SPDX-License-Identifier: Apache-2.0
"""What a pod may not send, and firewalls of others in the node's namespace.

pod a ─┐                                        ┌─ pod c (serves)
pod b ─┴─ node1 ── eth0 ── bridge ── eth0 ── node2 ─┴─ pod d
                             │
                          outside (serves)
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from dataplane.abi.layout import abi
from dataplane.kernel import netns
from dataplane.kernel.maps import Maps
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network import life
from tests.network.cluster import AgentNode, Cluster, sh
from tests.network.life import CLUSTER_IP, NODE_PORT, PORT, TARGET

GATEWAY_MAC = "0a:70:6c:00:00:02"
OTHER_MAC = "0e:00:00:00:00:99"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with life.two_nodes() as made:
        backends = {family: [life.pod_address(family, 2, 11)] for family in Family}
        made.write({"web": life.service("web", backends)})
        two = made.nodes[1]
        for family in Family:
            with life.bulk_server(two.pods["c"], family, TARGET):
                asked = life.serves(made.nodes[0].pods["a"], family, CLUSTER_IP[family], PORT)
                life.wait(asked)
        yield made


# ---- what a pod may not send ----
def mac(ns: str) -> str:
    return str(json.loads(sh(f"ip -n {ns} -j link show eth0"))[0]["address"])


def send(ns: str, packet: Packet, times: int = 5) -> None:
    """Raw bytes on a pod's wire."""
    with netns.run_in(
        Path("/run/netns") / ns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    ) as wire:
        netns.run_in(Path("/run/netns") / ns, lambda: wire.bind(("eth0", 0)))
        for _ in range(times):
            wire.send(bytes(packet))


A4, A6 = (life.pod_address(family, 1, 11) for family in Family)
B4, B6 = (life.pod_address(family, 1, 12) for family in Family)
C4, C6 = (life.pod_address(family, 2, 11) for family in Family)
ROUTER4, ROUTER6 = (life.pod_address(family, 1, 1) for family in Family)
NODE4, NODE6 = (life.node_address(family, 1) for family in Family)
PEER4, PEER6 = (life.node_address(family, 2) for family in Family)
DATA = UDP(sport=5, dport=TARGET) / Raw(b"forged")
INNER = VXLAN(vni=7000) / Ether(src="0a:70:6c:00:00:01", dst="0a:70:6c:00:00:01")
TUNNEL = UDP(sport=50000, dport=8472, chksum=0)
CLAIM = {"op": 2, "hwdst": GATEWAY_MAC}

# What is sent, behind an Ethernet header of pod a's, and the drop's name.
FORGERIES: dict[str, tuple[Packet, str]] = {
    "another pod's IPv4 address": (IP(src=B4, dst=C4) / DATA, "spoofed_source"),
    "another pod's IPv6 address": (IPv6(src=B6, dst=C6) / DATA, "spoofed_source"),
    "an address of another node": (IP(src=C4, dst=B4) / DATA, "spoofed_source"),
    "the node's own address": (IP(src=NODE4, dst=C4) / DATA, "spoofed_source"),
    "the router's IPv4 address": (IP(src=ROUTER4, dst=C4) / DATA, "spoofed_source"),
    "the router's IPv6 address": (IPv6(src=ROUTER6, dst=C6) / DATA, "spoofed_source"),
    "the gateway's address": (IP(src="169.254.1.1", dst=C4) / DATA, "spoofed_source"),
    "a Service's address": (IP(src=CLUSTER_IP[Family.V4], dst=C4) / DATA, "spoofed_source"),
    "an address of the world": (IP(src="198.51.100.9", dst=NODE4) / DATA, "spoofed_source"),
    "no IPv4 address": (IP(src="0.0.0.0", dst=C4) / DATA, "spoofed_source"),
    "an ICMP echo of another pod": (IP(src=B4, dst=C4) / ICMP(), "spoofed_source"),
    "ARP: another pod's address is mine": (ARP(psrc=B4, pdst=ROUTER4, **CLAIM), "neighbour"),
    "ARP: the gateway's address is mine": (
        ARP(psrc="169.254.1.1", pdst="169.254.1.1", **CLAIM), "neighbour",
    ),
    "ARP: a question in another pod's name": (ARP(op=1, psrc=B4, pdst=ROUTER4), "neighbour"),
    "ND: another pod's address is mine": (
        IPv6(src=A6, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=B6, R=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=OTHER_MAC), "neighbour",
    ),
    "ND: the gateway's address is mine": (
        IPv6(src=A6, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt="fe80::1", R=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=OTHER_MAC),
        "neighbour",
    ),
    "ND: a question in another pod's name": (
        IPv6(src=B6, dst="fe80::1", hlim=255)
        / ICMPv6ND_NS(tgt="fe80::1") / ICMPv6NDOptSrcLLAddr(lladdr=OTHER_MAC), "neighbour",
    ),
    "ND: I am a router": (IPv6(src="fe80::9", dst="ff02::1", hlim=255) / ICMPv6ND_RA(), "neighbour"),
    "VXLAN to this node": (IP(src=A4, dst=NODE4) / TUNNEL / INNER / IP(src=C4, dst=B4) / DATA,
                           "pod_encapsulates"),
    "VXLAN to another node": (IP(src=A4, dst=PEER4) / TUNNEL / INNER / IP(src=B4, dst=C4) / DATA,
                              "pod_encapsulates"),
    "VXLAN to this node over IPv6": (
        IPv6(src=A6, dst=NODE6) / UDP(sport=50000, dport=8472) / INNER / IPv6(src=C6, dst=B6) / DATA,
        "pod_encapsulates",
    ),
    "VXLAN to another node over IPv6": (
        IPv6(src=A6, dst=PEER6) / UDP(sport=50000, dport=8472) / INNER / IPv6(src=B6, dst=C6) / DATA,
        "pod_encapsulates",
    ),
    "VXLAN to a node's router address": (
        IP(src=A4, dst=ROUTER4) / TUNNEL / INNER / IP(src=C4, dst=B4) / DATA, "pod_encapsulates",
    ),
    "a VLAN tag": (Dot1Q(vlan=0) / IP(src=A4, dst=C4) / DATA, "vlan"),
    "no IP": (Raw(b"x" * 60), "not_ip"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_a_pod_forges_goes_nowhere_and_is_named(cluster: Cluster, forgery: str) -> None:
    one, two = cluster.nodes
    body, reason = FORGERIES[forgery]
    own = mac(one.pods["a"])
    frame = Ether(src=own, dst=GATEWAY_MAC) / body
    if forgery == "no IP":
        frame.type = 0x88B5
    known = [sh(f"ip -n {node.ns} neigh") for node in cluster.nodes]
    before = life.drops(one)
    with ExitStack() as stack:
        seen = [life.Capture(ns, "eth0") for ns in (one.pods["b"], two.pods["c"])]
        for capture in seen:
            stack.callback(capture.close)
        send(one.pods["a"], frame)
    dropped = life.drops(one) - before
    print(f"{forgery}: {dict(dropped)}")
    assert dropped[reason] == 5, dict(dropped)
    assert not [capture for capture in seen if capture.holds(b"forged")]
    lines = [line for node in cluster.nodes for line in sh(f"ip -n {node.ns} neigh").splitlines()]
    assert not [line for line in lines if OTHER_MAC in line]
    # Who was known for good is known by the same address still.
    for line in "\n".join(known).splitlines():
        if "PERMANENT" in line:
            assert line in lines


def test_another_mac_address_is_not_a_pods_own(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    before = life.drops(one)
    for body in (IP(src=A4, dst=C4) / DATA, IPv6(src=A6, dst=C6) / DATA):
        send(one.pods["a"], Ether(src=OTHER_MAC, dst=GATEWAY_MAC) / body)
    assert (life.drops(one) - before)["spoofed_mac"] == 10


# ---- what a flow is remembered as ----
@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_a_question_and_its_answer_are_no_stream_of_datagrams(
    cluster: Cluster, family: Family
) -> None:
    """A flow that is still used a tenth of a second later is kept longer: both halves know."""
    one, two = cluster.nodes
    lasting = abi(family).constant("FLOW_LASTING")
    with (
        life.bulk_server(two.pods["c"], family, TARGET),
        life.connect(
            one.pods["a"], family, CLUSTER_IP[family], PORT, socket.SOCK_DGRAM
        ) as client,
    ):  # fmt: skip

        def known() -> list[bool]:
            maps = Maps(one.folder / "bpf")
            port = client.getsockname()[1]
            rows = [row for _, row in maps.items(Table("flows", family)) if row.protocol == 17]
            maps.close()
            return [bool(row.state & lasting) for row in rows if row.client_port == port]

        for _ in range(3):
            client.send(b"x")
            client.recv(9)
        assert known() == [False, False]
        time.sleep(0.15)
        client.send(b"x")
        client.recv(9)
        assert known() == [True, True]


# ---- firewalls of others ----
NFT_INVALID = """
table inet other {
  chain before { type filter hook prerouting priority -150; ct state invalid drop; }
  chain inward { type filter hook input priority 0; ct state invalid drop; }
  chain through { type filter hook forward priority 0; ct state invalid drop; }
  chain outward { type filter hook output priority 0; ct state invalid drop; }
}
"""
FIREWALLS = {
    "nft: FORWARD drops all": (
        "nft 'add table inet other; add chain inet other through"
        " { type filter hook forward priority 0; policy drop; }'",
        "nft delete table inet other",
    ),
    "nft: ct state invalid drop at every hook": (
        f"nft '{NFT_INVALID}'", "nft delete table inet other",
    ),
    "iptables-legacy -P FORWARD DROP": (
        "sh -c 'iptables-legacy -P FORWARD DROP && ip6tables-legacy -P FORWARD DROP'",
        "sh -c 'iptables-legacy -P FORWARD ACCEPT && ip6tables-legacy -P FORWARD ACCEPT'",
    ),
    "iptables-nft -P FORWARD DROP, invalid dropped": (
        "sh -c 'iptables-nft -P FORWARD DROP && ip6tables-nft -P FORWARD DROP"
        " && iptables-nft -I INPUT -m conntrack --ctstate INVALID -j DROP"
        " && iptables-nft -I FORWARD -m conntrack --ctstate INVALID -j DROP'",
        "sh -c 'iptables-nft -P FORWARD ACCEPT && ip6tables-nft -P FORWARD ACCEPT"
        " && iptables-nft -F'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_a_firewall_of_others_breaks_no_pods_flow(cluster: Cluster, firewall: str) -> None:
    """Flows that were there before it, and new ones."""
    one, two = cluster.nodes
    on, off = FIREWALLS[firewall]
    asked = [
        (ns, family, target, port)
        for family in Family
        for ns, target, port in (
            (one.pods["a"], CLUSTER_IP[family], PORT),
            (one.pods["a"], life.pod_address(family, 2, 11), TARGET),
            (two.pods["d"], life.pod_address(family, 2, 11), TARGET),
            (one.pods["a"], life.OUTSIDE[family], TARGET),
            (one.ns, life.pod_address(family, 2, 11), TARGET),
            (two.ns, life.pod_address(family, 2, 11), TARGET),
            (cluster.outside, life.node_address(family, 1), NODE_PORT),
            (cluster.outside, life.node_address(family, 2), NODE_PORT),
        )
    ]
    with ExitStack() as stack:
        for family in Family:
            for ns in (two.pods["c"], cluster.outside):
                stack.enter_context(life.bulk_server(ns, family, TARGET))
        old = [(life.connect(*way), way) for way in asked]
        firewalled: list[AgentNode] = []
        try:
            for node in cluster.nodes:
                node.run(on)
                firewalled.append(node)
            for client, way in old:
                print(f"old flow, {way}")
                life.bulk(client, 1 << 17)
            for way in asked:
                print(f"new flow, {way}")
                life.bulk(life.connect(*way), 1 << 17)
                life.datagram(life.connect(*way, socket.SOCK_DGRAM), 1000)
        finally:
            for node in firewalled:
                node.run(off, check=False)
