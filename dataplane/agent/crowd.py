# SPDX-License-Identifier: Apache-2.0
"""The connections of all health ports together: so many at most, and none that waits for ever.

At the most, the one that was longest without an answer gives way to a newcomer: who opens
connections and says nothing keeps no load balancer out. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Some load balancers ask from a handful of machines for each Service. A connection is a
# descriptor and some 10 KB; an agent under systemd may have 1,024 descriptors.
MOST_CONNECTIONS = 256
# Longer than load balancers leave between two questions (mostly 5 to 30 s).
PATIENCE_SECONDS = 60.0


class Crowd:
    """Connections, by when they were opened or last answered, the longest ago first."""

    def __init__(self, most: int, patience: float) -> None:
        self._most, self._patience = most, patience
        self._ends: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}

    def guarding(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """A protocol factory like `make`, whose connections are counted."""
        return lambda: _Guard(self, make())

    def answered(self, connection: asyncio.BaseTransport) -> None:
        """It may stay for another while; nothing if it has gone."""
        if connection in self._ends:
            self.leave(connection)
            self._wait(connection)

    def enter(self, connection: asyncio.Transport) -> None:
        if len(self._ends) >= self._most:
            longest = next(iter(self._ends))
            self.leave(longest)
            _abort(longest)
        self._wait(connection)

    def leave(self, connection: asyncio.BaseTransport) -> None:
        if (end := self._ends.pop(connection, None)) is not None:
            end.cancel()

    def _wait(self, connection: asyncio.BaseTransport) -> None:
        loop = asyncio.get_running_loop()
        self._ends[connection] = loop.call_later(self._patience, _abort, connection)


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
        assert isinstance(transport, asyncio.Transport)
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
