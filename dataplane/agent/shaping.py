# SPDX-License-Identifier: Apache-2.0
"""What a runtime asks of a pod's bandwidth, as token buckets of the kernel, and back.

What enters a pod is shaped at its host veth, what leaves it at its own interface, so that
the kernel's socket buffers of the sender feel it. Must not do I/O.
"""

from __future__ import annotations

from dataplane.cni.runtime import Bandwidth
from dataplane.kernel.netlink import Shaper

_ETHERNET_HEADER = 14
_LEAST_OWN = 64 << 10
_MOST_OWN = 64 << 20
# containerd asks for this many bits if the pod says no burst: half a gigabyte, unshaped.
_NO_BURST = (1 << 32) - 1


def into_pod(limits: Bandwidth | None, mtu: int) -> Shaper | None:
    """The bucket of a pod's host veth; None without a limit."""
    return _shaper(limits.ingress_rate, limits.ingress_burst, mtu) if limits else None


def out_of_pod(limits: Bandwidth | None, mtu: int) -> Shaper | None:
    """The bucket of a pod's own interface; None without a limit."""
    return _shaper(limits.egress_rate, limits.egress_burst, mtu) if limits else None


def bandwidth(into: Shaper | None, out: Shaper | None) -> Bandwidth | None:
    """What must have been asked for, by the buckets that are there."""
    if into is None and out is None:
        return None
    return Bandwidth(
        into.rate * 8 if into else 0,
        into.burst * 8 if into else 0,
        out.rate * 8 if out else 0,
        out.burst * 8 if out else 0,
    )


def _shaper(rate_bits: int, burst_bits: int, mtu: int) -> Shaper | None:
    """No burst of its own: what goes in a fiftieth of a second. A bucket holds one packet at least."""
    if not rate_bits:
        return None
    rate = max(rate_bits // 8, 1)
    burst = burst_bits // 8
    if burst_bits in (0, _NO_BURST):
        burst = min(max(rate // 50, _LEAST_OWN), _MOST_OWN)
    most = (1 << 32) - 1
    return Shaper(rate, min(max(burst, mtu + _ETHERNET_HEADER), most))
