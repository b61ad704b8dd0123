# SPDX-License-Identifier: Apache-2.0
"""Bundle to kernel: what is pinned, what a second load does, what a failed one leaves."""

from __future__ import annotations

import dataclasses
import os
import struct
import threading
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dataplane.abi.codec import codec
from dataplane.abi.layout import abi
from dataplane.core.plan import Plan, Upsert
from dataplane.kernel import bpf, loader
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.maps import Maps, Writer
from dataplane.model.errors import BadEnvironment, BadInput, CompileError
from dataplane.model.flow import Flow, FlowKey
from dataplane.model.net import Family
from dataplane.model.rows import BackendRow, FrontendKey, FrontendRow, Table

BACKENDS, FLOWS = Table("backends", Family.V4), Table("flows", Family.V4)
FRONTENDS = Table("frontends", Family.V4)
A, B = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")


def pins(bpffs: Path) -> set[str]:
    return {str(p.relative_to(bpffs)) for p in bpffs.rglob("*") if not p.name.endswith(".debug")}


def ids(datapath: loader.Datapath) -> dict[str, int]:
    return {name: bpf.prog_info(fd).id for name, fd in datapath.programs.items()}


def broken(bundle: Bundle) -> Bundle:
    """Its first program reads through a number."""
    read_null = b"\xb7\x01\0\0\0\0\0\0" + b"\x79\x10\0\0\0\0\0\0" + b"\x95\0\0\0\0\0\0\0"
    bad = dataclasses.replace(bundle.programs[0], instructions=read_null, relocations={})
    return dataclasses.replace(
        bundle, programs=(bad, *bundle.programs[1:]), fingerprint=f"{bundle.fingerprint} broken"
    )


def flow_row(source_port: int) -> Flow:
    return Flow(A, B, A, B, 1, 2, source_port, 4, 5, 6, 7, 8, 9, 10, 0, 0, 1, 6, 0, 0)


def test_every_map_and_program_is_pinned_under_its_name(bundle: Bundle, bpffs: Path) -> None:
    with loader.load(bundle, bpffs) as datapath:
        assert datapath.loaded
        assert pins(bpffs) == (
            {"v1", "v1/map", "v1/prog", "v1/bundle"}
            | {f"v1/map/{spec.pin}" for spec in bundle.maps}
            | {f"v1/prog/{program.name}" for program in bundle.programs}
        )
        for table, fd in datapath.maps.items():
            assert bpf.map_info(fd).name == table.pin[:15]
        for name, fd in datapath.programs.items():
            assert bpf.prog_info(fd).name == name[:15]


@pytest.mark.speed
def test_a_second_load_loads_nothing_and_takes_no_time(quick: Bundle, bpffs: Path) -> None:
    with loader.load(quick, bpffs) as first:
        begun = time.process_time()
        with loader.load(quick, bpffs) as second:
            assert time.process_time() - begun < 0.1
            assert not second.loaded
            assert ids(first) == ids(second)


def test_a_changed_program_gets_a_new_pin_and_the_maps_stay(quick: Bundle, bpffs: Path) -> None:
    changed = dataclasses.replace(quick, fingerprint="other", programs=quick.programs[1:])
    with loader.load(quick, bpffs) as first, loader.load(changed, bpffs) as second:
        assert second.loaded
        assert not set(ids(first).values()) & set(ids(second).values())
        assert [bpf.map_info(fd).id for fd in first.maps.values()] == [
            bpf.map_info(fd).id for fd in second.maps.values()
        ]
    assert f"v1/prog/{quick.programs[0].name}" not in pins(bpffs)


