# SPDX-License-Identifier: Apache-2.0
"""Socket programs on a cgroup: found, put there by links, compared, taken away.

A link stands beside all others' programs, of other nodes too, and pushes none out; it is
pinned below the node's bpffs folder, so that it outlives the agent:

    v1/link/NAME    the link of program NAME

The programs act on sockets of one network namespace only (its cookie in the node's row),
so the cgroup may be the root that all processes of the machine are in. Must not load
programs or write maps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dataplane.kernel import bpf
from dataplane.kernel.bpf import BpfError
from dataplane.kernel.bundle import Bundle
from dataplane.model.errors import BadEnvironment

FOLDER = "link"
_CGROUP2_MAGIC = 0x63677270
_MOUNTS = Path("/proc/self/mounts")
_NEW = "new_"  # as the loader's: what a start that was killed left is swept by the next load


_OF_HOST = Path("/host")  # where `podlane manifests` mounts it


def find_cgroup(wanted: Path | None) -> Path:
    """The cgroup whose processes are the node's: the configured one, else the root.

    Raises:
        BadEnvironment: there is no cgroup2, or the configured folder is not in it.
    """
    # A container has a cgroup2 of its own, in which it is alone; below /host stands the node's.
    mounted = sorted(
        (path for path in _mounted() if _is_cgroup2(path)),
        key=lambda path: not path.is_relative_to(_OF_HOST),
    )
    if wanted is None:
        if mounted:
            return mounted[0]
        raise BadEnvironment(
            "cgroup2",
            "no such filesystem is mounted, and without it the node's own processes reach no Service",
            "mount one: mkdir -p /sys/fs/cgroup/unified &&"
            " mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        )
    if _is_cgroup2(wanted):
        return wanted
    why = "is not in a cgroup2 filesystem" if wanted.is_dir() else "is no folder"
    step = f"cgroup2 is mounted on {mounted[0]}: name a folder of it, or leave the key out"
    raise BadEnvironment(
        f"cgroupRoot {wanted}", why, step if mounted else "mount -t cgroup2 cgroup2 FOLDER"
    )


def _mounted() -> Iterator[Path]:
    for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, path, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            # fstab(5): blanks and backslashes are octal there.
            yield Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path))


def _is_cgroup2(path: Path) -> bool:
    """By the filesystem itself: a mount may be hidden under another one."""
    room = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), room) != 0:
        return False
    kind: int = struct.unpack_from("=l", room)[0]
    return kind & 0xFFFFFFFF == _CGROUP2_MAGIC


def places(bundle: Bundle) -> dict[str, int]:
    """By the name of each socket program, the place on a cgroup that it is for."""
    kinds = (bpf.PROG_CGROUP_SOCK_ADDR, bpf.PROG_CGROUP_SOCK)
    return {one.name: one.attach_type for one in bundle.programs if one.type in kinds}


def attach(
    wanted: Mapping[str, int], programs: Mapping[str, int], cgroup: Path, root: Path
) -> list[str]:
    """Make the pinned links below `root` (v1/) be these; the names of the programs that moved.

    `wanted`: as `places` says; `programs`: fds by name. A link whose program is another
    gets the new one in one step. Nothing changes where all is as it should be.

    Raises:
        BadEnvironment: the kernel refuses, for one because of someone else's program.
    """
    folder = root / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    moved = []
    with _opened(cgroup) as fd:
        for name, attach_type in sorted(wanted.items()):
            if _settle(folder / name, programs[name], attach_type, cgroup, fd):
                moved.append(name)
    for left in folder.iterdir():
        if left.name not in wanted:
            left.unlink()
    return moved


def wrong(
    wanted: Mapping[str, int], programs: Mapping[str, int], cgroup: Path, root: Path
) -> list[str]:
    """The programs whose link is missing, elsewhere or another's."""
    return [
        name
        for name, attach_type in sorted(wanted.items())
        if not _stands(root / FOLDER / name, bpf.prog_info(programs[name]).id, attach_type, cgroup)
    ]


