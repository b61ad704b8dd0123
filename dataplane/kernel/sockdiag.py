# SPDX-License-Identifier: Apache-2.0
"""Sockets of a network namespace, found by their peer and closed from outside.

sock_diag(7) in its own bytes: pyroute2 has no request that closes a socket. A closed TCP
socket sends RST, and its owner gets ECONNABORTED; a UDP socket's owner gets that once and
is connected to nobody. Must not know why a socket is to be closed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dataplane.model.net import IPAddress

_SOCK_DIAG, _BY_FAMILY, _DESTROY = 4, 20, 21
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_HEADER = struct.Struct("=IHHII")
_REQ = struct.Struct("=BBBBI48s")  # struct inet_diag_req_v2
_MSG = struct.Struct("=BBBB48s20x")  # struct inet_diag_msg
_COOKIE_AT = 40  # in struct inet_diag_sockid
_BYTECODE, _PEER_IS = 1, 8  # INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_D_COND
# What finds sockets of a protocol, built in or as a module: tcp_diag, udp_diag.
_OPTIONS = {socket.IPPROTO_TCP: "INET_TCP_DIAG", socket.IPPROTO_UDP: "INET_UDP_DIAG"}
# All that send: no listeners (10), TIME_WAIT (6), closed ones (7) or half-open requests (3).
_STATES = sum(1 << state for state in (1, 2, 4, 5, 8, 9, 11))


@dataclass(frozen=True, slots=True)
class Found:
    """One socket: what the kernel finds it again by, and its cookie as programs see it."""

    family: int
    protocol: int
    id: bytes

    @property
    def cookie(self) -> int:
        number: int = struct.unpack_from("=Q", self.id, _COOKIE_AT)[0]
        return number


class SockDiag:
    """Asks about the namespace that it was made in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
        self._request = 0

    def close(self) -> None:
        self._socket.close()

    def missing(self, protocol: int) -> str:
        """The kernel's option for want of which no such socket is found or closed, if any is.

        The question is for no state, so it costs no walk through all sockets. Another refusal
        is no want of the kernel's: whoever asks in earnest hears it.
        """
        try:
            list(self._dump(socket.AF_INET, protocol, states=0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return _OPTIONS[protocol]
        nobody = Found(socket.AF_INET, protocol, bytes(_COOKIE_AT) + b"\xff" * 8)
        return "INET_DIAG_DESTROY" if self._destroy(nobody) == errno.EOPNOTSUPP else ""

    def connected_to(self, peer: IPAddress, port: int, protocol: int) -> Iterator[Found]:
        """Sockets with this peer; for IPv4 also IPv6 sockets that talk IPv4.

        Raises OSError if the kernel refuses the question.
        """
        families = [socket.AF_INET6] if peer.version == 6 else [socket.AF_INET, socket.AF_INET6]
        for family in families:
            yield from self._dump(family, protocol, _peer_is(peer, port), _STATES)

    def destroy(self, found: Found) -> bool:
        """Close a socket; False if it was gone, or has another peer now.

        Raises OSError if the kernel refuses. Whoever asks knows by `missing` that the kernel
        closes such sockets: then EOPNOTSUPP is said of one that came to TIME_WAIT meanwhile.
        """
        number = self._destroy(found)
        if number in (0, errno.ENOENT, errno.EOPNOTSUPP):
            return number == 0
        raise OSError(number, f"closing a socket: {os.strerror(number)}")

    def _destroy(self, found: Found) -> int:
        body = _REQ.pack(found.family, found.protocol, 0, 0, 0xFFFFFFFF, found.id)
        self._send(_DESTROY, _REQUEST | _ACK, body)
        while True:
            for kind, data in self._receive():
                if kind == _ERROR:
                    return _error(data)

    def _dump(
        self, family: int, protocol: int, code: bytes = b"", states: int = 0
    ) -> Iterator[Found]:
        attribute = struct.pack("=HH", 4 + len(code), _BYTECODE) + code if code else b""
        body = _REQ.pack(family, protocol, 0, 0, states, bytes(48)) + attribute
        self._send(_BY_FAMILY, _REQUEST | _DUMP, body)
        found: list[Found] = []  # whole before the first is used: a request may come in between
        while True:
            for kind, data in self._receive():
                if kind in (_DONE, _ERROR):
                    number = _error(data)
                    if number or kind == _ERROR:
                        raise OSError(number, f"sock_diag: {os.strerror(number)}")
                    yield from found
                    return
                found.append(Found(family, protocol, _MSG.unpack_from(data)[4]))

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._request = (self._request + 1) & 0xFFFFFFFF
        head = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._request, 0)
        self._socket.send(head + body)

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        """Of the last request: what an earlier one that failed in recv() left is passed over."""
        data = self._socket.recv(1 << 18)
        while len(data) >= _HEADER.size:
            length, kind, _, request, _ = _HEADER.unpack_from(data)
            if request == self._request:
                yield kind, data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


def _error(data: bytes) -> int:
    """The errno of NLMSG_ERROR or NLMSG_DONE; 0 if all went well.

    A dump that fails after it began (no module for the protocol is such a one) ends as one
    that found nothing, and only this number differs. A positive one is a length.
    """
    number: int = struct.unpack_from("=i", data)[0] if len(data) >= 4 else 0
    return max(-number, 0)


def _peer_is(peer: IPv4Address | IPv6Address, port: int) -> bytes:
    """A filter of one condition (struct inet_diag_bc_op, inet_diag_hostcond): else, no match."""
    family = socket.AF_INET if peer.version == 4 else socket.AF_INET6
    condition = struct.pack("=BBxxi", family, peer.max_prefixlen, port) + peer.packed
    length = 4 + len(condition)
    return struct.pack("=BBH", _PEER_IS, length, length + 4) + condition
