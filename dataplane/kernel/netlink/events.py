# SPDX-License-Identifier: Apache-2.0
"""Word from the kernel that devices, addresses or routes changed, as one yes or no.

What podlane itself does all the time (pods' devices and routes) is no news. Must not
say what changed: whoever asks looks again.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Container
from typing import Self

from dataplane.kernel.netlink.values import OUR_ROUTES
from dataplane.kernel.netlink.wire import HEADER, listen

# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_LINKS, _ADDRESSES, _ROUTES = (16, 17), (20, 21), (24, 25)
_KERNEL_ROUTES = 2
_ENOUGH = 4096  # what is looked at is at the beginning of each


class Events:
    """A socket of the caller's network namespace, ready to be read when something changed."""

    def __init__(self) -> None:
        self._socket = listen(None, _GROUPS)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, devices: Container[int]) -> bool:
        """Take in what came; True if an address, another's route or one of `devices` changed."""
        changed = False
        while True:
            try:
                data = self._socket.recv(_ENOUGH)
            except BlockingIOError:
                return changed
            except OSError as failure:
                if failure.errno != errno.ENOBUFS:
                    raise
                changed = True  # more came than there was room for
                continue
            offset = 0
            while offset + HEADER.size <= len(data):
                length, number, _, _, _ = HEADER.unpack_from(data, offset)
                body = data[offset + HEADER.size : offset + length]
                changed |= _matters(number, body, devices)
                offset += max(length, HEADER.size) + 3 & ~3


def _matters(number: int, body: bytes, devices: Container[int]) -> bool:
    if number in _ADDRESSES:
        return True
    if number in _LINKS:
        return struct.unpack_from("=i", body, 4)[0] in devices  # ifi_index
    return number in _ROUTES and body[5] not in (OUR_ROUTES, _KERNEL_ROUTES)  # rtm_protocol
