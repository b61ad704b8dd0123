# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataplane.cni import client, protocol
from dataplane.cni.protocol import CniError, Request, Wiring
from dataplane.cni.server import Server
from tests.unit.test_cni_protocol import CONFIG, ENV, WIRING


class Pods:
    """Takes down what it was asked; has no pod named none."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def add(self, request: Request) -> Wiring:
        self.asked.append(request)
        if request.container_id == "broken":
            raise RuntimeError("not foreseen")
        return WIRING

    def delete(self, request: Request) -> None:
        self.asked.append(request)

    def check(self, request: Request) -> None:
        raise CniError(protocol.UNKNOWN_CONTAINER, "container", "unknown")

    def collect(self, request: Request) -> None:
        self.asked.append(request)

    def status(self) -> None:
        return None


def serve(path: Path, ask: Callable[[], Any]) -> tuple[Pods, Any]:
    """Run a server while `ask` runs in another thread; what was asked and answered."""
    pods = Pods()

    async def both() -> Any:
        server = Server(path, pods, lambda event, **facts: None)
        await server.start()
        try:
            return await asyncio.to_thread(ask)
        finally:
            await server.stop()

    return pods, asyncio.run(both())


def test_add_is_answered_with_the_result(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    pods, answer = serve(path, lambda: client.request(path, ENV, CONFIG))
    assert answer == protocol.result(pods.asked[0], WIRING)


def test_delete_is_answered_with_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    env = {**ENV, "CNI_COMMAND": "DEL"}
    pods, answer = serve(path, lambda: client.request(path, env, CONFIG))
    assert answer == {}
    assert pods.asked[0].command == "DEL"


def test_errors_are_answered_with_code_and_words(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    env = {**ENV, "CNI_COMMAND": "CHECK"}
    _, answer = serve(path, lambda: client.request(path, env, CONFIG))
    assert answer == {
        "cniVersion": "1.0.0",
        "code": protocol.UNKNOWN_CONTAINER,
        "msg": "container: unknown",
        "details": "",
    }


def test_a_bug_in_one_call_does_not_end_the_server(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    env = {**ENV, "CNI_CONTAINERID": "broken"}

    def ask() -> tuple[dict[str, Any], dict[str, Any]]:
        return client.request(path, env, CONFIG), client.request(path, ENV, CONFIG)

    _, (broken, fine) = serve(path, ask)
    assert broken["code"] == protocol.INTERNAL
    assert "not foreseen" in broken["msg"]
    assert "code" not in fine


def test_callers_that_come_while_no_descriptor_is_free_are_answered_later(tmp_path: Path) -> None:
    """A soft limit of 1,024 is a service manager's default, and a call takes two."""
    path, events, pods = tmp_path / "cni.sock", [], Pods()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def story() -> bytes:
        refused = asyncio.Event()

        def log(event: str, **facts: object) -> None:
            events.append(event)
            refused.set()

        server = Server(path, pods, log)
        await server.start()
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))
            raw.sendall(json.dumps({"env": ENV, "config": CONFIG}).encode())
            raw.shutdown(socket.SHUT_WR)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            try:
                await refused.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            answer = await asyncio.to_thread(raw.recv, 65536)
        await server.stop()
        return answer

    answer = json.loads(asyncio.run(asyncio.wait_for(story(), 20)))
    assert answer == protocol.result(pods.asked[0], WIRING)
    assert set(events) == {"cni_caller_waits"}


def test_nonsense_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"

    def ask() -> list[int]:
        codes = []
        for text in (b"", b"{", b"[]", b'{"env": 1}', b"[" * 100_000, b"\xff"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path))
                raw.sendall(text)
                raw.shutdown(socket.SHUT_WR)
                codes.append(json.loads(raw.recv(65536))["code"])
        return codes

    _, codes = serve(path, ask)
    assert codes == [protocol.DECODE_FAILED] * 6


def test_the_socket_is_roots_alone(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    _, mode = serve(path, lambda: path.stat().st_mode)
    assert stat.S_IMODE(mode) == 0o600
    assert not path.exists()
