# SPDX-License-Identifier: Apache-2.0
"""How often gone backends' sockets are looked for, and which records go. Real ones: test_sockets."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.abi.codec import codec
from dataplane.agent import nodesockets
from dataplane.agent.nodesockets import SOCKETS, NodeSockets, _Left
from dataplane.kernel import bpf, sockdiag
from dataplane.model.flow import SocketFlow
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.objects import Problem

FLOW = SocketFlow(
    generation=7, started=1, frontend=ip_address("10.96.0.1"), backend=ip_address("10.244.1.11"),
    frontend_port=80, backend_port=8080, backend_id=3, service_id=2, version=1, protocol=Protocol.UDP,
)  # fmt: skip
LEFT = _Left(Family.V4, (42).to_bytes(8, "little"), FLOW)


class Looked(NodeSockets):
    """Finds what the test says, look by look, and nothing afterwards; closes nothing."""

    def __init__(self, *finds: list[_Left]) -> None:
        self._maps = {Family.V4: 0}
        self.finds, self.looks = list(finds), 0
        self.asked_for: list[_Left] = []
        self.refusals: list[OSError | None] = []
        self._not_closed = {}

    async def _gone(self) -> AsyncIterator[_Left]:
        self.looks += 1
        for one in self.finds.pop(0) if self.finds else ():
            yield one

    async def _close(self, left: list[_Left]) -> tuple[int, OSError | None]:
        self.asked_for += left
        return len(left), self.refusals.pop(0) if self.refusals else None


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodesockets, "LOOKS", (0.0,) * 4)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """The map of connected sockets, with one record."""
    held = {LEFT.key: codec(SOCKETS[Family.V4]).value(FLOW)}
    monkeypatch.setattr(bpf, "map_lookup", lambda _fd, key, _size: held.get(key))
    monkeypatch.setattr(bpf, "map_delete", lambda _fd, key: held.pop(key, None) is not None)
    return held


@pytest.fixture(params=[False, True], ids=["the same", "connected anew"])
def anew(request: pytest.FixtureRequest, records: dict[bytes, bytes]) -> bool:
    """Whether the record is another by now than was read."""
    if request.param:
        records[LEFT.key] = codec(SOCKETS[Family.V4]).value(replace(FLOW, generation=8))
    return bool(request.param)


@pytest.mark.parametrize(
    ("finds", "looks"),
    [([], 2), ([[], [LEFT]], 3), ([[LEFT], [LEFT]], 3)],
    ids=["none", "one that was made meanwhile", "one that goes on"],
)
def test_a_socket_that_chose_before_the_change_is_found_by_a_later_look(
    finds: list[list[_Left]], looks: int
) -> None:
    sockets = Looked(*finds)
    asyncio.run(sockets._close_gone())
    assert sockets.looks == looks
    assert len(sockets.asked_for) == sum(map(len, finds))


def test_a_record_without_a_socket_is_forgotten_unless_it_is_another_by_then(
    records: dict[bytes, bytes], anew: bool
) -> None:
    asyncio.run(Looked(*[[LEFT]] * 4)._close_gone())
    assert (LEFT.key in records) == anew


NO_ROOM = OSError(errno.ENOBUFS, "sock_diag: No buffer space available")


@pytest.mark.parametrize("looks", [1, 3])
def test_what_a_look_was_refused_is_made_good_by_the_next(
    records: dict[bytes, bytes], looks: int
) -> None:
    sockets = Looked(*[[LEFT]] * 4)
    sockets.refusals = [NO_ROOM] * looks
    asyncio.run(sockets._close_gone())
    assert (sockets.looks, records) == (4, {})


def test_a_refusal_is_nothing_once_no_record_is_left(records: dict[bytes, bytes]) -> None:
    sockets = Looked([LEFT])
    sockets.refusals = [NO_ROOM]
    asyncio.run(sockets._close_gone())
    assert sockets.looks == 2


def test_what_the_last_look_was_refused_is_told_and_nothing_forgotten(
    records: dict[bytes, bytes],
) -> None:
    sockets = Looked(*[[LEFT]] * 4)
    sockets.refusals = [None, None, None, NO_ROOM]
    with pytest.raises(OSError, match="No buffer space"):
        asyncio.run(sockets._close_gone())
    assert sockets.looks == 4
    assert LEFT.key in records


class Found:
    """sock_diag that finds the one socket, and notes what its record was when it was closed."""

    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.records = records
        self.at_end: list[bytes | None] = []

    def connected_to(self, *_peer: object) -> list[sockdiag.Found]:
        return [sockdiag.Found(2, Protocol.UDP, bytes(40) + LEFT.key)]

    def destroy(self, _found: sockdiag.Found) -> bool:
        self.at_end.append(self.records.get(LEFT.key))
        return True


def closing(records: dict[bytes, bytes]) -> tuple[Looked, Found]:
    """Sockets that are closed by this sock_diag."""
    sockets, diag = Looked(), Found(records)
    sockets._diag = diag  # type: ignore[assignment]
    return sockets, diag


def test_a_socket_is_called_by_its_frontend_until_it_is_closed(
    records: dict[bytes, bytes], anew: bool
) -> None:
    """One that is connected to the same pod anew, by another Service, is nobody's to close."""
    sockets, diag = closing(records)
    assert asyncio.run(NodeSockets._close(sockets, [LEFT])) == (int(not anew), None)
    assert diag.at_end == ([] if anew else [records[LEFT.key]])


