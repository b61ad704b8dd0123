# SPDX-License-Identifier: Apache-2.0
"""What sock_diag answers, byte by byte: a dump that failed is no dump that found nothing."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from dataplane.kernel.sockdiag import Found, SockDiag

_ERROR, _DONE, _BY_FAMILY, _DESTROY = 2, 3, 20, 21
_DUMP = 0x300
_ID = bytes(range(48))
_FOUND = struct.pack("=BBBB48s20x", socket.AF_INET, 1, 0, 0, _ID)


def message(kind: int, body: bytes) -> bytes:
    padded = body + bytes(-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0x2, 1, 0) + padded


def number(kind: int, errno_: int) -> bytes:
    """NLMSG_DONE or NLMSG_ERROR with an error."""
    return message(kind, struct.pack("=i", -errno_))


def numbered(datagram: bytes, request: int) -> bytes:
    """Its messages as answers to this request."""
    made, at = bytearray(datagram), 0
    while at < len(made):
        struct.pack_into("=I", made, at + 8, request)
        at += (struct.unpack_from("=I", made, at)[0] + 3) & ~3
    return bytes(made)


class Kernel:
    """Answers each request with the messages that the test gives, by type and protocol."""

    def __init__(self, answers: dict[tuple[int, int], list[bytes]]) -> None:
        self.answers = answers
        self.asked: list[tuple[int, int, int]] = []
        self.fails: list[OSError] = []
        self._waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        _, kind, flags, request, _ = struct.unpack_from("=IHHII", data)
        protocol = data[17]
        assert flags & _DUMP == (_DUMP if kind == _BY_FAMILY else 0)
        (states,) = struct.unpack_from("=I", data, 20)
        self.asked.append((kind, protocol, states))
        self._waiting += [numbered(one, request) for one in self.answers[kind, protocol]]

    def recv(self, _size: int) -> bytes:
        if self.fails:
            raise self.fails.pop()
        return self._waiting.pop(0)


def asking(answers: dict[tuple[int, int], list[bytes]]) -> tuple[SockDiag, Kernel]:
    diag, kernel = SockDiag(), Kernel(answers)
    diag.close()
    diag._socket = kernel  # type: ignore[assignment]
    return diag, kernel


UDP, TCP = socket.IPPROTO_UDP, socket.IPPROTO_TCP
PEER = ip_address("2001:db8::1")


@pytest.mark.parametrize("end", [message(_DONE, b""), number(_DONE, 0), number(_DONE, -48)])
def test_a_dump_that_ended_well_gives_what_it_found(end: bytes) -> None:
    """Some kernels end it without a number, or with a length."""
    found = message(_BY_FAMILY, _FOUND)
    for answer in ([found + found, end], [found, found + end]):
        diag, _ = asking({(_BY_FAMILY, UDP): answer})
        assert [one.id for one in diag.connected_to(PEER, 53, UDP)] == [_ID, _ID]


@pytest.mark.parametrize("kind", [_DONE, _ERROR])
def test_a_dump_that_failed_is_an_error(kind: int) -> None:
    """A kernel without udp_diag begins the dump, and says ENOENT where it ends."""
    answer = [message(_BY_FAMILY, _FOUND), number(kind, errno.ENOENT)]
    diag, _ = asking({(_BY_FAMILY, UDP): answer})
    with pytest.raises(FileNotFoundError, match="sock_diag: No such file"):
        list(diag.connected_to(PEER, 53, UDP))


@pytest.mark.parametrize(
    ("dump", "destroy", "missing"),
    [
        (0, errno.ENOENT, ""),
        (errno.ENOENT, errno.ENOENT, "INET_UDP_DIAG"),
        (0, errno.EOPNOTSUPP, "INET_DIAG_DESTROY"),
        (errno.ENOMEM, errno.ENOENT, ""),
    ],
)
def test_what_a_kernel_lacks_has_its_name(dump: int, destroy: int, missing: str) -> None:
    answers = {
        (_BY_FAMILY, UDP): [number(_DONE, dump)],
        (_DESTROY, UDP): [number(_ERROR, destroy)],
    }
    diag, kernel = asking(answers)
    assert diag.missing(UDP) == missing
    assert kernel.asked[0] == (_BY_FAMILY, UDP, 0)


@pytest.mark.parametrize(
    ("answer", "closed"), [(0, True), (errno.ENOENT, False), (errno.EOPNOTSUPP, False)]
)
def test_a_socket_that_came_to_its_end_meanwhile_is_gone(answer: int, closed: bool) -> None:
    """Some kernels refuse one in TIME_WAIT as if no socket could be closed."""
    diag, _ = asking({(_DESTROY, TCP): [number(_ERROR, answer)]})
    assert diag.destroy(Found(socket.AF_INET, TCP, _ID)) is closed


def test_a_socket_that_is_not_closed_is_an_error() -> None:
    diag, _ = asking({(_DESTROY, TCP): [number(_ERROR, errno.EPERM)]})
    with pytest.raises(PermissionError, match="closing a socket"):
        diag.destroy(Found(socket.AF_INET, TCP, _ID))


def test_what_a_failed_question_left_is_no_answer_to_the_next() -> None:
    answers = {
        (_BY_FAMILY, UDP): [message(_BY_FAMILY, _FOUND), number(_DONE, 0)],
        (_DESTROY, UDP): [number(_ERROR, errno.ENOENT)],
    }
    diag, kernel = asking(answers)
    kernel.fails = [OSError(errno.ENOBUFS, "no buffer space")]
    with pytest.raises(OSError, match="no buffer space"):
        list(diag.connected_to(PEER, 53, UDP))
    assert diag.destroy(Found(socket.AF_INET6, UDP, _ID)) is False
    assert [one.id for one in diag.connected_to(PEER, 53, UDP)] == [_ID]


def test_this_kernel_finds_and_closes() -> None:
    diag = SockDiag()
    try:
        assert diag.missing(TCP) in ("", "INET_DIAG_DESTROY")
        assert diag.missing(UDP) in ("", "INET_DIAG_DESTROY", "INET_UDP_DIAG")
    finally:
        diag.close()
