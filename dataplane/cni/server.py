# SPDX-License-Identifier: Apache-2.0
"""The node-local CNI server: a Unix socket that only root may use.

One request a connection: the client writes {"env": {"CNI_…": "…"}, "config": {…}}, closes
its writing side, and reads one JSON object: the CNI result, or {"cniVersion", "code",
"msg", "details"}. The pod's namespace may come along as a descriptor. Must not wire pods
itself; a `Handler` does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from dataplane.cni import protocol
from dataplane.cni.protocol import CniError, Request, Wiring
from dataplane.model.errors import BadEnvironment, PodlaneError

_LONGEST = 2 << 20  # the plugin takes a configuration of 1 MiB, and adds its environment
_BACKLOG = 1024  # a node that comes up starts all its pods at once
_PIECE = 8192
_SECONDS_TO_ASK = 10
_PAUSE_SECONDS = 0.1
_UCRED = struct.Struct("3i")


class Handler(Protocol):
    """Who wires pods. Each call is done when it returns; failures are raised."""

    def add(self, request: Request) -> Wiring: ...

    def delete(self, request: Request) -> None: ...

    def check(self, request: Request) -> None: ...

    def collect(self, request: Request) -> None: ...

    def status(self) -> None: ...


class Server:
    """Listens on `path`, asks `handler`. `failed` is told of what was not foreseen."""

    def __init__(self, path: Path, handler: Handler, log: Log) -> None:
        self._path, self._handler, self._log = path, handler, log
        self._accepting: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A socket that a dead agent left is replaced."""
        self._path.unlink(missing_ok=True)
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            os.fchmod(listener.fileno(), 0o600)  # before bind, so that it never was open to others
            listener.bind(os.fspath(self._path))
            os.chmod(self._path, 0o600)
            listener.listen(_BACKLOG)
        except OSError as failure:
            raise BadEnvironment(f"socket {self._path}", str(failure)) from failure
        self._accepting = asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            self._path.unlink(missing_ok=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as failure:  # no descriptor is free, until calls end
                    self._log("cni_caller_waits", why=str(failure))
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                task = asyncio.create_task(self._connection(connection))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)

    async def _connection(self, connection: socket.socket) -> None:
        received: list[int] = []
        with connection:
            try:
                answer = await self._answer(connection, received)
                await asyncio.get_running_loop().sock_sendall(
                    connection, json.dumps(answer).encode()
                )
            except OSError:
                pass  # a client that left hears nothing
            finally:
                for fd in received:
                    os.close(fd)

    async def _answer(self, connection: socket.socket, received: list[int]) -> dict[str, Any]:
        version = protocol.VERSIONS[-1]
        try:
            _refuse_others(connection)
            env, config = await _read(connection, received)
            if isinstance(config, dict) and config.get("cniVersion") in protocol.VERSIONS:
                version = config["cniVersion"]
            request = protocol.parse(env, config)
            return self.handle(replace(request, netns_fd=received[0] if received else None))
        except PodlaneError as failure:
            self._log("cni_request_refused", why=str(failure))
            return protocol.error(failure, version)
        except Exception as failure:  # noqa: BLE001 - one call's bug must not end the agent
            self._log("cni_request_broke", why=f"{type(failure).__name__}: {failure}")
            return protocol.error(failure, version)

    def handle(self, request: Request) -> dict[str, Any]:
        """Do one checked request."""
        match request.command:
            case "ADD":
                return protocol.result(request, self._handler.add(request))
            case "DEL":
                self._handler.delete(request)
            case "CHECK":
                self._handler.check(request)
            case "GC":
                self._handler.collect(request)
            case "STATUS":
                self._handler.status()
            case "VERSION":
                return protocol.versions(request)
        return {}


class Log(Protocol):
    """Where past-tense events go."""

    def __call__(self, event: str, **facts: object) -> None: ...


def _refuse_others(connection: socket.socket) -> None:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    if uid != 0:
        raise CniError(protocol.IO_FAILED, "CNI socket", f"user {uid} is not root")


async def _receive(connection: socket.socket, received: list[int]) -> bytes:
    """Some bytes, none at the end; descriptors that came along are the caller's to close."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            data, control, _, _ = connection.recvmsg(
                _PIECE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(connection, _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(connection)
            continue
        for level, kind, body in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received.extend(
                    fd for (fd,) in struct.iter_unpack("=i", body[: len(body) // 4 * 4])
                )
        return data


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


async def _read(connection: socket.socket, received: list[int]) -> tuple[dict[str, object], object]:
    data = bytearray()
    try:
        async with asyncio.timeout(_SECONDS_TO_ASK):
            while chunk := await _receive(connection, received):
                data += chunk
                if len(data) > _LONGEST:
                    raise CniError(protocol.DECODE_FAILED, "request", "longer than 2 MiB")
    except TimeoutError as failure:
        raise CniError(protocol.IO_FAILED, "request", "did not end in time") from failure
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as failure:
        raise CniError(protocol.DECODE_FAILED, "request", f"is not JSON: {failure}") from failure
    env = document.get("env") if isinstance(document, dict) else None
    if not isinstance(env, dict):
        raise CniError(protocol.DECODE_FAILED, "request", "has no object env")
    return env, document.get("config")
