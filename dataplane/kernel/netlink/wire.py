# SPDX-License-Identifier: Apache-2.0
"""One request to rtnetlink, answered before the call returns.

pyroute2 knows the messages, and encodes and decodes them here; its own sockets need an
event loop each and refuse to be used inside a running one, so the socket is ours: plain,
blocking, opened inside the node's namespace and staying there. Must not know what a
request means.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_bpf, tcmsg

from dataplane.kernel.netns import Netns, run_in

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400

_ERROR, _DONE = 2, 3
_MULTI, _DUMP_INTERRUPTED = 0x2, 0x10
_HEADER = struct.Struct("=IHHII")
_SOL_NETLINK = 270
_EXT_ACK, _GET_STRICT_CHK = 11, 12
_ACK_TLVS, _ACK_CAPPED = 0x200, 0x100
_DUMP_TRIES = 8

Attrs = Iterable[tuple[str, object]]


class _BpfOptions(sched_bpf.options):  # type: ignore[misc] # pyroute2 ships no types
    """cls_bpf's options as newer kernels have them: with tag and id of the program."""

    nla_map = (
        *sched_bpf.options.nla_map,
        ("TCA_BPF_FLAGS_GEN", "uint32"),
        ("TCA_BPF_TAG", "hex"),
        ("TCA_BPF_ID", "uint32"),
    )


class _Tc(tcmsg):  # type: ignore[misc]
    @staticmethod
    def get_options(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.get_attr("TCA_KIND") == "bpf":
            return _BpfOptions
        return tcmsg.get_options(self, *args, **kwargs)


LINK, ADDRESS, ROUTE, NEIGHBOUR, TC = ifinfmsg, ifaddrmsg, rtmsg, ndmsg, _Tc

# First number of each object's three: new, delete, get.
_BASE = {LINK: 16, ADDRESS: 20, ROUTE: 24, NEIGHBOUR: 28}
TC_QDISC, TC_FILTER = 36, 44


class NetlinkError(OSError):
    """The kernel refused a request; `strerror` holds its own words if it gave any."""


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
        self._socket = _open() if netns is None else run_in(netns, _open)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def new(
        self,
        kind: Any,
        fields: Mapping[str, object],
        attrs: Attrs,
        *,
        flags: int = 0,
        number: int | None = None,
    ) -> None:
        """Make or change one object."""
        self._send(kind, _BASE[kind] if number is None else number, flags | ACK, fields, attrs)
        self._answers(kind)

    def delete(
        self, kind: Any, fields: Mapping[str, object], attrs: Attrs, *, number: int | None = None
    ) -> None:
        """Delete one object."""
        base = _BASE[kind] if number is None else number
        self._send(kind, base + 1, ACK, fields, attrs)
        self._answers(kind)

    def get(self, kind: Any, fields: Mapping[str, object], attrs: Attrs) -> Message:
        """Ask for one object."""
        self._send(kind, _BASE[kind] + 2, ACK, fields, attrs)
        return self._answers(kind)[0]

    def dump(
        self,
        kind: Any,
        fields: Mapping[str, object],
        attrs: Attrs = (),
        *,
        number: int | None = None,
    ) -> list[Message]:
        """Ask for all objects of a kind, as one consistent answer."""
        base = _BASE[kind] if number is None else number
        for _ in range(_DUMP_TRIES):
            self._send(kind, base + 2, DUMP, fields, attrs)
            try:
                return self._answers(kind)
            except _Interrupted:
                continue
        raise NetlinkError(errno.EAGAIN, "the objects changed faster than they could be read")

    def _send(
        self, kind: Any, number: int, flags: int, fields: Mapping[str, object], attrs: Attrs
    ) -> None:
        self._sequence += 1
        message = kind()
        for name, value in fields.items():
            message[name] = value
        message["attrs"] = [list(pair) for pair in attrs]
        message["header"] = {
            "type": number,
            "flags": flags | REQUEST,
            "sequence_number": self._sequence,
            "pid": 0,
        }
        message.encode()
        self._socket.send(message.data)

    def _answers(self, kind: Any) -> list[Message]:
        answers: list[Message] = []
        interrupted = False
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, number, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                body, offset = data[offset : offset + length], offset + (length + 3 & ~3)
                if sequence != self._sequence:
                    continue
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                if number in (_ERROR, _DONE):
                    _check(body, flags)
                    if interrupted:
                        raise _Interrupted(errno.EINTR, "dump interrupted")
                    return answers
                message = kind(body)
                message.decode()
                answers.append(Message(message))


class _Interrupted(NetlinkError):
    pass


def _open() -> socket.socket:
    opened = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    opened.bind((0, 0))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    opened.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
    opened.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
    return opened


def _check(body: bytes, flags: int) -> None:
    """Raise what an error or end-of-dump message says, with the kernel's own words."""
    (number,) = struct.unpack_from("=i", body, _HEADER.size) if len(body) >= 20 else (0,)
    if number == 0:
        return
    words = os.strerror(-number)
    if flags & _ACK_TLVS:
        offset = _HEADER.size + 4
        is_error = struct.unpack_from("=H", body, 4)[0] == _ERROR
        if is_error:
            inner = struct.unpack_from("=I", body, offset)[0]
            offset += _HEADER.size if flags & _ACK_CAPPED else inner + 3 & ~3
        while offset + 4 <= len(body):
            length, kind = struct.unpack_from("=HH", body, offset)
            if length < 4:
                break
            if kind & 0x3FFF == 1:
                text = body[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
                words = f"{text} ({words})"
            offset += length + 3 & ~3
    raise NetlinkError(-number, words)
