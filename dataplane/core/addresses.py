# SPDX-License-Identifier: Apache-2.0
"""Which address of the node's pod ranges a new pod gets.

Allocation walks on from the address given last, so that a freed one rests as long as
possible: a late packet or DEL of the pod before finds nobody. Must not store anything;
who holds which address is the caller's knowledge.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from dataplane.model.errors import RangeFull
from dataplane.model.net import Family, IPAddress, IPNetwork


def ranges_of(pod_cidrs: Iterable[IPNetwork], family: Family) -> tuple[IPNetwork, ...]:
    """The ranges of one family, in their order."""
    return tuple(cidr for cidr in pod_cidrs if cidr.version == family)


def router_address(
    pod_cidrs: Iterable[IPNetwork], family: Family, pods: Container[IPAddress] = ()
) -> IPAddress | None:
    """The node's own address among its pods: the first of the family's first range.

    pods: addresses that are pods' already, where somebody else gave them out.
    """
    for cidr in ranges_of(pod_cidrs, family):
        others = (cidr.network_address + n for n in range(1, cidr.num_addresses))
        return next((a for a in others if a not in pods), None)
    return None


def capacity(ranges: Sequence[IPNetwork]) -> int:
    """How many pods the ranges of one family have addresses for."""
    return sum(
        max(0, high - low + 1) for low, high in (_span(r, i == 0) for i, r in enumerate(ranges))
    )


def next_free(
    ranges: Sequence[IPNetwork], used: Container[IPAddress], last: IPAddress | None = None
) -> IPAddress:
    """The next free address after `last`, round the ranges of one family.

    The first and last address of each range and the router address are nobody's.

    Args:
        ranges: of one family, not overlapping.
        used: addresses that pods hold.
        last: given before; None or outside the ranges starts at the beginning.

    Raises:
        RangeFull: every address is used.
    """
    spans = [_span(cidr, index == 0) for index, cidr in enumerate(ranges)]
    make = IPv4Address if ranges and ranges[0].version == 4 else IPv6Address
    start, after = 0, None
    if last is not None:
        for index, cidr in enumerate(ranges):
            if last in cidr:
                start, after = index, int(last) + 1
    for turn in range(len(spans) + 1 if spans else 0):
        low, high = spans[(start + turn) % len(spans)]
        if turn == 0 and after is not None:
            low = max(low, after)
        for number in range(low, high + 1):
            address = make(number)
            if address not in used:
                return address
    words = ", ".join(map(str, ranges)) or "none"
    raise RangeFull(
        f"pod range {words}",
        f"all {capacity(ranges)} addresses are used by pods of this node",
        "delete pods here, or give the node a larger podCIDR",
    )


def _span(cidr: IPNetwork, with_router: bool) -> tuple[int, int]:
    """First and last number that a pod may have; empty if the first is the larger."""
    low = int(cidr.network_address) + 1
    return low + with_router, int(cidr.broadcast_address) - 1