def test_programs_that_run_on_keep_those_that_they_end_in_until_settled(
    quick: Bundle, bpffs: Path
) -> None:
    loader.load(quick, bpffs).close()
    # the second of these loads finds what one left that was killed before it could settle
    for name in ("other", "another"):
        loader.load(dataclasses.replace(quick, fingerprint=name), bpffs).close()
    place = struct.pack("=I", abi(Family.V4).constant("TAIL_ANSWER"))
    with loader.load(dataclasses.replace(quick, fingerprint="another"), bpffs) as datapath:
        assert not datapath.loaded
        kept = sorted((bpffs / "v1/map").glob("old_*"))
        assert [path.name.rpartition("_")[0] for path in kept] == [
            "old_tails_4", "old_tails_4", "old_tails_6", "old_tails_6",
        ]  # fmt: skip
        for path in (*kept, bpffs / "v1/map/tails_4"):
            fd = bpf.obj_get(path)
            assert bpf.map_lookup(fd, place, 4), path
            os.close(fd)
        datapath.settle()
    assert not list((bpffs / "v1/map").glob("old_*"))


@pytest.mark.parametrize(
    "gone", ["v1/map/peers", "v1/map/tails_4", "v1/prog/to_pod_4", "v1/bundle"]
)
def test_a_pin_that_somebody_deleted_is_made_again(quick: Bundle, bpffs: Path, gone: str) -> None:
    loader.load(quick, bpffs).close()
    before = pins(bpffs)
    (bpffs / gone).unlink()
    with loader.load(quick, bpffs) as datapath:
        assert datapath.loaded  # programs hold their maps: a new map needs new programs
        datapath.settle()
    assert pins(bpffs) == before


def test_a_rejected_program_leaves_nothing_behind(quick: Bundle, bpffs: Path) -> None:
    name = quick.programs[0].name
    with pytest.raises(CompileError, match=rf"program {name}: .*R1 invalid mem access") as error:
        loader.load(broken(quick), bpffs / "node")
    assert "processed" in error.value.log
    assert pins(bpffs) == set()


def test_a_rejected_program_leaves_what_was_loaded_in_place(quick: Bundle, bpffs: Path) -> None:
    with loader.load(quick, bpffs) as first:
        before = pins(bpffs)
        with pytest.raises(CompileError):
            loader.load(broken(quick), bpffs)
        assert pins(bpffs) == before
        with loader.load(quick, bpffs) as again:
            assert not again.loaded
            assert ids(first) == ids(again)


def test_what_a_killed_load_left_is_swept(quick: Bundle, bpffs: Path) -> None:
    loader.load(quick, bpffs).close()
    before = pins(bpffs)
    fd = bpf.map_create("left", bpf.MAP_ARRAY, 4, 4, 1)
    bpf.obj_pin(fd, bpffs / "v1" / "map" / "new_left")
    os.close(fd)
    loader.load(quick, bpffs).close()
    assert pins(bpffs) == before


def test_two_loads_at_once_end_with_one_set_of_pins(quick: Bundle, bpffs: Path) -> None:
    loaded: list[loader.Datapath] = []

    def load() -> None:
        loaded.append(loader.load(quick, bpffs))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(datapath.loaded for datapath in loaded) == [False, False, False, True]
    assert all(ids(datapath) == ids(loaded[0]) for datapath in loaded)
    for datapath in loaded:
        datapath.close()


def test_a_pinned_map_of_another_shape_is_refused_by_name(quick: Bundle, bpffs: Path) -> None:
    (bpffs / "v1" / "map").mkdir(parents=True)
    fd = bpf.map_create("flows_4", bpf.MAP_LRU_HASH, 16, 64, 128)
    bpf.obj_pin(fd, bpffs / "v1" / "map" / "flows_4")
    os.close(fd)
    before = pins(bpffs)
    with pytest.raises(BadEnvironment, match=r"map/flows_4: it is lru_hash of 16-byte keys, 64-"):
        loader.load(quick, bpffs)
    assert pins(bpffs) - {"v1/prog"} == before