def drop_other_versions(root: Path) -> list[str]:
    """Unpin the links of other versions of podlane, whose programs would translate beside ours."""
    gone = []
    for folder in root.parent.glob(f"v[0-9]*/{FOLDER}"):
        if folder.parent != root:
            gone += [str(path) for path in _unpin(folder)]
    return gone


def detach(bpffs: Path) -> int:
    """Unpin all links of a node, whichever version made them; how many there were."""
    return sum(1 for folder in bpffs.glob(f"v[0-9]*/{FOLDER}") for _ in _unpin(folder))


@contextmanager
def attached(
    wanted: Mapping[str, int], programs: Mapping[str, int], cgroup: Path
) -> Iterator[None]:
    """The programs on a cgroup until the end of the block, without pins: for a trial."""
    with ExitStack() as closing, _opened(cgroup) as fd:
        for name, attach_type in wanted.items():
            closing.callback(os.close, _link(name, programs[name], attach_type, cgroup, fd))
        yield


# ---- one link ----
def _stands(path: Path, program: int, attach_type: int, cgroup: Path) -> bool:
    link = _reopen(path)
    if link is None:
        return False
    with _closing(link):
        info = bpf.link_info(link)
    there = info.type, info.cgroup, info.attach_type, info.prog_id
    return there == (bpf.LINK_CGROUP, cgroup.stat().st_ino, attach_type, program)


def _settle(path: Path, program: int, attach_type: int, cgroup: Path, fd: int) -> bool:
    """Whether anything had to be done."""
    link = _reopen(path)
    if link is not None:
        with _closing(link):
            info = bpf.link_info(link)
            here = bpf.LINK_CGROUP, cgroup.stat().st_ino, attach_type
            if (info.type, info.cgroup, info.attach_type) == here:
                if info.prog_id == bpf.prog_info(program).id:
                    return False
                try:
                    bpf.link_update(link, program)
                except BpfError as error:
                    raise BadEnvironment(f"link {path}", str(error)) from error
                return True
    made = _link(path.name, program, attach_type, cgroup, fd)
    with _closing(made):
        new = path.with_name(_NEW + path.name)
        new.unlink(missing_ok=True)
        bpf.obj_pin(made, new)
        new.replace(path)
    return True


def _reopen(path: Path) -> int | None:
    try:
        return bpf.obj_get(path)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise BadEnvironment(f"pinned link {path}", str(error)) from error


def _link(name: str, program: int, attach_type: int, cgroup: Path, fd: int) -> int:
    try:
        return bpf.link_create(program, fd, attach_type)
    except BpfError as error:
        why, step = str(error), ""
        if error.errno == errno.EPERM:
            others = _exclusive(cgroup, attach_type)
            why = f"someone else's program is there for itself alone: {others}" if others else why
            step = "detach that one" if others else "run it as root"
        elif error.errno == errno.E2BIG:
            why, step = "it has as many programs as a cgroup may have", "set cgroupRoot"
        raise BadEnvironment(f"cgroup {cgroup}: program {name}", why, step) from error


def _exclusive(cgroup: Path, attach_type: int) -> str:
    """Programs attached so that the kernel lets no others beside or below them, in words."""
    while _is_cgroup2(cgroup):
        with _opened(cgroup) as fd:
            flags, ids = bpf.cgroup_programs(fd, attach_type)
        if ids and not flags & bpf.ALLOW_MULTI:
            return ", ".join(f"{_name(number)} (id {number}) on {cgroup}" for number in ids)
        cgroup = cgroup.parent
    return ""


def _name(number: int) -> str:
    try:
        fd = bpf.prog_by_id(number)
    except BpfError:
        return "a program"
    with _closing(fd):
        return bpf.prog_info(fd).name or "a program without name"


# ---- file descriptors and pins ----
@contextmanager
def _opened(cgroup: Path) -> Iterator[int]:
    try:
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadEnvironment(f"cgroup {cgroup}", error.strerror or str(error)) from error
    with _closing(fd):
        yield fd


@contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def _unpin(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        path.unlink()
        yield path
    with suppress(OSError):
        folder.rmdir()
