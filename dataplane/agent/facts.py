# SPDX-License-Identifier: Apache-2.0
"""What is so on every node, and what was found out about this one. Values only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from dataplane.model.errors import BadInput
from dataplane.model.net import Family, IPAddress, IPNetwork

# docs/architecture.md, "Node facts".
GATEWAYS: dict[Family, IPAddress] = {
    Family.V4: ip_address("169.254.1.1"),
    Family.V6: ip_address("fe80::1"),
}
GATEWAY_MAC = bytes.fromhex("0a706c000002")
OVERLAY_NAME = "podlane0"
OVERLAY_MAC = bytes.fromhex("0a706c000001")
# VXLAN takes a packet whose inner source is the device's own MAC for a loop, and drops it.
OVERLAY_DEVICE_MAC = bytes.fromhex("0a706c000003")
VXLAN = "vxlan"  # of the modes, the one with an overlay between pods
OVERLAY_VNI = 7000
OVERLAY_PORT = 8472
OVERLAY_OVERHEAD = {Family.V4: 50, Family.V6: 70}
MASQUERADE_PORTS = (49152, 65535)  # the dynamic range of RFC 6335 section 6
IPV6_LEAST_MTU = 1280
HOST_VETH = re.compile(r"pl[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Uplink:
    """A device that leads to other nodes or the world; addresses it masquerades as."""

    index: int
    name: str
    mac: bytes
    mtu: int
    addresses: dict[Family, IPAddress]


@dataclass(frozen=True, slots=True)
class Facts:
    """This node, as found when it was brought up.

    routers: the node's own address among its pods, one a family that it has pods of.
    overlay_index is 0 in native mode without direct return.
    holder_index is the device that the router addresses are on.
    direct: clients outside are answered by the node that has the pod (loadBalancerMode: dsr).
    netns_cookie is its network namespace as programs know it; 0: no socket is the node's.
    """

    name: str
    mode: str
    addresses: tuple[IPAddress, ...]
    pod_cidrs: tuple[IPNetwork, ...]
    routers: dict[Family, IPAddress]
    uplinks: tuple[Uplink, ...]
    pod_mtu: int
    overlay_index: int
    holder_index: int
    netns_cookie: int = 0
    direct: bool = False


def check_ranges(cidrs: tuple[IPNetwork, ...], owner: str) -> None:
    """Refuse pod ranges that no pod could live in.

    Raises:
        BadInput: none, one too small for a router and a pod, or two that overlap.
    """
    if not cidrs:
        raise BadInput(
            f"{owner}: podCIDRs", "no pod range", "give podCIDRs in the config or in the Node"
        )
    for place, cidr in enumerate(cidrs):
        if cidr.num_addresses < 4:
            raise BadInput(f"{owner}: podCIDRs", f"{cidr} has no room for a router and a pod")
        for other in cidrs[:place]:
            if other.version == cidr.version and other.overlaps(cidr):
                raise BadInput(f"{owner}: podCIDRs", f"{cidr} overlaps {other}")
