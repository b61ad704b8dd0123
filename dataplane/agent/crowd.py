# SPDX-License-Identifier: Apache-2.0
"""The connections of all health ports together: so many at most, and none that waits for ever.

So many answers a second at most, too, whoever asks: connections take turns. One client has a
share of them, and who comes beyond it is shut out before anything is made for it: thousands
of connections a second cost the loop, which is the datapath's, some microseconds each. At the
most, a newcomer takes the place that was longest without an answer of the client with most
places. So who opens many and says nothing keeps no load balancer out. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

# Some load balancers ask from a handful of machines for each Service. A connection is a
# descriptor and some 10 KB; an agent under systemd may have 1,024 descriptors.
MOST_CONNECTIONS = 256
SHARE = 4  # a client has a fourth
# Longer than load balancers leave between two questions (mostly 5 to 30 s).
PATIENCE_SECONDS = 60.0
# An answer costs the loop a sixth of a millisecond: a sixth of a core at most.
ANSWERS_A_SECOND = 1_000
# Wait in the kernel; what a flood has put there is gone through in some tens of milliseconds.
WAITING = 1024
_AT_A_TIME = 32
_BREATH_SECONDS = 1.0
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, nothing stays in the kernel

Makes = Callable[[], asyncio.Protocol]


class Crowd:
    """Connections by client, each by when it was opened or last answered, the longest ago first."""

    def __init__(self, most: int, patience: float) -> None:
        self._most, self._patience = most, patience
        self._share = -(-most // SHARE)
        self._count = 0
        self._turn = asyncio.Lock()
        self._ends: dict[str, dict[asyncio.BaseTransport, asyncio.TimerHandle]] = {}

    def takes(self, client: str) -> bool:
        """Whether this address may have another connection."""
        return len(self._ends.get(client, ())) < self._share

    async def turn(self) -> None:
        """Wait until it is a question's turn: they come first in, first out."""
        async with self._turn:
            await asyncio.sleep(1 / ANSWERS_A_SECOND)

    def answered(self, connection: asyncio.BaseTransport) -> None:
        """It may stay for another while; nothing if it has gone."""
        if self.leave(connection):
            self._wait(connection)

    def enter(self, connection: asyncio.BaseTransport) -> None:
        if self._count >= self._most:
            greediest = max(self._ends, key=lambda client: len(self._ends[client]))
            longest = next(iter(self._ends[greediest]))
            self.leave(longest)
            _abort(longest)
        self._wait(connection)

    def leave(self, connection: asyncio.BaseTransport) -> bool:
        """Whether it was here."""
        client = _client(connection)
        own = self._ends.get(client, {})
        end = own.pop(connection, None)
        if end is None:
            return False
        end.cancel()
        self._count -= 1
        if not own:
            del self._ends[client]
        return True

    def _wait(self, connection: asyncio.BaseTransport) -> None:
        loop = asyncio.get_running_loop()
        own = self._ends.setdefault(_client(connection), {})
        own[connection] = loop.call_later(self._patience, _abort, connection)
        self._count += 1


class Door:
    """A socket that listens, and lets in whom a crowd takes, until it is closed.

    Args:
        bound: listens and does not block; the door's from now on.
        make: the protocol of a connection.
    """

    def __init__(self, bound: socket.socket, make: Makes, crowd: Crowd) -> None:
        self._bound, self._crowd = bound, crowd
        self._make = lambda: _Guard(crowd, make())
        self._loop = asyncio.get_running_loop()
        self._coming: set[asyncio.Task[object]] = set()
        self._breath: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """The port is free at once; connections stay as they are."""
        if self._breath is not None:
            self._breath.cancel()
        self._loop.remove_reader(self._bound)
        self._bound.close()

    def _listen(self) -> None:
        self._breath = None
        self._loop.add_reader(self._bound, self._let_in)

    def _let_in(self) -> None:
        for _ in range(_AT_A_TIME):
            try:
                connection, (client, *_) = self._bound.accept()
            except OSError as refusal:
                if refusal.errno in _NO_ROOM:  # nor soon: it would be told so at every turn
                    self._loop.remove_reader(self._bound)
                    self._breath = self._loop.call_later(_BREATH_SECONDS, self._listen)
                return
            if self._crowd.takes(client):
                connection.setblocking(False)
                task = self._loop.create_task(self._enter(connection))
                self._coming.add(task)
                task.add_done_callback(self._coming.discard)
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.close()

    async def _enter(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:  # gone before it was here
            connection.close()


def _client(connection: asyncio.BaseTransport) -> str:
    """Its address; nobody's if it was gone before it could be asked."""
    peer = connection.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _abort(connection: asyncio.BaseTransport) -> None:
    """Without waiting for what the client has not read."""
    assert isinstance(connection, asyncio.Transport)
    connection.abort()


class _Guard(asyncio.Protocol):
    """Stands before another protocol and tells the crowd who comes and goes."""

    def __init__(self, crowd: Crowd, behind: asyncio.Protocol) -> None:
        self._crowd, self._behind = crowd, behind
        self._connection: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = transport
        self._crowd.enter(transport)
        self._behind.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._crowd.leave(self._connection)
        self._behind.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._behind.data_received(data)

    def eof_received(self) -> bool | None:
        return self._behind.eof_received()

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()
