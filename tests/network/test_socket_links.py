# SPDX-License-Identifier: Apache-2.0
"""Links on a cgroup of the test's own: what is put there, kept, replaced and left alone.

The programs are two instructions long; what the real ones do is in test_sockets.
"""

from __future__ import annotations

import os
import secrets
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dataplane.kernel import bpf, sockets
from dataplane.model.errors import BadEnvironment
from tests.network import life

CONNECT, SENDMSG = bpf.CGROUP_INET4_CONNECT, bpf.CGROUP_UDP4_SENDMSG
WANTED = {"connect_4": CONNECT, "sendmsg_4": SENDMSG}
_GO_ON = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # return 1
_PROG_ATTACH, _PROG_DETACH = 8, 9


@pytest.fixture
def cgroup() -> Iterator[Path]:
    made = sockets.find_cgroup(None) / f"podlane-test-{secrets.token_hex(4)}"
    made.mkdir()
    yield made
    if made.exists():
        made.rmdir()


@pytest.fixture
def root(bpffs: Path) -> Path:
    made = bpffs / "v1"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def load(closing: ExitStack, name: str, attach_type: int) -> int:
    fd = bpf.prog_load(name, bpf.PROG_CGROUP_SOCK_ADDR, _GO_ON, "GPL", attach_type)
    closing.callback(os.close, fd)
    return fd


def load_all(closing: ExitStack) -> dict[str, int]:
    return {name: load(closing, name, place) for name, place in WANTED.items()}


def links(root: Path) -> dict[str, bpf.LinkInfo]:
    found = {}
    for path in (root / "link").iterdir():
        fd = bpf.obj_get(path)
        found[path.name] = bpf.link_info(fd)
        os.close(fd)
    return found


def there(cgroup: Path, attach_type: int = CONNECT) -> list[int]:
    fd = os.open(cgroup, os.O_RDONLY)
    try:
        return bpf.cgroup_programs(fd, attach_type)[1]
    finally:
        os.close(fd)


def test_a_second_attach_changes_nothing(cgroup: Path, root: Path, closing: ExitStack) -> None:
    programs = load_all(closing)
    assert sockets.attach(WANTED, programs, cgroup, root) == ["connect_4", "sendmsg_4"]
    before = links(root)
    assert sockets.attach(WANTED, programs, cgroup, root) == []
    assert sockets.wrong(WANTED, programs, cgroup, root) == []
    assert links(root) == before
    assert there(cgroup) == [bpf.prog_info(programs["connect_4"]).id]


def test_another_program_takes_its_predecessor_s_link(
    cgroup: Path, root: Path, closing: ExitStack
) -> None:
    programs = load_all(closing)
    sockets.attach(WANTED, programs, cgroup, root)
    before = links(root)
    programs["connect_4"] = load(closing, "connect_4", CONNECT)
    assert sockets.wrong(WANTED, programs, cgroup, root) == ["connect_4"]
    assert sockets.attach(WANTED, programs, cgroup, root) == ["connect_4"]
    after = links(root)
    assert {name: info.id for name, info in after.items()} == {
        name: info.id for name, info in before.items()
    }
    assert there(cgroup) == [bpf.prog_info(programs["connect_4"]).id]


def test_a_link_of_another_cgroup_or_of_a_removed_one_is_made_anew(
    cgroup: Path, root: Path, closing: ExitStack
) -> None:
    programs = load_all(closing)
    other = cgroup / "other"
    other.mkdir()
    sockets.attach(WANTED, programs, other, root)
    assert sockets.attach(WANTED, programs, cgroup, root) == ["connect_4", "sendmsg_4"]
    assert len(there(cgroup)) == 1
    # the kernel takes a link that has lost its pin away a little later
    life.wait(lambda: there(other) == [])
    sockets.attach(WANTED, programs, other, root)
    life.wait(lambda: there(cgroup) == [])
    other.rmdir()
    assert sockets.attach(WANTED, programs, cgroup, root) == ["connect_4", "sendmsg_4"]
    assert len(there(cgroup)) == 1


