# SPDX-License-Identifier: Apache-2.0
"""Who may ask a Service's load-balancer addresses: loadBalancerSourceRanges as the map has them.

A Service has two lists, of which its record names the one that counts. A changed list is
written beside the old one and named by the record's next write, so that packets see all of
the old ranges or all of the new. Must not know the other tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from dataplane.core.frontends import Settings
from dataplane.model.constants import ServiceFlag
from dataplane.model.net import Family, IPNetwork
from dataplane.model.objects import Service
from dataplane.model.rows import SourceKey

GUARDED, ODD = int(ServiceFlag.SOURCE_RANGES), int(ServiceFlag.RANGES_ODD)
LIST_BITS = 32


def admitted(service: Service, family: Family, settings: Settings) -> tuple[IPNetwork, ...]:
    """Ranges of one family whose addresses may ask, sorted; none: the Service is open to all.

    A node in a range may also send from the Service's own addresses, for it may have them
    itself (Kubernetes pkg/proxy/iptables, allowFromNode).
    """
    ranges = {r for r in service.source_ranges if r.version == family}
    if any(not r.prefixlen for r in ranges):
        return ()
    primary = settings.own_addresses(family)[:1]
    if any(address in r for address in primary for r in ranges):
        ranges |= {ip_network(a) for a in service.load_balancer_ips if a.version == family}
    return tuple(sorted(ranges))


def list_of(service_id: int, flags: int) -> int:
    """The number of the list that a Service's record names."""
    return service_id << 1 | bool(flags & ODD)


def keys(number: int, ranges: Iterable[IPNetwork]) -> list[SourceKey]:
    """Where a list's ranges are in the map."""
    return [SourceKey(number, LIST_BITS + r.prefixlen, r.network_address) for r in ranges]


def network(key: SourceKey) -> IPNetwork | None:
    """The range that a key means; None if it can't be one of ours."""
    try:
        return ip_network((key.address, key.prefix - LIST_BITS))
    except ValueError:
        return None
