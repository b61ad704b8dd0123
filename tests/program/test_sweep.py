# SPDX-License-Identifier: Apache-2.0
"""The sweep over real flow tables: what goes, what stays, what it counts and costs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from dataplane.abi.codec import codec
from dataplane.abi.layout import abi
from dataplane.agent.sweeps import BUDGETS, ENDPOINTS, SWEEP, Round, Sweeps
from dataplane.kernel import bpf
from dataplane.kernel.sweep import Sweeper, Swept
from dataplane.model.flow import Flow, FlowKey
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.rows import EndpointRow, FlowBudget, Table

SECOND = 10**9
REPLY, VIA_STACK = 1, 8
ANSWERED, CLOSED, LINGERS, STREAM, HALF_OPEN = 1, 1 | 2 | 4, 1 | 2 | 4 | 16, 1 | 32, 64
SYN_LIFE = 60


UPTIME = 10**5


@pytest.fixture(autouse=True)
def long_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has been up for a day, however long this one has."""
    real = time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: real() + UPTIME * SECOND)


def address(family: Family, number: int) -> IPAddress:
    if family is Family.V4:
        return IPv4Address(0x0A000000 + number)
    return IPv6Address((0xFD << 120) + number)


def flow(family: Family, client: int, age: float = 0.0, **changes: Any) -> Flow:
    """A flow of the pod 10.0.0.client (fd00::client) to one place, silent for `age` seconds."""
    pod, other = address(family, client), address(family, 0xFFFFFF)
    plain = Flow(
        client=pod, frontend=other, source=pod, backend=other,
        client_port=40000, frontend_port=80, source_port=40000, backend_port=80,
        generation=0, last_seen=time.monotonic_ns() - int(age * SECOND), packets=1, bytes=60,
        backend_id=0, service_id=0, ifindex=0, identity=0, version=1,
        protocol=Protocol.TCP, flags=0, state=ANSWERED,
    )  # fmt: skip
    return replace(plain, **changes)


def halves(one: Flow) -> dict[FlowKey, Flow]:
    original = FlowKey(one.client, one.frontend, one.client_port, one.frontend_port, one.protocol)
    reply = FlowKey(one.backend, one.source, one.backend_port, one.source_port, one.protocol)
    return {original: one, reply: replace(one, flags=one.flags | REPLY)}


class FlowTable:
    """A flow table of its own."""

    def __init__(self, family: Family, size: int = 4096) -> None:
        layout = abi(family)
        self.codec = codec(Table("flows", family))
        self.key_size, self.size = layout.struct("flow_key").size, layout.struct("flow").size
        self.fd = bpf.map_create("flows", bpf.MAP_LRU_HASH, self.key_size, self.size, size)
        self.sweeper = Sweeper(self.fd, family)

    def put(self, entries: Mapping[FlowKey, Flow]) -> None:
        bpf.map_update_batch(self.fd, *self.codec.pack(entries.items()))

    def held(self) -> dict[FlowKey, Flow]:
        return {
            self.codec.parse_key(keys[i * self.key_size : (i + 1) * self.key_size]):
            self.codec.parse_value(values[i * self.size : (i + 1) * self.size])
            for keys, values, count in bpf.map_batches(self.fd, self.key_size, self.size)
            for i in range(count)
        }  # fmt: skip

    def sweep(self) -> Swept:
        *_, last = self.sweeper.sweep()
        return last


@pytest.fixture
def flows(family: Family) -> Iterator[FlowTable]:
    made = FlowTable(family)
    yield made
    os.close(made.fd)


def test_a_silent_flow_goes_whole_and_a_live_one_stays(flows: FlowTable, family: Family) -> None:
    silent, live = (
        flow(family, 1, age=SYN_LIFE + 1, state=0),
        flow(family, 2, SYN_LIFE - 5, state=0),
    )
    flows.put(halves(silent) | halves(live))
    swept = flows.sweep()
    assert flows.held() == halves(live)
    assert (swept.entries, swept.deleted) == (4, 2)
    assert swept.live == {address(family, 2).packed: 1}


def test_one_half_in_use_keeps_both(flows: FlowTable, family: Family) -> None:
    """A flow used one way only is alive: never half of one is deleted."""
    for used in (0, REPLY):
        one = flow(family, 1, age=1000, state=0)
        pair = {
            key: replace(half, last_seen=time.monotonic_ns()) if half.flags == used else half
            for key, half in halves(one).items()
        }
        flows.put(pair)
        assert flows.sweep().deleted == 0
        assert flows.held() == pair


def test_a_half_that_is_left_alone_goes(flows: FlowTable, family: Family) -> None:
    for key, half in halves(flow(family, 1, age=1000, state=0)).items():
        flows.put({key: half})
        assert flows.sweep().deleted == 1
        assert not flows.held()


def test_a_tuple_that_another_flow_took_over_stays(flows: FlowTable, family: Family) -> None:
    old = flow(family, 1, age=1000, state=0)
    (original, was), (reply, _) = halves(old).items()
    new = replace(old, client_port=40001, last_seen=time.monotonic_ns(), flags=REPLY)
    flows.put({original: was, reply: new})
    assert flows.sweep().deleted == 1
    assert flows.held() == {reply: new}