def test_links_of_older_versions_go_when_ours_are_there(
    cgroup: Path, root: Path, closing: ExitStack
) -> None:
    programs = load_all(closing)
    older = root.with_name("v0")
    older.mkdir()
    sockets.attach(WANTED, programs, cgroup, older)
    old = {"connect_4": CONNECT}
    sockets.attach(old, programs, cgroup, root)
    (root / "link" / "connect_4").rename(root / "link" / "connect_gone")  # a hook that was dropped
    sockets.attach(WANTED, programs, cgroup, root)
    assert set(links(root)) == set(WANTED)
    life.wait(lambda: len(there(cgroup)) == 2)
    assert sockets.drop_other_versions(root) == [
        str(older / "link" / name) for name in ("connect_4", "sendmsg_4")
    ]
    life.wait(lambda: len(there(cgroup)) == 1)
    assert sockets.detach(root.parent) == 2
    life.wait(lambda: there(cgroup) == [])


def test_others_programs_stay(cgroup: Path, root: Path, closing: ExitStack) -> None:
    theirs = load(closing, "theirs", CONNECT)
    fd = os.open(cgroup, os.O_RDONLY)
    closing.callback(os.close, fd)
    closing.callback(os.close, bpf.link_create(theirs, fd, CONNECT))
    programs = load_all(closing)
    sockets.attach(WANTED, programs, cgroup, root)
    assert len(there(cgroup)) == 2
    assert sockets.detach(root.parent) == 2
    life.wait(lambda: there(cgroup) == [bpf.prog_info(theirs).id])


def test_a_program_that_lets_no_other_in_is_named(
    cgroup: Path, root: Path, closing: ExitStack
) -> None:
    theirs = load(closing, "theirs", CONNECT)
    fd = os.open(cgroup, os.O_RDONLY)
    closing.callback(os.close, fd)
    bpf._bpf(_PROG_ATTACH, "PROG_ATTACH", bytearray(struct.pack("=IIII", fd, theirs, CONNECT, 0)))
    number = bpf.prog_info(theirs).id
    with pytest.raises(
        BadEnvironment, match=rf"for itself alone: theirs \(id {number}\) on {cgroup}"
    ):
        sockets.attach(WANTED, load_all(closing), cgroup, root)
    assert there(cgroup) == [number]


def test_a_cgroup2_that_is_mounted_elsewhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path, closing: ExitStack
) -> None:
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", elsewhere], check=True)
    closing.callback(lambda: subprocess.run(["umount", elsewhere], check=True))
    # as if the usual place had none, like a machine on which version 1 is there
    lines = Path("/proc/self/mounts").read_text().splitlines(keepends=True)
    mounts = tmp_path / "mounts"
    mounts.write_text("".join(line for line in lines if str(tmp_path) in line))
    monkeypatch.setattr(sockets, "_MOUNTS", mounts)
    assert sockets.find_cgroup(None) == elsewhere
    made = elsewhere / f"podlane-test-{secrets.token_hex(4)}"
    made.mkdir()
    closing.callback(made.rmdir)
    closing.callback(sockets.detach, root.parent)
    sockets.attach(WANTED, load_all(closing), made, root)
    assert len(there(made)) == 1


def test_without_cgroup2_it_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: Path
) -> None:
    assert sockets.find_cgroup(cgroup) == cgroup
    with pytest.raises(BadEnvironment, match="is not in a cgroup2 filesystem; cgroup2 is mounted"):
        sockets.find_cgroup(tmp_path)
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /hidden\\040here cgroup2 rw 0 0\n"
    )
    monkeypatch.setattr(sockets, "_MOUNTS", mounts)
    with pytest.raises(BadEnvironment, match="no such filesystem is mounted"):
        sockets.find_cgroup(None)
