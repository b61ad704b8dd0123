# SPDX-License-Identifier: Apache-2.0
"""Programs at clsact: attach, replace in place, detach, list.

Filters of a priority and handle that are not named here are never touched, and clsact is
removed only when no filter is left at it. Must not know which program belongs where.
"""

from __future__ import annotations

import errno
import socket

from dataplane.kernel.netlink import wire
from dataplane.kernel.netlink.values import Direction, Filter
from dataplane.kernel.netlink.wire import NetlinkError, Wire

_CLSACT_PARENT = 0xFFFFFFF1
_CLSACT_HANDLE = 0xFFFF0000
_DIRECT_ACTION = 1


class Tc:
    """tc of one network namespace."""

    def __init__(self, connection: Wire) -> None:
        self._wire = connection

    def qdiscs(self) -> list[tuple[int, str, int]]:
        """All queueing disciplines: (device index, kind, parent)."""
        return sorted(
            (message["index"], message.attr("TCA_KIND"), message["parent"])
            for message in self._wire.dump(wire.TC, {}, number=wire.TC_QDISC)
        )

    def add_clsact(self, index: int) -> bool:
        """Put clsact on a device; False if it is there already.

        Raises:
            NetlinkError: another kind of qdisc (ingress) has its place (EEXIST).
        """
        try:
            self._wire.new(
                wire.TC,
                {"index": index, "handle": _CLSACT_HANDLE, "parent": _CLSACT_PARENT},
                [("TCA_KIND", "clsact")],
                flags=wire.CREATE | wire.EXCL,
                number=wire.TC_QDISC,
            )
        except NetlinkError as refusal:
            if refusal.errno != errno.EEXIST or not self.has_clsact(index):
                raise
            return False
        return True

    def has_clsact(self, index: int) -> bool:
        return (index, "clsact", _CLSACT_PARENT) in self.qdiscs()

    def remove_clsact_if_empty(self, index: int) -> bool:
        """Take clsact off a device unless somebody's filter is at it; True if taken."""
        if not self.has_clsact(index) or any(self.filters(index, way) for way in Direction):
            return False
        self._wire.delete(
            wire.TC,
            {"index": index, "handle": _CLSACT_HANDLE, "parent": _CLSACT_PARENT},
            [("TCA_KIND", "clsact")],
            number=wire.TC_QDISC,
        )
        return True

    def filters(self, index: int, direction: Direction) -> list[Filter]:
        """Everybody's filters on one side of a device, in the order packets meet them."""
        try:
            messages = self._wire.dump(
                wire.TC, {"index": index, "parent": direction.value}, number=wire.TC_FILTER
            )
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

    def attach(self, spec: Filter, program_fd: int) -> None:
        """Put a direct-action program in its place, or replace what is there in place."""
        self._wire.new(
            wire.TC,
            _place(spec),
            [
                ("TCA_KIND", "bpf"),
                (
                    "TCA_OPTIONS",
                    {
                        "attrs": [
                            ["TCA_BPF_FD", program_fd],
                            ["TCA_BPF_NAME", spec.name],
                            ["TCA_BPF_FLAGS", _DIRECT_ACTION],
                        ]
                    },
                ),
            ],
            flags=wire.CREATE | wire.REPLACE,
            number=wire.TC_FILTER,
        )

    def detach(self, spec: Filter) -> None:
        """Take one filter off; nothing to do if it is gone."""
        try:
            self._wire.delete(
                wire.TC, _place(spec), [("TCA_KIND", spec.kind)], number=wire.TC_FILTER
            )
        except NetlinkError as refusal:
            if refusal.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise


def _place(spec: Filter) -> dict[str, object]:
    return {
        "index": spec.index,
        "handle": spec.handle,
        "parent": spec.direction.value,
        "info": spec.priority << 16 | socket.htons(spec.protocol),
    }