def test_a_socket_that_is_not_closed_keeps_no_other(
    records: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets, diag = closing(records)
    other = replace(LEFT, flow=replace(FLOW, backend=ip_address("10.244.1.12")))
    monkeypatch.setattr(sockets, "_stands", lambda _one: True)
    tried = []

    def destroy(found: sockdiag.Found) -> bool:
        tried.append(found)
        raise OSError(errno.EPERM, "closing a socket")

    monkeypatch.setattr(diag, "destroy", destroy)
    closed, refused = asyncio.run(NodeSockets._close(sockets, [LEFT, other]))
    assert (closed, str(refused)) == (0, "[Errno 1] closing a socket")
    assert len(tried) == 2


def test_a_peer_that_can_not_be_asked_for_keeps_no_other(
    records: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets, diag = closing(records)
    first = replace(LEFT, flow=replace(FLOW, backend=ip_address("10.244.1.10")))
    connected_to = diag.connected_to

    def refuse(peer: IPAddress, *rest: object) -> Iterator[sockdiag.Found]:
        if peer == first.flow.backend:
            raise NO_ROOM
        yield from connected_to(peer, *rest)

    monkeypatch.setattr(diag, "connected_to", refuse)
    assert asyncio.run(NodeSockets._close(sockets, [first, LEFT])) == (1, NO_ROOM)


def test_sockets_that_this_kernel_does_not_find_are_not_asked_for(
    records: dict[bytes, bytes],
) -> None:
    sockets, diag = closing(records)
    sockets._not_closed = {Protocol.UDP: Problem("kernel", "CONFIG_INET_UDP_DIAG", "")}
    assert asyncio.run(NodeSockets._close(sockets, [LEFT])) == (0, None)
    assert diag.at_end == []


class Lacking:
    """sock_diag of a kernel that lacks what the test says."""

    def __init__(self, **options: str) -> None:
        self.options = options

    def missing(self, protocol: Protocol) -> str:
        return self.options.get(protocol.name, "")


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (Lacking(), []),
        (
            Lacking(UDP="INET_UDP_DIAG"),
            ["CONFIG_INET_UDP_DIAG: this kernel finds no UDP sockets on request: the node's"],
        ),
        (
            Lacking(TCP="INET_DIAG_DESTROY", UDP="INET_DIAG_DESTROY"),
            [
                "CONFIG_INET_DIAG_DESTROY: this kernel closes no TCP sockets on request: the node's",
                "CONFIG_INET_DIAG_DESTROY: this kernel closes no UDP sockets on request: the node's",
            ],
        ),
    ],
)
def test_what_the_kernel_lacks_is_named_by_protocol(lacking: Lacking, words: list[str]) -> None:
    problems = nodesockets.not_closed(lacking).values()  # type: ignore[arg-type]
    assert len(problems) == len(words)
    for problem, begins in zip(problems, words, strict=True):
        assert str(problem).startswith(f"kernel: {begins}")


def test_a_look_that_failed_is_taken_again_and_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodesockets, "RETRY_SECONDS", 0.01)
    sockets = Looked()
    sockets._wanted = asyncio.Event()
    sockets._diag = Closable()  # type: ignore[assignment]
    looks, done = 0, asyncio.Event()

    async def close_gone() -> None:
        nonlocal looks
        looks += 1
        if looks < 4:
            raise OSError(errno.ENOENT, "sock_diag: No such file or directory")
        done.set()

    monkeypatch.setattr(sockets, "_close_gone", close_gone)

    async def run() -> None:
        running = asyncio.create_task(sockets.run())
        await asyncio.wait_for(done.wait(), 10)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(run())
    said = capsys.readouterr()
    assert (said.out + said.err).count("sockets_not_closed") == 1


class Closable:
    def close(self) -> None:
        pass
