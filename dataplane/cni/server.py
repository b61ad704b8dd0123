# SPDX-License-Identifier: Apache-2.0
"""The node-local CNI server: a Unix socket that only root may use.

One request a connection: the client writes {"env": {"CNI_…": "…"}, "config": {…}}, closes
its writing side, and reads one JSON object: the CNI result, or {"cniVersion", "code",
"msg", "details"}. Must not wire pods itself; a `Handler` does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any, Protocol

from dataplane.cni import protocol
from dataplane.cni.protocol import CniError, Request, Wiring
from dataplane.model.errors import BadEnvironment, PodlaneError

_LONGEST = 2 << 20  # the plugin takes a configuration of 1 MiB, and adds its environment
_BACKLOG = 1024  # a node that comes up starts all its pods at once
_SECONDS_TO_ASK = 10
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
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket that a dead agent left is replaced."""
        self._path.unlink(missing_ok=True)
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            os.fchmod(listener.fileno(), 0o600)  # before bind, so that it never was open to others
            listener.bind(os.fspath(self._path))
            os.chmod(self._path, 0o600)
            self._server = await asyncio.start_unix_server(
                self._connection, sock=listener, backlog=_BACKLOG
            )
        except OSError as failure:
            raise BadEnvironment(f"socket {self._path}", str(failure)) from failure

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(reader, writer)
            writer.write(json.dumps(answer).encode())
            await writer.drain()
        except ConnectionError:
            pass  # a client that left hears nothing
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> dict[str, Any]:
        version = protocol.VERSIONS[-1]
        try:
            _refuse_others(writer)
            env, config = await _read(reader)
            if isinstance(config, dict) and config.get("cniVersion") in protocol.VERSIONS:
                version = config["cniVersion"]
            return self.handle(protocol.parse(env, config))
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


def _refuse_others(writer: asyncio.StreamWriter) -> None:
    peer: socket.socket = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    if uid != 0:
        raise CniError(protocol.IO_FAILED, "CNI socket", f"user {uid} is not root")


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, object], object]:
    data = bytearray()
    try:
        async with asyncio.timeout(_SECONDS_TO_ASK):
            while chunk := await reader.read(65536):
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
