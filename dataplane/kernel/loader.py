# SPDX-License-Identifier: Apache-2.0
"""A bundle into the kernel: pinned maps at the configured sizes, pinned programs.

Below the node's bpffs folder, for ABI version 1:

    v1/map/NAME[_FAMILY]    maps
    v1/prog/NAME            programs
    v1/bundle -> DIGEST     a symbolic link that leads nowhere: its text is the
                            fingerprint of what is pinned (bpffs has no plain files)

Each pin appears by rename, so none is ever half-made, and the link is taken away
before pins change and put back after, so a load that was cut off is done again.
A map of programs (`tails`) is made anew with them: what still runs goes on in its own
kind, for the kernel empties such a map when its last pin goes, and the old one's stays,
as v1/map/old_NAME_ID, until `settle` (decision 0015).
Must not attach programs or fill maps.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.abi.layout import abi
from dataplane.kernel import bpf, bundle, pinnedmaps, verifier
from dataplane.kernel.bpf import BpfError
from dataplane.kernel.bundle import Bundle, MapSpec, Program
from dataplane.kernel.pinnedmaps import Move
from dataplane.model.errors import BadEnvironment, BadInput, CompileError
from dataplane.model.net import Family
from dataplane.model.rows import Table

_BPFFS_MAGIC = 0xCAFE4A11
_NEW = "new_"  # begins the name of a pin that is not in place yet; a dot is not allowed there
_OLD = "old_"  # begins the name of a pin that programs still attached may need
_LINK = "bundle"
_LOG_SIZE = 16 << 20
_PROGRAMS = "prog"  # type of a map of programs in bpf/maps.h
_TAIL = "tail_"  # begins the hook of a program that others end in, named as in enum tail

FIXED_MAPS = frozenset(
    {"node", "drops", "verdicts", "scratch", "answer_budget", "closed_count", "sweep", "tails"}
)
"""Maps whose sizes follow from the programs: `mapSizes` can't name them."""


@dataclass(slots=True)
class Datapath:
    """Maps and programs of a node, by fd, until closed. `loaded`: the programs are new.

    Programs still attached fill a map that has another size now, and end in programs of
    their own kind: replace them on their devices, then call `settle`.
    """

    maps: dict[Table, int] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    tails: dict[Table, int] = field(default_factory=dict)  # no table: it holds programs
    loaded: bool = False
    _moves: list[Move] = field(default_factory=list)
    _root: Path | None = None

    def settle(self) -> None:
        """No old program runs: let go of theirs, and bring over what they wrote last.

        Entries that the new programs made win.
        """
        while self._moves:
            self._moves.pop().finish()
        if self._root is not None:
            for old in (self._root / "map").glob(f"{_OLD}*"):
                old.unlink()

    def close(self) -> None:
        """Close all file descriptors; what is pinned stays."""
        kinds = (self.maps, self.programs, self.tails)
        for fd in (*(fd for kind in kinds for fd in kind.values()), *(m.old for m in self._moves)):
            os.close(fd)
        self.maps, self.programs, self.tails, self._moves = {}, {}, {}, []

    def __enter__(self) -> Datapath:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(bundle_: Bundle | Path, bpffs: Path, sizes: Mapping[str, int] | None = None) -> Datapath:
    """Make or reopen the maps, load the programs if what is pinned differs.

    `sizes`: entries by map name, for both families; others get the bundle's default.

    Raises:
        BadEnvironment: bpffs is no bpf filesystem, the kernel refuses a map, or a pinned
            map has another shape or holds more than its new size takes.
        BadInput: a size of a map that there is not, or a bundle of another abi.h.
        CompileError: this kernel's verifier rejects a program.
    """
    content = bundle.read(bundle_) if isinstance(bundle_, Path) else bundle_
    sizes = sizes or {}
    _check(content, sizes)
    check_bpffs(bpffs)
    root = bpffs / f"v{content.abi}"
    with ExitStack() as undo:
        for folder in (bpffs, root, root / "map", root / "prog"):
            _make_folder(folder, undo)
        with _locked(root):
            _sweep(root)
            datapath = Datapath(_root=root)
            undo.callback(datapath.close)
            pins: dict[Path, int] = {}
            tails = [spec for spec in content.maps if spec.type == bpf.MAP_PROG_ARRAY]
            for spec in content.maps:
                if spec not in tails:
                    _open_map(spec, sizes.get(spec.name, spec.max_entries), root, datapath, pins)
            if pins or not _reopen_programs(content, tails, root, datapath):
                _make_programs(content.programs, tails, datapath)
                pins.update((root / "map" / t.pin, fd) for t, fd in datapath.tails.items())
                pins.update((root / "prog" / n, fd) for n, fd in datapath.programs.items())
                _pin(pins, root, content)
        undo.pop_all()
    return datapath


