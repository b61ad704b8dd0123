# SPDX-License-Identifier: Apache-2.0
"""What a node's health answers are made of, and who has a port. Servers: tests/network/test_health.py."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.agent import crowd, health
from dataplane.agent.crowd import ANSWERS_A_SECOND
from dataplane.agent.health import HealthServers, Vitals
from dataplane.core.desired import Desired, Limits, Settings
from dataplane.kernel import ports
from dataplane.model.errors import TableFull
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

KEY = ("shop", "cart")
SERVICE = Service(
    *KEY,
    ServiceType.LOAD_BALANCER,
    (ip_address("10.96.0.1"),),
    (ServicePort("http", Protocol.TCP, 80),),
    external_local=True,
    health_check_node_port=30200,
)
SLICE = EndpointSlice(
    "shop",
    "cart-1",
    "cart",
    Family.V4,
    (SlicePort("http", Protocol.TCP, 8080),),
    (SliceEndpoint(ip_address("10.244.1.1"), node_name="one"),),
)
FULL = "the map is full", "raise mapSizes"


@pytest.fixture
def vitals() -> Vitals:
    settings = Settings("one", tuple(Family), (ip_address("192.0.2.1"),))
    desired = Desired(settings, Limits(64, 64, 64, 64), {})
    desired.apply(Batch((SERVICE, SLICE), (), True))
    return Vitals(desired)


def statuses(vitals: Vitals) -> tuple[int, ...]:
    """Of the Service, /healthz and /livez."""
    nodes = (vitals.of_node("/healthz"), vitals.of_node("/livez"))
    return vitals.of_service(KEY, Family.V4).status, *(one.status for one in nodes if one)


class TestVitals:
    def test_nothing_is_healthy_before_all_is_written(self, vitals: Vitals) -> None:
        assert statuses(vitals) == (503, 503, 503)
        assert vitals.of_service(KEY, Family.V4).body["serviceProxyHealthy"] is False
        vitals.written(False, ())
        assert statuses(vitals) == (503, 503, 503)
        vitals.written(True, ())
        assert statuses(vitals) == (200, 200, 200)

    def test_a_refused_write_makes_the_datapath_stale_until_the_next_start(
        self, vitals: Vitals
    ) -> None:
        vitals.written(True, (TableFull("frontends_4: x", *FULL),))
        vitals.written(True, ())
        assert statuses(vitals) == (503, 503, 503)
        assert vitals.of_service(KEY, Family.V4).body["localEndpoints"] == 1

    def test_a_program_that_was_taken_off_makes_the_datapath_stale_until_it_is_back(
        self, vitals: Vitals
    ) -> None:
        vitals.written(True, ())
        vitals.attached = False
        assert statuses(vitals) == (503, 503, 503)
        vitals.attached = True
        assert statuses(vitals) == (200, 200, 200)

    def test_a_name_without_room_makes_nothing_stale(self, vitals: Vitals) -> None:
        vitals.written(True, (TableFull("names: x", *FULL),))
        assert statuses(vitals) == (200, 200, 200)

    def test_a_node_that_is_being_deleted_is_alive_and_takes_no_traffic(
        self, vitals: Vitals
    ) -> None:
        vitals.written(True, ())
        vitals.seen(Node("one", deleting=True))
        assert statuses(vitals) == (200, 503, 200)
        vitals.seen(None)  # deleted at last
        assert statuses(vitals) == (200, 503, 200)
        vitals.seen(Node("one"))
        assert statuses(vitals) == (200, 200, 200)

    def test_the_count_is_that_of_the_moment(self, vitals: Vitals) -> None:
        vitals.written(True, ())
        gone = replace(SLICE, endpoints=())
        vitals.desired.apply(Batch((gone,)))
        assert vitals.of_service(KEY, Family.V4).status == 503

    def test_there_is_no_other_page(self, vitals: Vitals) -> None:
        assert vitals.of_node("/") is None


class TestHealthChecked:
    def test_services_come_and_go(self, vitals: Vitals) -> None:
        desired = vitals.desired
        assert list(desired.health_checked()) == [KEY]
        desired.apply(Batch((replace(SERVICE, health_check_node_port=0),)))
        assert not desired.health_checked()
        desired.apply(Batch((SERVICE,)))
        desired.apply(Batch((), (SERVICE.key,)))
        assert not desired.health_checked()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Opens = Callable[[str], Awaitable[Connection]]  # from which address
ASKED = b"GET /livez HTTP/1.1\r\nHost: node\r\n\r\n"


class TestConnections:
    """Clients of the node's own port."""

    @staticmethod
    def serve(
        vitals: Vitals, clients: Callable[[Opens], Awaitable[None]], most: int, patience: float
    ) -> None:
        async def run() -> None:
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = free.getsockname()
            servers = HealthServers(vitals, (ip_address(address[0]), address[1]), most, patience)
            await servers.settle()
            try:
                async with asyncio.timeout(20):
                    await clients(
                        lambda client: asyncio.open_connection(*address, local_addr=(client, 0))
                    )
            finally:
                await servers.close()

        vitals.written(True, ())
        asyncio.run(run())

    @staticmethod
    async def status(connection: Connection) -> bytes:
        reader, writer = connection
        writer.write(ASKED)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        await reader.readexactly(int(length.split()[1]))
        return head.split()[1]

    def test_a_client_has_a_share_and_keeps_no_other_out(self, vitals: Vitals) -> None:
        async def clients(opens: Opens) -> None:
            silent = [await opens("127.0.0.2") for _ in range(2)]
            for _ in range(40):
                with suppress(ConnectionResetError):
                    reader, writer = await opens("127.0.0.2")
                    silent.append((reader, writer))
                    assert await reader.read() == b""
            asking = await opens("127.0.0.1")
            assert await self.status(asking) == b"200"
            assert not any(reader.at_eof() for reader, _ in silent[:2])
            for _, writer in (*silent, asking):
                writer.close()

        self.serve(vitals, clients, most=8, patience=60)

    def test_clients_that_say_nothing_keep_nobody_out(self, vitals: Vitals) -> None:
        async def clients(opens: Opens) -> None:
            silent = [await opens(f"127.0.1.{number}") for number in range(40)]
            asking = await opens("127.0.0.1")
            assert await self.status(asking) == b"200"
            for reader, _ in silent[:33]:
                assert await reader.read() == b""
            assert not any(reader.at_eof() for reader, _ in silent[33:])
            for _, writer in (*silent, asking):
                writer.close()

        self.serve(vitals, clients, most=8, patience=60)

    def test_the_client_with_most_gives_way_with_whom_was_silent_longest(
        self, vitals: Vitals
    ) -> None:
        async def clients(opens: Opens) -> None:
            eldest = await opens("127.0.0.1")
            asking, silent = await opens("127.0.0.2"), await opens("127.0.0.2")
            assert await self.status(asking) == b"200"
            others = [await opens(f"127.0.0.{number}") for number in range(3, 9)]
            assert await silent[0].read() == b""
            for one in (asking, eldest, *others):
                assert await self.status(one) == b"200"
            for _, writer in (eldest, asking, silent, *others):
                writer.close()

        self.serve(vitals, clients, most=8, patience=60)

    def test_questions_without_a_pause_leave_the_loop_to_others(self, vitals: Vitals) -> None:
        async def count(reader: asyncio.StreamReader) -> int:
            answered = 0
            while said := await reader.readline():
                answered += said.count(b"HTTP/1.1 200")  # a body does not end its line
            return answered

        async def clients(opens: Opens) -> None:
            greedy = [await opens("127.0.0.2") for _ in range(2)]
            for _, writer in greedy:
                writer.write(ASKED * 5_000)
            async with asyncio.TaskGroup() as tasks:
                counts = [tasks.create_task(count(reader)) for reader, _ in greedy]
                asking, loop = await opens("127.0.0.1"), asyncio.get_running_loop()
                end = loop.time() + 1
                while loop.time() < end:
                    assert await self.status(asking) == b"200"
                for _, writer in (*greedy, asking):
                    writer.close()
            took = loop.time() - end + 1
            answered = sum(one.result() for one in counts)
            print(f"{answered} answers in {took:.2f} s")
            assert 0 < answered <= ANSWERS_A_SECOND * took

        self.serve(vitals, clients, most=16, patience=60)

    def test_a_question_whose_client_has_gone_takes_no_turn(self, vitals: Vitals) -> None:
        async def clients(opens: Opens) -> None:
            loop, before = asyncio.get_running_loop(), len(asyncio.all_tasks())
            waited = 0
            for _ in range(20):
                asking = [await opens("127.0.0.2") for _ in range(50)]
                for _, writer in asking:
                    writer.write(ASKED)
                await asyncio.sleep(0.005)
                waited = max(waited, len(asyncio.all_tasks()) - before)
                for _, writer in asking:
                    end = writer.get_extra_info("socket")
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, crowd._RESET)
                    writer.transport.abort()
            assert waited > 25  # they did ask
            start = loop.time()
            probe = await opens("127.0.0.1")
            assert await self.status(probe) == b"200"
            assert loop.time() - start < 0.5
            probe[1].close()
            await asyncio.sleep(0.05)
            assert len(asyncio.all_tasks()) <= before

        self.serve(vitals, clients, most=256, patience=60)

    def test_without_descriptors_the_loop_goes_on_and_the_door_opens_again(
        self, vitals: Vitals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = 0

        def accept(_: socket.socket) -> None:
            nonlocal tries
            tries += 1
            raise OSError(errno.EMFILE, "no descriptor is left")

        async def clients(opens: Opens) -> None:
            with monkeypatch.context() as without:
                without.setattr(socket.socket, "accept", accept)
                asking = await opens("127.0.0.1")
                await asyncio.sleep(0.3)
                assert 1 <= tries <= 4
            assert await self.status(asking) == b"200"
            asking[1].close()

        monkeypatch.setattr(crowd, "_BREATH_SECONDS", 0.1)
        self.serve(vitals, clients, most=8, patience=60)

    @pytest.mark.parametrize("said", [b"", b"GET /livez HT", ASKED], ids=["none", "part", "all"])
    def test_a_client_that_asks_no_more_is_let_go(self, vitals: Vitals, said: bytes) -> None:
        async def clients(opens: Opens) -> None:
            reader, writer = await opens("127.0.0.1")
            writer.write(said)
            answer = await reader.read()  # up to the end of the connection
            assert answer.startswith(b"HTTP/1.1 200" if said == ASKED else b"")
            writer.close()

        self.serve(vitals, clients, most=8, patience=0.2)

    def test_a_port_that_is_taken_is_named_with_its_process(self, vitals: Vitals) -> None:
        async def run() -> tuple[str, ...]:
            with socket.create_server(("127.0.0.1", 0)) as held:
                address, port = held.getsockname()
                servers = HealthServers(vitals, (ip_address(address), port))
                await servers.settle()
                await servers.close()
                return tuple(map(str, servers.problems()))

        taken = [one for one in asyncio.run(run()) if "healthzAddress" in one]
        assert len(taken) == 1
        assert "is taken by " in taken[0]
        assert f"(pid {os.getpid()})" in taken[0]

    def test_the_process_is_looked_for_once_a_taking_and_beside_the_loop(
        self, vitals: Vitals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked: list[tuple[set[int], bool]] = []

        def listeners(wanted: set[int]) -> dict[int, str]:
            beside = threading.current_thread() is not threading.main_thread()
            looked.append((wanted, beside))
            return dict.fromkeys(wanted, f"holder {len(looked)}")

        monkeypatch.setattr(ports, "listeners", listeners)
        monkeypatch.setattr(health, "RETRY_SECONDS", 0.0)

        async def run() -> None:
            with socket.socket() as place:
                place.bind(("127.0.0.1", 0))
                address, port = place.getsockname()
            servers = HealthServers(vitals, (ip_address(address), port))

            async def taken_by() -> list[str]:
                await servers.settle()
                if servers._looking is not None:
                    await servers._looking
                said = [str(one) for one in servers.problems() if "healthzAddress" in str(one)]
                return [one.partition("is taken by ")[2] for one in said]

            for holder in ("holder 1", "holder 2"):
                with socket.create_server((address, port)):
                    assert [await taken_by() for _ in range(3)] == [[holder]] * 3
                assert await taken_by() == []
                for listener in list(servers._open):
                    servers._close(listener)
                servers._served = {}  # so that it is tried again
            assert looked == [({port}, True)] * 2
            await servers.close()

        asyncio.run(run())

    @pytest.mark.parametrize("named", [True, False], ids=["named", "a name of any bytes"])
    def test_nothing_waits_for_the_look_but_the_close(
        self, vitals: Vitals, monkeypatch: pytest.MonkeyPatch, named: bool
    ) -> None:
        go_on, looks = threading.Event(), 0

        def listeners(wanted: set[int]) -> dict[int, str]:
            nonlocal looks
            looks += 1
            assert go_on.wait(10)
            if not named:
                b"\xff".decode()
            return dict.fromkeys(wanted, "holder")

        monkeypatch.setattr(ports, "listeners", listeners)
        monkeypatch.setattr(health, "RETRY_SECONDS", 0.0)

        async def run() -> None:
            with socket.create_server(("127.0.0.1", 0)) as held:
                address, port = held.getsockname()
                servers = HealthServers(vitals, (ip_address(address), port))
                taken = f"node health: healthzAddress: {address}:{port} is taken"
                for _ in range(3):
                    await servers.settle()
                    assert taken in map(str, servers.problems())
                closing = asyncio.create_task(servers.close())
                await asyncio.sleep(0.05)
                assert not closing.done()
                go_on.set()
                await closing
                assert taken + " by holder" * named in map(str, servers.problems())
            assert looks == 1
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(run())


class TestPorts:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_the_process_that_listens_is_named(self, host: str) -> None:
        inet6 = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=inet6) as held:
            port = held.getsockname()[1]
            assert f"(pid {os.getpid()})" in ports.listeners([port])[port]

    def test_a_port_that_nobody_listens_at(self) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            assert ports.listeners([port])[port].endswith("not to be seen from here")