def test_a_size_that_grows_keeps_what_the_map_holds(quick: Bundle, bpffs: Path) -> None:
    backends = [(id_, BackendRow(1, A, 1, 80, 6, 7)) for id_ in (1, 1023)]
    frontends = [(FrontendKey(A, port, 6), FrontendRow(1, 2)) for port in range(1, 500)]
    with loader.load(quick, bpffs) as first:
        Writer(first).execute(Plan((Upsert(BACKENDS, backends), Upsert(FRONTENDS, frontends))))
    with loader.load(quick, bpffs, {"backends": 5000, "frontends": 600}) as second:
        second.settle()
        assert second.loaded
        maps = Maps(second)
        assert dict(maps.items(BACKENDS)) == dict(backends)
        assert dict(maps.items(FRONTENDS)) == dict(frontends)
        assert bpf.map_info(second.maps[BACKENDS]).max_entries == 5000
    with loader.load(quick, bpffs, {"backends": 5000, "frontends": 600}) as third:
        assert not third.loaded


def test_a_size_below_what_the_map_holds_is_refused(quick: Bundle, bpffs: Path) -> None:
    rows = [(900, BackendRow(1, A, 1, 80, 6, 7))]
    with loader.load(quick, bpffs) as first:
        Writer(first).execute(Plan((Upsert(BACKENDS, rows),)))
        with pytest.raises(BadEnvironment, match=r"mapSizes\.backends: backends_4 holds more"):
            loader.load(quick, bpffs, {"backends": 900})
        assert bpf.map_info(first.maps[BACKENDS]).max_entries == 1024
    loader.load(quick, bpffs, {"backends": 901}).close()


def test_flows_that_old_programs_made_during_a_change_of_size_are_brought_over(
    quick: Bundle, bpffs: Path
) -> None:
    key, other = FlowKey(A, B, 1, 2, 6), FlowKey(A, B, 3, 2, 6)
    form = codec(FLOWS)
    with loader.load(quick, bpffs) as old, loader.load(quick, bpffs, {"flows": 4096}) as new:
        bpf.map_update(old.maps[FLOWS], form.key(key), form.value(flow_row(1)))
        bpf.map_update(old.maps[FLOWS], form.key(other), form.value(flow_row(1)))
        bpf.map_update(new.maps[FLOWS], form.key(other), form.value(flow_row(2)))
        new.settle()
        assert dict(Maps(new).items(FLOWS)) == {key: flow_row(1), other: flow_row(2)}


@pytest.mark.parametrize("name", ["flow", "drops", "node"])
def test_a_size_of_no_map_is_refused_by_name(quick: Bundle, bpffs: Path, name: str) -> None:
    with pytest.raises(BadInput, match=rf"mapSizes\.{name}: no such map"):
        loader.load(quick, bpffs, {name: 5})


def test_a_bundle_of_other_structs_is_refused_by_name(quick: Bundle, bpffs: Path) -> None:
    maps = tuple(
        dataclasses.replace(spec, value_size=4) if spec.pin == "backends_6" else spec
        for spec in quick.maps
    )
    with pytest.raises(BadInput, match="map backends_6 of the bundle: has values of 4 bytes"):
        loader.load(dataclasses.replace(quick, maps=maps), bpffs)


def test_a_folder_that_is_no_bpffs_is_refused_with_the_mount_command(
    quick: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BadEnvironment, match=rf"mount -t bpf bpf {tmp_path}/node"):
        loader.load(quick, tmp_path / "node")
    assert not (tmp_path / "node").exists()


def test_a_reader_of_an_empty_folder_is_told_what_to_do(bpffs: Path) -> None:
    with pytest.raises(BadEnvironment, match="nothing is pinned there; run `podlane agent`"):
        Maps(bpffs)


def test_no_file_descriptor_is_left_open(quick: Bundle, bpffs: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    loader.load(quick, bpffs).close()
    loader.load(quick, bpffs, {"flows": 99}).close()
    with pytest.raises(CompileError):
        loader.load(broken(quick), bpffs, {"flows": 100})
    assert len(os.listdir("/proc/self/fd")) == before