@pytest.mark.parametrize(
    ("protocol", "state", "lives"),
    [
        (Protocol.TCP, 0, 60), (Protocol.TCP, CLOSED, 10), (Protocol.TCP, LINGERS, 60),
        (Protocol.TCP, HALF_OPEN, 60), (Protocol.TCP, ANSWERED | HALF_OPEN, 21600),
        (Protocol.TCP, ANSWERED, 21600), (Protocol.UDP, 0, 30), (Protocol.UDP, ANSWERED, 30),
        (Protocol.UDP, STREAM, 180),
        (1, ANSWERED, 30),
    ],
)  # fmt: skip
def test_each_state_has_its_time(
    flows: FlowTable, family: Family, protocol: int, state: int, lives: int
) -> None:
    old = halves(flow(family, 1, age=lives + 2, protocol=protocol, state=state))
    young = halves(flow(family, 2, age=lives - 2, protocol=protocol, state=state))
    flows.put(old | young)
    flows.sweep()
    assert flows.held() == young


def test_what_the_stack_carries_and_what_closed_is_no_live_flow(
    flows: FlowTable, family: Family
) -> None:
    flows.put(halves(flow(family, 1, flags=VIA_STACK)))
    flows.put(halves(flow(family, 2, state=CLOSED)))
    flows.put(halves(flow(family, 3)) | halves(flow(family, 3, client_port=1, source_port=1)))
    assert flows.sweep().live == {address(family, 3).packed: 2}


def test_a_set_clock_changes_nothing(
    flows: FlowTable, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are CLOCK_MONOTONIC, as the programs' are; the wall clock is never asked."""

    def refuse() -> float:
        raise AssertionError("the wall clock was asked")

    one = halves(flow(family, 1))
    flows.put(one)
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, refuse)
    assert flows.sweep().deleted == 0
    assert flows.held() == one


def fill(table: FlowTable, family: Family, count: int) -> None:
    """As many flows, of a pod each: one flow's bytes with another client in them."""
    width = family.bits // 8
    pods = [address(family, number).packed for number in range(count)]
    for place, (key, half) in zip((0, width), halves(flow(family, 1)).items(), strict=True):
        name, value, _ = table.codec.pack([(key, half)])
        keys = b"".join(name[:place] + pod + name[place + width :] for pod in pods)
        middle, end = value[width : 2 * width], value[3 * width :]
        values = b"".join(pod + middle + pod + end for pod in pods)
        bpf.map_update_batch(table.fd, keys, values, count)


@pytest.mark.speed
def test_half_a_million_entries_cost_less_than_a_second(
    family: Family, record_property: Any
) -> None:
    table = FlowTable(family, 700_000)
    try:
        fill(table, family, 250_000)
        began, last, longest = time.thread_time(), time.monotonic(), 0.0
        steps = table.sweeper.sweep()
        swept = next(steps)
        for _ in steps:
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        spent = time.thread_time() - began
        print(
            f"IPv{int(family)}: {swept.entries} entries, {spent:.2f} s of CPU,"
            f" longest step {longest * 1000:.0f} ms"
        )
        assert swept.entries > 490_000  # an LRU map keeps a few places free
        assert spent <= 1.0
    finally:
        os.close(table.fd)


def test_rest_keeps_the_sweep_below_a_hundredth_of_a_core() -> None:
    assert Round(entries=10, deleted=0, seconds=0.01).rest == 10
    assert Round(entries=500_000, deleted=0, seconds=0.5).rest == 50


class Held:
    """Endpoints and budgets in memory, as agent.tables.Tables has them."""

    def __init__(self, rows: dict[Table, dict[Any, Any]]) -> None:
        self.rows = rows

    def items(self, table: Table) -> list[tuple[Any, Any]]:
        return list(self.rows.get(table, {}).items())

    def put(self, table: Table, rows: Mapping[Any, Any]) -> None:
        self.rows[table].update(rows)


def test_each_pods_number_of_flows_is_made_true() -> None:
    """Over both families; a pod that is gone has none."""
    tables = {family: FlowTable(family) for family in Family}
    pod = EndpointRow(ifindex=9, id=3, mac=bytes(6))
    held = Held(
        {
            BUDGETS: {3: FlowBudget(77), 4: FlowBudget(5)},
            SWEEP: {},
            ENDPOINTS[Family.V4]: {address(Family.V4, 1): pod},
            ENDPOINTS[Family.V6]: {address(Family.V6, 1): pod},
        }
    )
    try:
        for family, table in tables.items():
            table.put(halves(flow(family, 1)) | halves(flow(family, 2)))
        sweeps = Sweeps({family: table.fd for family, table in tables.items()}, held)  # type: ignore[arg-type]
        done = asyncio.run(sweeps.round())
        assert done.entries == 8
        assert held.rows[BUDGETS] == {3: FlowBudget(2), 4: FlowBudget(0)}
        assert held.rows[SWEEP][0].until > time.monotonic_ns() + 2 * done.rest * SECOND
    finally:
        for table in tables.values():
            os.close(table.fd)
