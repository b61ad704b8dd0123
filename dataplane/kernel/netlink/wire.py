# SPDX-License-Identifier: Apache-2.0
"""Requests to rtnetlink, one or many at once, answered before the call returns.

`requests` encodes them, pyroute2 knows the answers and decodes them here; its own sockets
need an event loop each and refuse to be used inside a running one, so the socket is ours:
plain, blocking, opened inside the node's namespace and staying there. Must not know what
a request means.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, cast

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_bpf, sched_tbf, tcmsg

from dataplane.kernel.netlink.requests import (
    ACK,
    ADDRESS,
    DUMP,
    FILTER,
    LINK,
    NEIGHBOUR,
    QDISC,
    REQUEST,
    ROUTE,
    Request,
)
from dataplane.kernel.netns import Netns, run_in

_ERROR, _DONE = 2, 3
_MULTI, _DUMP_INTERRUPTED = 0x2, 0x10
HEADER = struct.Struct("=IHHII")  # nlmsg_len, _type, _flags, _seq, _pid
_SOL_NETLINK = 270
_EXT_ACK, _GET_STRICT_CHK = 11, 12
_ACK_TLVS, _ACK_CAPPED = 0x200, 0x100
_DUMP_TRIES = 8
_LONGEST = 1 << 16  # twice what the kernel puts into one message of a dump


class _BpfOptions(sched_bpf.options):  # type: ignore[misc] # pyroute2 ships no types
    """cls_bpf's options as newer kernels have them: with tag and id of the program."""

    nla_map = (
        *sched_bpf.options.nla_map,
        ("TCA_BPF_FLAGS_GEN", "uint32"),
        ("TCA_BPF_TAG", "hex"),
        ("TCA_BPF_ID", "uint32"),
    )


class _TbfOptions(sched_tbf.options):  # type: ignore[misc]
    """sch_tbf's options with the rate of those that are faster than 32 bits can say."""

    nla_map = (*sched_tbf.options.nla_map, ("TCA_TBF_RATE64", "uint64"))


class _Tc(tcmsg):  # type: ignore[misc]
    @staticmethod
    def get_options(self: Any, *args: Any, **kwargs: Any) -> Any:
        match self.get_attr("TCA_KIND"):
            case "bpf":
                return _BpfOptions
            case "tbf":
                return _TbfOptions
        return tcmsg.get_options(self, *args, **kwargs)


_KINDS: dict[int, Any] = {
    LINK: ifinfmsg,
    ADDRESS: ifaddrmsg,
    ROUTE: rtmsg,
    NEIGHBOUR: ndmsg,
    QDISC: _Tc,
    FILTER: _Tc,
}


class NetlinkError(OSError):
    """The kernel refused a request; `strerror` holds its own words if it gave any.

    `place` is the request's among those that went together.
    """

    place = 0


class Message:
    """One decoded answer: fields by name, attributes by pyroute2's names."""

    __slots__ = ("raw",)

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def __getitem__(self, field: str) -> int:
        return cast(int, self.raw[field])

    def attr(self, name: str) -> Any:
        """An attribute's value; nested ones answer `get_attr`; None if absent."""
        return self.raw.get_attr(name)


class Wire:
    """A rtnetlink socket of one network namespace (None: the caller's)."""

    def __init__(self, netns: Netns | None = None) -> None:
        self._socket = listen(netns, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        self._sequence = 0
        # One for all answers: what recv() makes and shrinks leaves the heap in pieces.
        self._room = bytearray(_LONGEST)

    def close(self) -> None:
        self._socket.close()

    def do(self, *requests: Request) -> list[Message]:
        """Have requests done in their order, all sent at once; what was asked for.

        Each is tried, also after one that was refused.

        Raises:
            NetlinkError: the first refusal that is not `settled`.
        """
        first = self._sequence + 1
        # An acknowledgement of the last one tells that all are done; refusals come anyway.
        flags = [0] * (len(requests) - 1) + [ACK]
        self._send(requests, flags)
        answers, refusals = self._answers(first)
        for place, refusal in refusals:
            if refusal.errno not in requests[place].settled:
                refusal.place = place
                raise refusal
        return answers

    def dump(self, request: Request) -> list[Message]:
        """Ask for all objects of a kind, as one consistent answer."""
        for _ in range(_DUMP_TRIES):
            self._send([request], [DUMP])
            try:
                answers, refusals = self._answers(self._sequence)
            except _Interrupted:
                continue
            for _, refusal in refusals:
                raise refusal
            return answers
        raise NetlinkError(errno.EAGAIN, "the objects changed faster than they could be read")

    def _send(self, requests: Sequence[Request], flags: Sequence[int]) -> None:
        parts = []
        for one, more in zip(requests, flags, strict=True):
            self._sequence += 1
            length = HEADER.size + len(one.body)
            head = HEADER.pack(length, one.number, one.flags | more | REQUEST, self._sequence, 0)
            parts += [head, one.body, bytes(-length & 3)]
        self._socket.send(b"".join(parts))

    def _answers(self, first: int) -> tuple[list[Message], list[tuple[int, NetlinkError]]]:
        """What came up to the end of the last request: objects, and refusals by place."""
        answers: list[Message] = []
        refusals: list[tuple[int, NetlinkError]] = []
        interrupted = False
        while True:
            size = self._socket.recv_into(self._room)
            data = bytes(memoryview(self._room)[:size])
            offset = 0
            while offset + HEADER.size <= len(data):
                length, number, flags, sequence, _ = HEADER.unpack_from(data, offset)
                body, offset = data[offset : offset + length], offset + (length + 3 & ~3)
                if not first <= sequence <= self._sequence:
                    continue
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                if number in (_ERROR, _DONE):
                    refusal = _refusal(body, flags)
                    if refusal is not None:
                        refusals.append((sequence - first, refusal))
                    if sequence < self._sequence:
                        continue
                    if interrupted:
                        raise _Interrupted(errno.EINTR, "dump interrupted")
                    return answers, refusals
                message = _KINDS[number & ~3](body)
                message.decode()
                answers.append(Message(message))


class _Interrupted(NetlinkError):
    pass


def listen(netns: Netns | None, groups: int) -> socket.socket:
    """A rtnetlink socket of one network namespace (None: the caller's) that hears these RTMGRP_…."""

    def opened() -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        made = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        made.bind((0, groups))
        return made

    return opened() if netns is None else run_in(netns, opened)


def _refusal(body: bytes, flags: int) -> NetlinkError | None:
    """What an error or end-of-dump message says, with the kernel's own words."""
    (number,) = struct.unpack_from("=i", body, HEADER.size) if len(body) >= 20 else (0,)
    if number == 0:
        return None
    words = os.strerror(-number)
    if flags & _ACK_TLVS:
        offset = HEADER.size + 4
        is_error = struct.unpack_from("=H", body, 4)[0] == _ERROR
        if is_error:
            inner = struct.unpack_from("=I", body, offset)[0]
            offset += HEADER.size if flags & _ACK_CAPPED else inner + 3 & ~3
        while offset + 4 <= len(body):
            length, kind = struct.unpack_from("=HH", body, offset)
            if length < 4:
                break
            if kind & 0x3FFF == 1:
                text = body[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
                words = f"{text} ({words})"
            offset += length + 3 & ~3
    return NetlinkError(-number, words)
