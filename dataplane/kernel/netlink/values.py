# SPDX-License-Identifier: Apache-2.0
"""What rtnetlink tells, as frozen values. Must not do I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dataplane.model.net import IPAddress, IPNetwork

OUR_ROUTES = 0x70
"""Our mark on routes (rtm_protocol), so that ours can be told from others'."""


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """A network device. mac is empty for one without Ethernet header.

    vxlan_port is 0 unless the device is a VXLAN one; peer_index is the other end of a
    veth pair, as its own namespace counts it.
    """

    index: int
    name: str
    mac: bytes = b""
    mtu: int = 0
    up: bool = False
    kind: str = ""
    ethernet: bool = True
    no_arp: bool = False
    alias: str = ""
    peer_index: int = 0
    vxlan_port: int = 0
    vxlan_metadata: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a device, with the length of its on-link prefix."""

    index: int
    address: IPAddress
    prefix: int
    link_scope: bool = False
    usable: bool = True


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A unicast route of the main table; gateway None means on the link itself."""

    destination: IPNetwork
    index: int
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    onlink: bool = False
    link_scope: bool = False
    metric: int = 0
    mtu: int = 0
    protocol: int = 0

    def same_way(self, other: KernelRoute) -> bool:
        """Whether a packet can't tell the two apart."""
        return (self.destination, self.index, self.gateway, self.source, self.mtu) == (
            other.destination,
            other.index,
            other.gateway,
            other.source,
            other.mtu,
        )


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour entry."""

    index: int
    address: IPAddress
    mac: bytes


@dataclass(frozen=True, slots=True)
class Shaper:
    """A token bucket at the root of a device: bytes a second, and bytes that may come at once."""

    rate: int
    burst: int

    @property
    def limit(self) -> int:
        """Bytes in the bucket's queue before packets are dropped: a twentieth of a second's."""
        return min(self.burst + self.rate // 20, (1 << 32) - 1)


class Direction(enum.Enum):
    """Side of a device, as it sees the packet; the value is the parent at clsact."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """A tc filter at clsact. protocol is the EtherType (3: all); program is its id."""

    index: int
    direction: Direction
    priority: int
    protocol: int
    handle: int
    kind: str
    name: str = ""
    program: int = 0