def load_unpinned(content: Bundle, sizes: Mapping[str, int], programs: Collection[str]) -> Datapath:
    """Maps without pins, the programs of these names and what they end in, until it is closed.

    Raises as `load` does.
    """
    _check(content, sizes)
    datapath = Datapath()
    with ExitStack() as undo:
        undo.callback(datapath.close)
        tails = [spec for spec in content.maps if spec.type == bpf.MAP_PROG_ARRAY]
        for spec in content.maps:
            if spec not in tails:
                size = sizes.get(spec.name, spec.max_entries)
                datapath.maps[_table(spec)] = pinnedmaps.create(spec, size)
        chosen = [one for one in content.programs if one.name in programs or _is_tail(one)]
        _make_programs(chosen, tails, datapath)
        undo.pop_all()
    return datapath


def open_pinned(bpffs: Path) -> Mapping[Table, int]:
    """The pinned maps for readers, by fd, which the caller closes; the kernel refuses writes.

    Raises:
        BadEnvironment: nothing is pinned there.
    """
    root = bpffs / f"v{abi(Family.V4).constant('ABI_VERSION')}"
    opened: dict[Table, int] = {}
    for table in _tables():
        try:
            opened[table] = bpf.obj_get(root / "map" / table.pin, bpf.READ_ONLY)
        except BpfError as error:
            for fd in opened.values():
                os.close(fd)
            why = "nothing is pinned there" if error.errno == errno.ENOENT else str(error)
            step = "run `podlane agent` on this node, and this as root; --bpffs names the folder"
            raise BadEnvironment(f"{root}/map/{table.pin}", why, step) from error
    return opened


def check_bpffs(path: Path) -> None:
    """Raises BadEnvironment unless the folder is, or can be made, on a bpf filesystem."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    if _filesystem(existing) != _BPFFS_MAGIC:
        raise BadEnvironment(
            f"bpffs folder {path}",
            f"{existing} is not on a bpf filesystem",
            f"mount one: mkdir -p {path} && mount -t bpf bpf {path}",
        )


# ---- before anything is made ----
def _tables() -> Iterator[Table]:
    for name, declared in abi(Family.V4).maps.items():
        if declared.type == _PROGRAMS:
            continue
        if declared.per_family:
            yield from (Table(name, family) for family in Family)
        else:
            yield Table(name)


def _check(content: Bundle, sizes: Mapping[str, int]) -> None:
    """The bundle fits abi.h as Python sees it, and the sizes fit the bundle."""
    again = "compile the bundle anew from these sources"
    version = abi(Family.V4).constant("ABI_VERSION")
    if content.abi != version:
        raise BadInput("bundle", f"of ABI version {content.abi}, not {version}", again)
    for spec in content.maps:
        layouts = abi(Family(spec.family or Family.V4))
        declared = layouts.maps.get(spec.name)
        if declared is None:
            raise BadInput(f"map {spec.name} of the bundle", "is not in bpf/maps.h", again)
        for what, size, c_type in (
            ("keys", spec.key_size, declared.key),
            ("values", spec.value_size, declared.value),
        ):
            if c_type.startswith("struct ") and c_type[7:] not in layouts.structs:
                continue  # the programs' own
            if size != layouts.size_of(c_type):
                why = f"has {what} of {size} bytes; {c_type} has {layouts.size_of(c_type)}"
                raise BadInput(f"map {spec.pin} of the bundle", why, again)
    names = {spec.name for spec in content.maps} - FIXED_MAPS
    for name in sizes:
        if name not in names:
            raise BadInput(f"mapSizes.{name}", "no such map", f"known: {', '.join(sorted(names))}")


def _filesystem(path: Path) -> int:
    """f_type of statfs(2), which Python's own statvfs leaves out."""
    room = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), room) != 0:
        number = ctypes.get_errno()
        raise BadEnvironment(f"bpffs folder {path}", os.strerror(number))
    kind: int = struct.unpack_from("=l", room)[0]
    return kind & 0xFFFFFFFF


def _make_folder(folder: Path, undo: ExitStack) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        undo.callback(_quietly, folder.rmdir)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One load at a time in one folder."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sweep(root: Path) -> None:
    """Take away what a load that was killed left half-way."""
    for left in root.glob(f"*/{_NEW}*"):
        left.unlink()


def _quietly(action: Callable[[], None]) -> None:
    # Someone else's file is in it, or it is gone: either is fine when unwinding.
    with suppress(OSError):
        action()


# ---- maps ----
def _open_map(
    spec: MapSpec, size: int, root: Path, datapath: Datapath, pins: dict[Path, int]
) -> None:
    """The pinned map if its size is right, else a new one with the old one's entries."""
    path = root / "map" / spec.pin
    old = pinnedmaps.reopen(spec, path, root)
    if old is not None and bpf.map_info(old).max_entries == size:
        datapath.maps[_table(spec)] = old
        return
    move = None if old is None else Move(spec, old)
    if move is not None:
        datapath._moves.append(move)
    datapath.maps[_table(spec)] = pins[path] = new = pinnedmaps.create(spec, size)
    if move is not None:
        move.to(new, size)


