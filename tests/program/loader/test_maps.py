# SPDX-License-Identifier: Apache-2.0
"""Rows in and out of real maps: batches, full maps, places, counters of all CPUs."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from dataplane.agent.config import parse
from dataplane.agent.main import run
from dataplane.core.plan import Delete, Grace, Plan, Upsert
from dataplane.kernel import bpf, loader, probes
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.loader import Datapath
from dataplane.kernel.maps import Maps, Writer
from dataplane.model.errors import BadEnvironment, Contradiction
from dataplane.model.flow import Counter, ServiceCounter
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import (
    BackendRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    PeerRow,
    RouteKey,
    RouteRow,
    ServiceRow,
    Table,
)

BACKENDS, COUNTERS = Table("backends", Family.V6), Table("service_counters")
FRONTENDS, ROUTES = Table("frontends", Family.V4), Table("routes", Family.V4)
SERVICES = Table("services")
NAMES, PEERS, DROPS = Table("names"), Table("peers"), Table("drops", Family.V4)
A, A6 = IPv4Address("10.0.0.1"), IPv6Address("fd00::1")


@pytest.fixture
def datapath(quick: Bundle, bpffs: Path) -> Iterator[Datapath]:
    with loader.load(quick, bpffs, {"frontends": 100}) as loaded:
        yield loaded


def frontends(first: int, last: int, service: int = 1) -> list[tuple[FrontendKey, FrontendRow]]:
    return [(FrontendKey(A, port, 6), FrontendRow(service, 2)) for port in range(first, last)]


def test_a_reader_of_the_pins_sees_what_the_writer_wrote(datapath: Datapath, bpffs: Path) -> None:
    routes = [(RouteKey(n, A), RouteRow(5, 1, 3, A6 if n % 2 else A)) for n in range(1, 33)]
    peers: list[tuple[IPAddress, PeerRow]] = [(A, PeerRow(1)), (A6, PeerRow(2))]
    names = [(NameKey(1, 7), NameRow("shop/cart:http/TCP/4"))]
    plan = Plan((Upsert(ROUTES, routes), Upsert(PEERS, peers), Grace(), Upsert(NAMES, names)))
    assert Writer(datapath).execute(plan) == ()
    maps = Maps(bpffs)
    assert len(dict(maps.items(ROUTES))) == 32  # host bits are zeroed by nobody but the writer
    assert dict(maps.items(PEERS)) == dict(peers)
    assert maps.get(NAMES, NameKey(1, 7)) == NameRow("shop/cart:http/TCP/4")
    assert maps.get(NAMES, NameKey(1, 8)) is None
    maps.close()


def test_the_kernel_refuses_writes_by_a_reader(datapath: Datapath, bpffs: Path) -> None:
    fds = loader.open_pinned(bpffs)
    with pytest.raises(bpf.BpfError, match="Operation not permitted"):
        bpf.map_update(fds[NAMES], bytes(8), bytes(320))
    for fd in fds.values():
        os.close(fd)


def test_a_full_map_names_who_is_left_out_and_serves_the_rest(datapath: Datapath) -> None:
    writer, maps = Writer(datapath), Maps(datapath)
    writer.execute(Plan((Upsert(FRONTENDS, frontends(1, 100)),)))
    # One more fits; a known one still changes; the plan goes on.
    rows = frontends(100, 103) + frontends(1, 2, service=9)
    refused = writer.execute(Plan((Upsert(FRONTENDS, rows), Upsert(PEERS, [(A, PeerRow(1))]))))
    assert [error.what.partition("port=")[2][:3] for error in refused] == ["101", "102"]
    assert "full at 100 entries; raise mapSizes.frontends" in str(refused[0])
    assert len(dict(maps.items(FRONTENDS))) == 100
    assert maps.get(FRONTENDS, FrontendKey(A, 1, 6)) == FrontendRow(9, 2)
    assert maps.get(PEERS, A) == PeerRow(1)


def test_deleting_what_is_not_there_deletes_the_rest(datapath: Datapath) -> None:
    writer, maps = Writer(datapath), Maps(datapath)
    writer.execute(Plan((Upsert(FRONTENDS, frontends(1, 10)),)))
    keys = [FrontendKey(A, port, 6) for port in (1, 77, 2, 78, 3)]
    writer.execute(Plan((Delete(FRONTENDS, keys),)))
    assert sorted(key.port for key, _ in maps.items(FRONTENDS)) == [4, 5, 6, 7, 8, 9]


def test_a_deleted_place_of_an_array_is_zero_and_not_listed(datapath: Datapath) -> None:
    writer, maps = Writer(datapath), Maps(datapath)
    row = BackendRow(1, A6, 1, 80, 6, 7)
    writer.execute(Plan((Upsert(BACKENDS, [(3, row), (4, row)]), Delete(BACKENDS, [3]))))
    assert dict(maps.items(BACKENDS)) == {4: row}
    assert maps.get(BACKENDS, 3) is None


def test_a_place_beyond_an_array_is_an_error_with_its_name(datapath: Datapath) -> None:
    row = BackendRow(1, A6, 1, 80, 6, 7)
    refused = Writer(datapath).execute(Plan((Upsert(BACKENDS, [(1 << 20, row)]),)))
    assert [error.what for error in refused] == ["backends_6: 1048576"]


def test_counters_are_sums_over_all_cpus(datapath: Datapath) -> None:
    cpus = bpf.possible_cpus()
    value = b"".join(struct.pack("=QQ", cpu + 1, 100) for cpu in range(cpus))
    bpf.map_update(datapath.maps[DROPS], struct.pack("=I", 50), value)
    maps = Maps(datapath)
    assert maps.counters(DROPS) == {50: Counter(cpus * (cpus + 1) // 2, 100 * cpus)}
    assert list(maps.per_cpu(DROPS, 50)) == [Counter(cpu + 1, 100) for cpu in range(cpus)]
    with pytest.raises(Contradiction, match="ask for its counters"):
        next(maps.items(DROPS))


def test_counters_of_an_id_can_be_cleared(datapath: Datapath) -> None:
    maps, key = Maps(datapath), struct.pack("=I", 5)
    bpf.map_update(datapath.maps[COUNTERS], key, struct.pack("=QQQ", 1, 2, 3) * bpf.possible_cpus())
    assert isinstance(maps.counters(COUNTERS)[5], ServiceCounter)
    Writer(datapath).execute(Plan((Delete(COUNTERS, [5]),)))
    assert maps.counters(COUNTERS) == {}


def test_a_map_of_other_sizes_is_not_misread(datapath: Datapath, bpffs: Path) -> None:
    (bpffs / "v1" / "map" / "peers").unlink()
    fd = bpf.map_create("peers", bpf.MAP_HASH, 20, 8, 4)
    bpf.obj_pin(fd, bpffs / "v1" / "map" / "peers")
    os.close(fd)
    with pytest.raises(BadEnvironment, match="use the podlane that loaded it"):
        dict(Maps(bpffs).items(PEERS))


@pytest.mark.speed
def test_a_hundred_thousand_rows_are_written_within_a_second(quick: Bundle, bpffs: Path) -> None:
    rows = [(id_, BackendRow(id_, A6, 1, 80, 6, 7)) for id_ in range(1, 100_001)]
    with loader.load(quick, bpffs, {"backends": 100_001}) as loaded:
        begun = time.process_time()
        Writer(loaded).execute(Plan((Upsert(BACKENDS, rows),)))
        assert time.process_time() - begun < 1
        assert sum(1 for _ in Maps(loaded).items(BACKENDS)) == 100_000


def test_this_kernel_has_what_podlane_needs() -> None:
    assert [str(feature) for feature in probes.probe() if not feature.present] == []
    probes.require()


def test_an_agent_on_a_kernel_without_a_feature_names_it_and_makes_nothing(
    tmp_path: Path, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(probes._HELPERS, "bpf_none", (0xFFFF, "a thing that no kernel has"))
    folders = {key: str(tmp_path / key) for key in ("runDir", "stateDir")}
    config = parse({"nodeName": "a", "bpffsDir": str(bpffs / "node"), **folders}, "test")
    with pytest.raises(BadEnvironment, match="helper bpf_none, needed for a thing that") as error:
        run(config, tmp_path)
    assert error.value.exit_status == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bpffs"]
    assert not (bpffs / "node").exists()


def test_a_service_is_stored_in_the_kernel_s_own_memory_word_by_word(datapath: Datapath) -> None:
    words = bpf.map_words(datapath.maps[SERVICES], 24, 1024)
    row = ServiceRow((1 << 60) + 1, (1 << 59) + 2, 3, 4)
    refused = Writer(datapath).execute(Plan((Upsert(SERVICES, [(7, row), (1024, row), (8, row)]),)))
    assert [full.what for full in refused] == ["services: 1024"]
    assert list(words[21:27]) == [row.cluster, row.local, 3 | 4 << 32] * 2
    assert dict(Maps(datapath).items(SERVICES)) == {7: row, 8: row}
    Writer(datapath).execute(Plan((Delete(SERVICES, [7]),)))
    assert dict(Maps(datapath).items(SERVICES)) == {8: row}
