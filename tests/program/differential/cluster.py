# SPDX-License-Identifier: Apache-2.0
"""The cluster of the differential test: who may be where. Few addresses, so that they collide.

    pods ── node "one" ── uplink ── nodes "two", "three" with their pods, outside clients

Must not know Services, nor programs.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from dataplane.core.reference.places import GATEWAY
from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol
from dataplane.model.objects import Node

HERE = "one"
ZONES = {"one": "east", "two": "east", "three": "west"}

# ---- devices ----
UPLINK, BRIDGE, OVERLAY = 111, 112, 113
POD_DEVICES = (101, 102, 103, 104)
POD_MAC, GATEWAY_MAC, SWITCH_MAC, OVERLAY_MAC = (
    bytes.fromhex(f"0200000000{last}") for last in ("65", "02", "fe", "01")
)
UPLINK_MAC = bytes.fromhex("02000000006f")
MACS_FROM_POD = GATEWAY_MAC + POD_MAC
MACS_FROM_UPLINK = UPLINK_MAC + SWITCH_MAC
DEVICE_MACS = {
    **dict.fromkeys(POD_DEVICES, GATEWAY_MAC), UPLINK: UPLINK_MAC, OVERLAY: OVERLAY_MAC,
}  # fmt: skip

# ---- numbers of the node ----
VNI, VXLAN_PORT, POD_MTU, HASH_SEED = 7000, 8472, 1450, 0x5EED
# Wide, so that the ports of one backend never run out, and beyond all clients' ports.
MASQUERADE_PORTS = (40000, 64999)
CLIENT_PORTS = (1024, 39999)

PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)

# ---- addresses by family ----
Pair = dict[Family, IPAddress]


def both(v4: str, v6: str) -> Pair:
    return {Family.V4: ip_address(v4), Family.V6: ip_address(v6)}


def ranges(v4: str, v6: str) -> tuple[IPNetwork, ...]:
    return ip_network(v4), ip_network(v6)


PODS = [both(f"10.244.1.{n}", f"fd00:244:1::{n}") for n in (10, 11, 12, 13)]
REMOTE_PODS = [
    both(f"10.244.{node}.{n}", f"fd00:244:{node}::{n}") for node in (2, 3) for n in (10, 11, 12)
]
OWN = both("192.0.2.1", "2001:db8:2::1")
OWN_SECOND = both("198.51.100.1", "2001:db8:5::1")
ROUTER = both("10.244.1.1", "fd00:244:1::1")
PEERS = {"two": both("192.0.2.2", "2001:db8:2::2"), "three": both("192.0.2.3", "2001:db8:2::3")}
FAR_SERVER = both("203.0.113.50", "2001:db8:9::50")  # an endpoint beyond the cluster
KEPT_SERVER = both("198.18.0.7", "2001:db8:18::7")  # in nonMasqueradeCIDRs
OUTSIDERS = [
    both("203.0.113.9", "2001:db8:9::9"), both("203.0.113.130", "2001:db8:9::8009"),
    both("198.51.100.77", "2001:db8:7::77"),
]  # fmt: skip
FOREIGN_POD = REMOTE_PODS[0]  # a pod of another node whose packets come by the uplink
GHOST = both("10.244.1.99", "fd00:244:1::99")  # of this node's pod range, nobody has it
NOWHERE = both("10.244.9.9", "fd00:244:9::9")  # of the cluster's range, no node has it
UNASSIGNED = both("10.96.0.250", "fd00:96::250")
GROUP = both("224.0.0.251", "ff02::fb")
NULL = both("0.0.0.1", "::")
LOOPBACK = both("127.0.0.1", "::1")
LINK = both("169.254.7.7", "fe80::7")
BEHIND = both("192.168.77.7", "2001:db8:77::7")  # the node's stack has a route to there
GATEWAYS = GATEWAY

CLUSTER_IPS = [both(f"10.96.0.{n}", f"fd00:96::{n}") for n in range(1, 13)]
STRAY_CLUSTER_IP = both("10.97.0.1", "fd00:97::1")  # of no Service range
BALANCERS = [both(f"203.0.113.{n}", f"2001:db8:9::{n}") for n in (100, 101, 102, 103)]
EXTERNALS = [both(f"203.0.113.{n}", f"2001:db8:9::{n}") for n in (110, 111, 112)]

POD_CIDRS = ranges("10.244.1.0/24", "fd00:244:1::/64")
CLUSTER_CIDRS = ranges("10.244.0.0/16", "fd00:244::/32")
SERVICE_CIDRS = ranges("10.96.0.0/16", "fd00:96::/112")
BEHIND_CIDRS = ranges("192.168.77.0/24", "2001:db8:77::/64")
KEPT_CIDRS = ranges("198.18.0.0/15", "2001:db8:18::/48")
SOURCE_RANGES = [
    *ranges("203.0.113.0/25", "2001:db8:9::/113"),
    *ranges("203.0.113.128/25", "2001:db8:9::8000/113"),
    *ranges("10.244.1.0/28", "fd00:244:1::/124"), *ranges("192.0.2.1/32", "2001:db8:2::1/128"),
    *ranges("198.51.100.0/24", "2001:db8:7::/64"), *ranges("10.244.1.12/32", "fd00:244:1::12/128"),
]  # fmt: skip
NODE_PORT_RANGES: list[tuple[IPNetwork, ...]] = [
    (), (), ranges("192.0.2.0/24", "2001:db8:2::/64"), ranges("0.0.0.0/0", "::/0"),
    ranges("198.51.100.0/24", "2001:db8:5::/64"), ranges("127.0.0.0/8", "2001:db8:5::/64"),
]  # fmt: skip

NODES = tuple(
    Node(
        name,
        tuple(PEERS[name].values()),
        (),
        ranges(f"10.244.{number}.0/24", f"fd00:244:{number}::/64"),
        ZONES[name],
    )
    for name, number in (("two", 2), ("three", 3))
)