def _table(spec: MapSpec) -> Table:
    return Table(spec.name, Family(spec.family) if spec.family else None)


# ---- programs ----
def _reopen_programs(
    content: Bundle, tails: Sequence[MapSpec], root: Path, datapath: Datapath
) -> bool:
    """Open the pinned programs, and their maps of programs, if they are this bundle's."""
    try:
        if os.readlink(root / _LINK) != content.fingerprint:
            return False
        for spec in tails:
            datapath.tails[_table(spec)] = bpf.obj_get(root / "map" / spec.pin)
        for program in content.programs:
            datapath.programs[program.name] = bpf.obj_get(root / "prog" / program.name)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise BadEnvironment(f"pinned programs of {root}", str(error)) from error
        for opened in (datapath.programs, datapath.tails):
            while opened:
                os.close(opened.popitem()[1])
        return False
    return True


def _make_programs(
    programs: Collection[Program], tails: Iterable[MapSpec], datapath: Datapath
) -> None:
    """All of them, those that others end in at their places, or none."""
    for spec in tails:
        datapath.tails[_table(spec)] = pinnedmaps.create(spec, spec.max_entries)
    datapath.programs.update(_load_programs(programs, datapath.maps | datapath.tails))
    datapath.loaded = True
    places = abi(Family.V4).enum("tail")
    for program in filter(_is_tail, programs):
        table = datapath.tails[Table("tails", Family(program.family))]
        key = struct.pack("=I", places[program.hook.upper()])
        bpf.map_update(table, key, struct.pack("=I", datapath.programs[program.name]))


def _is_tail(program: Program) -> bool:
    return program.hook.startswith(_TAIL)


def _load_programs(programs: Iterable[Program], maps: Mapping[Table, int]) -> dict[str, int]:
    """All of them by name, or none."""
    fds = {table.pin: fd for table, fd in maps.items()}
    loaded: dict[str, int] = {}
    failed: list[BaseException] = []
    # Verifying is most of the time, runs in the kernel, and takes a CPU a program.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        jobs = [(p.name, threads.submit(_load_program, p, fds)) for p in programs]
        for name, job in jobs:
            error = job.exception()
            if error is None:
                loaded[name] = job.result()
            else:
                failed.append(error)
    if failed:
        for fd in loaded.values():
            os.close(fd)
        raise failed[0]
    return loaded


def _load_program(program: Program, fds: Mapping[str, int]) -> int:
    code = bytearray(program.instructions)
    for pin, places in program.relocations.items():
        for place in places:
            struct.pack_into("=i", code, place * 8 + 4, fds[pin])

    def load_(level: int) -> int:
        return bpf.prog_load(
            program.name,
            program.type,
            bytes(code),
            bundle.LICENSE,
            program.attach_type,
            level,
            _LOG_SIZE if level else 0,
        )

    try:
        return load_(0)
    except BpfError as error:
        if error.errno == errno.EPERM:
            raise BadEnvironment(f"program {program.name}", str(error), "run as root") from error
    try:
        return load_(bpf.LOG_FIRST_PATH)  # a log costs time, so only now
    except BpfError as error:
        reason = verifier.rejection(error.log)
        why = f"this kernel's verifier rejects it: {reason.why or error}"
        at = f" at `{reason.source}`" if reason.source else ""
        raise CompileError(
            f"program {program.name}",
            why + at,
            f"it was verified when compiled; this kernel is {os.uname().release}",
            error.log,
        ) from error


# ---- pins ----
def _pin(pins: Mapping[Path, int], root: Path, content: Bundle) -> None:
    """Put pins in place: all under new names first, so that a failure leaves nothing."""
    with ExitStack() as undo:
        for path, fd in pins.items():
            new = path.with_name(_NEW + path.name)
            try:
                bpf.obj_pin(fd, new)
            except BpfError as error:
                raise BadEnvironment(f"pin {path}", str(error)) from error
            undo.callback(_quietly, new.unlink)
        (root / _LINK).unlink(missing_ok=True)
        for path, fd in pins.items():
            _keep_old(path, fd)
            path.with_name(_NEW + path.name).replace(path)
        wanted = {"map": {m.pin for m in content.maps}, "prog": {p.name for p in content.programs}}
        for folder, names in wanted.items():
            for left in (root / folder).iterdir():
                if left.name not in names and not left.name.startswith(_OLD):
                    left.unlink()
        (root / _LINK).symlink_to(content.fingerprint)


def _keep_old(path: Path, new: int) -> None:
    """Another pin for a map of programs that loses its own."""
    if path.parent.name != "map" or bpf.map_info(new).type != bpf.MAP_PROG_ARRAY:
        return
    if path.exists():
        old = bpf.obj_get(path)
        kept = path.with_name(f"{_OLD}{path.name}_{bpf.map_info(old).id}")
        os.close(old)
        with suppress(FileExistsError):
            os.link(path, kept)
