# SPDX-License-Identifier: Apache-2.0
"""Deleting a device without waiting until the kernel has freed its memory.

A deletion is answered after an RCU barrier (netdev_run_todo), 10 to 25 ms after the device
left its namespace with all its addresses, routes and filters, half a millisecond after the
request. Word of that leaving goes to RTMGRP_LINK; the barrier is left to a thread.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from contextlib import closing

from dataplane.kernel.netlink import requests
from dataplane.kernel.netlink.wire import HEADER, Wire, listen
from dataplane.kernel.netns import Netns

_RTMGRP_LINK = 0x1
_RTM_DELLINK = 17
_IFINFO = struct.Struct("=BxHiII")  # ifi_family, ifi_type, ifi_index, ifi_flags, ifi_change
_ENOUGH = 4096  # what is looked at is at the beginning of each


def unlist(netns: Netns | None, index: int) -> None:
    """Delete device `index`; back when its namespace has it no more. Nothing to do if it is gone.

    Raises:
        OSError: the kernel refused (NetlinkError), or was not reached.
    """
    failures: list[OSError] = []
    with listen(netns, _RTMGRP_LINK) as word:
        wire = Wire(netns)
        ours, theirs = socket.socketpair()

        def delete() -> None:
            with theirs, closing(wire):
                try:
                    wire.do(requests.delete_device(index))
                except OSError as failure:
                    failures.append(failure)

        try:
            # Not a daemon: at exit the interpreter waits for it, those few milliseconds.
            threading.Thread(target=delete, name=f"delete-{index}").start()
        except RuntimeError:  # the process may have no more threads (pids.max): wait here, then
            delete()
        with ours:
            poll = select.poll()
            poll.register(word, select.POLLIN)
            poll.register(ours, select.POLLIN)  # closed at the other end: the whole is done
            while True:
                ready = [fd for fd, _ in poll.poll()]
                if ours.fileno() in ready:
                    break
                if _left(word, index):
                    return
    for failure in failures:
        raise failure


def _left(word: socket.socket, index: int) -> bool:
    """Whether what has come says that the device left."""
    try:
        data = word.recv(_ENOUGH)
    except OSError as failure:
        if failure.errno != errno.ENOBUFS:
            raise
        return False  # the word may be lost: the answer comes anyway
    _, number, _, _, _ = HEADER.unpack_from(data)
    family, _, gone, _, _ = _IFINFO.unpack_from(data, HEADER.size)
    # A bridge's port that leaves it is told of in the same words, with a family.
    return (number, family, gone) == (_RTM_DELLINK, socket.AF_UNSPEC, index)
