# SPDX-License-Identifier: Apache-2.0
"""Programs at clsact: attach, replace in place, detach, list.

Filters of a priority and handle that are not named here are never touched, and clsact is
removed only when no filter is left at it. Must not know which program belongs where.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from dataplane.kernel.netlink import requests
from dataplane.kernel.netlink.requests import CLSACT_PARENT
from dataplane.kernel.netlink.values import Direction, Filter, Shaper
from dataplane.kernel.netlink.wire import NetlinkError, Wire


class Tc:
    """tc of one network namespace."""

    def __init__(self, connection: Wire) -> None:
        self._wire = connection

    def qdiscs(self) -> list[tuple[int, str, int]]:
        """All queueing disciplines: (device index, kind, parent)."""
        return sorted(
            (message["index"], message.attr("TCA_KIND"), message["parent"])
            for message in self._wire.dump(requests.qdiscs())
        )

    def add_clsact(self, index: int) -> bool:
        """Put clsact on a device; False if it is there already.

        Raises:
            NetlinkError: another kind of qdisc (ingress) has its place (EEXIST).
        """
        try:
            self._wire.do(requests.new_clsact(index))
        except NetlinkError as refusal:
            if refusal.errno != errno.EEXIST or not self.has_clsact(index):
                raise
            return False
        return True

    def has_clsact(self, index: int) -> bool:
        return (index, "clsact", CLSACT_PARENT) in self.qdiscs()

    def remove_clsact_if_empty(self, index: int) -> bool:
        """Take clsact off a device unless somebody's filter is at it; True if taken."""
        if not self.has_clsact(index) or any(self.filters(index, way) for way in Direction):
            return False
        self._wire.do(requests.delete_clsact(index))
        return True

    def filters(self, index: int, direction: Direction) -> list[Filter]:
        """Everybody's filters on one side of a device, in the order packets meet them."""
        try:
            messages = self._wire.dump(requests.filters(index, direction))
        except NetlinkError as refusal:
            if refusal.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT):
                return []  # no clsact, or no device
            raise
        found = []
        for message in messages:
            options = message.attr("TCA_OPTIONS")
            if options is None or message["handle"] == 0:
                continue  # the head of a priority, not a filter
            kind = message.attr("TCA_KIND")
            of_bpf = kind == "bpf"
            found.append(
                Filter(
                    index=index,
                    direction=direction,
                    priority=message["info"] >> 16,
                    protocol=socket.ntohs(message["info"] & 0xFFFF),
                    handle=message["handle"],
                    kind=kind,
                    name=(options.get_attr("TCA_BPF_NAME") or "") if of_bpf else "",
                    program=(options.get_attr("TCA_BPF_ID") or 0) if of_bpf else 0,
                )
            )
        return sorted(found, key=lambda item: item.priority)

    def attach(self, programs: Sequence[tuple[Filter, int]], *, new: bool = False) -> None:
        """Put direct-action programs (descriptors) in their places, or instead of what is there.

        Those of one device at once. `new`: it has no clsact yet, so that comes first.

        Raises:
            NetlinkError: the first refusal; `place` is the program's.
        """
        puts = [requests.put_program(spec, fd) for spec, fd in programs]
        first = [requests.new_clsact(programs[0][0].index)] if new else []
        try:
            self._wire.do(*first, *puts)
        except NetlinkError as refusal:
            refusal.place = max(0, refusal.place - len(first))
            raise

    def detach(self, spec: Filter) -> None:
        """Take one filter off; nothing to do if it is gone."""
        self._wire.do(requests.delete_filter(spec))

    def shape(self, index: int, shaper: Shaper) -> None:
        """Let a device send no faster than this; a shaper that it has is changed.

        Raises:
            NetlinkError: ENOENT: the kernel has no token bucket.
        """
        self._wire.do(requests.put_shaper(index, shaper))

    def shaper(self, index: int) -> Shaper | None:
        """How a device is shaped by a token bucket; None if it is not."""
        try:
            found = self._wire.do(requests.root_qdisc(index))
        except NetlinkError as refusal:
            if refusal.errno in (errno.ENOENT, errno.ENODEV):
                return None
            raise
        for message in found:
            options = message.attr("TCA_OPTIONS")
            if message.attr("TCA_KIND") == "tbf" and options is not None:
                parms = options.get_attr("TCA_TBF_PARMS")
                rate = options.get_attr("TCA_TBF_RATE64") or parms["rate"]
                return Shaper(rate, parms["limit"] - rate // 20)
        return None
