# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
from typing import cast

import pytest

from dataplane.agent import podnet, shaping
from dataplane.cni import protocol
from dataplane.cni.protocol import CniError
from dataplane.cni.runtime import Bandwidth
from dataplane.kernel.netlink import Links, NetlinkError, Shaper

MTU = 1450
MBIT = 1_000_000


@pytest.mark.parametrize(
    ("rate", "burst", "bucket"),
    [
        (0, 0, None),
        (8 * MBIT, 8 * 100_000, Shaper(1_000_000, 100_000)),
        # no burst of its own; containerd says so with the largest number of 32 bits
        (8 * MBIT, 0, Shaper(1_000_000, 64 << 10)),
        (8 * MBIT, (1 << 32) - 1, Shaper(1_000_000, 64 << 10)),
        (80_000 * MBIT, 0, Shaper(10_000_000_000, 64 << 20)),
        # a packet must fit, or none ever passes
        (8 * MBIT, 8, Shaper(1_000_000, MTU + 14)),
        (1, 0, Shaper(1, 64 << 10)),
        ((1 << 63) - 1, (1 << 63) - 1, Shaper((1 << 60) - 1, (1 << 32) - 1)),
    ],
)
def test_a_limit_becomes_a_bucket(rate: int, burst: int, bucket: Shaper | None) -> None:
    assert shaping.into_pod(Bandwidth(rate, burst), MTU) == bucket
    assert shaping.out_of_pod(Bandwidth(0, 0, rate, burst), MTU) == bucket


def test_without_limits_there_is_no_bucket() -> None:
    assert shaping.into_pod(None, MTU) is None
    assert shaping.out_of_pod(None, MTU) is None
    assert shaping.bandwidth(None, None) is None


def test_what_was_asked_for_is_known_by_the_buckets() -> None:
    asked = Bandwidth(8 * MBIT, 0, 16 * MBIT, 8 * 200_000)
    into, out = shaping.into_pod(asked, MTU), shaping.out_of_pod(asked, MTU)
    again = shaping.bandwidth(into, out)
    assert (shaping.into_pod(again, MTU), shaping.out_of_pod(again, MTU)) == (into, out)
    only = shaping.bandwidth(None, out)
    assert (shaping.into_pod(only, MTU), shaping.out_of_pod(only, MTU)) == (None, out)


class _NoBucket:
    """A kernel without sch_tbf."""

    class tc:  # noqa: N801 - stands where Links has an attribute
        @staticmethod
        def shape(index: int, shaper: Shaper) -> None:
            raise NetlinkError(errno.ENOENT, "Specified qdisc kind is unknown")


def test_a_kernel_that_cannot_shape_is_named() -> None:
    links = cast(Links, _NoBucket())
    podnet.shape(links, 1, None)
    with pytest.raises(CniError, match="CONFIG_NET_SCH_TBF") as refused:
        podnet.shape(links, 1, Shaper(1, 1))
    assert refused.value.code == protocol.UNSUPPORTED_FIELD
