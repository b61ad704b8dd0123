# SPDX-License-Identifier: Apache-2.0
"""The node's maps as typed rows: `Maps` reads, `Writer` executes core's plans.

Must not decide what a table holds. The caller keeps to one writer a node.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataplane.abi.codec import Codec, codec
from dataplane.core.plan import Delete, Grace, Key, Plan, Row, Upsert
from dataplane.kernel import bpf, loader
from dataplane.kernel.bpf import BpfError
from dataplane.kernel.loader import Datapath
from dataplane.model.errors import BadEnvironment, Contradiction, NoMemory, TableFull
from dataplane.model.rows import Table

_FULL = frozenset({errno.E2BIG, errno.ENOSPC})
# Seconds to wait for memory, at most once each a step of a plan: hash maps without
# preallocation take entries from small stocks that the kernel fills up behind them.
_MEMORY_PAUSES = (0.001, 0.01, 0.05)


class _Open:
    """A map that is open, and what is needed to read it."""

    __slots__ = ("codec", "cpus", "fd", "info", "per_cpu", "table", "value_size", "words")

    def __init__(self, table: Table, fd: int) -> None:
        self.table, self.fd = table, fd
        self.words: memoryview | None = None  # the writer's, of an array that is mapped
        self.codec: Codec = codec(table)
        self.info = bpf.map_info(fd)
        sizes = self.info.key_size, self.info.value_size
        if sizes != (self.codec.key_size, self.codec.value_size):
            raise BadEnvironment(
                f"pinned map {table.pin}",
                f"keys and values of {sizes[0]} and {sizes[1]} bytes, which this version reads"
                f" as {self.codec.key_size} and {self.codec.value_size}",
                "use the podlane that loaded it",
            )
        self.per_cpu = self.info.type in bpf.PERCPU_TYPES
        self.cpus = bpf.possible_cpus() if self.per_cpu else 1
        self.value_size = (sizes[1] + 7) // 8 * 8 * self.cpus if self.per_cpu else sizes[1]

    @property
    def is_array(self) -> bool:
        return self.info.type in bpf.ARRAY_TYPES

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Raw entries; of an array those that are not all zero."""
        key_size, value_size = self.info.key_size, self.value_size
        nothing = bytes(value_size) if self.is_array else None
        for keys, values, count in bpf.map_batches(self.fd, key_size, value_size):
            if nothing is not None and not values.strip(b"\0"):
                continue
            for index in range(count):
                value = values[index * value_size : (index + 1) * value_size]
                if value != nothing:
                    yield keys[index * key_size : (index + 1) * key_size], value


class Maps:
    """Rows of the pinned maps below a bpffs folder, or of a loaded datapath; reads only.

    Raises BadEnvironment if nothing is pinned there.
    """

    def __init__(self, source: Path | Datapath) -> None:
        self._owned = isinstance(source, Path)
        self._fds = loader.open_pinned(source) if isinstance(source, Path) else source.maps
        self._opened: dict[Table, _Open] = {}

    def items(self, table: Table) -> Iterator[tuple[Any, Any]]:
        """Keys and rows, in no order; array places that are all zero are left out.

        An entry that is deleted meanwhile may make others appear twice or not at all.
        """
        opened = self._open(table)
        if opened.per_cpu:
            raise Contradiction(f"table {table.pin}", "has a value a CPU: ask for its counters")
        parse_key, parse_value = opened.codec.parse_key, opened.codec.parse_value
        for key, value in opened.entries():
            yield parse_key(key), parse_value(value)

    def get(self, table: Table, key: Any) -> Any | None:
        """The row of a key; None if there is none, or the array's place is all zero."""
        opened = self._open(table)
        value = bpf.map_lookup(opened.fd, opened.codec.key(key), opened.value_size)
        if value is None or (opened.is_array and not any(value)):
            return None
        return opened.codec.parse_value(value)

    def counters(self, table: Table) -> Mapping[int, Any]:
        """Counters by place, summed over CPUs; all-zero places are left out."""
        opened = self._open(table)
        one = opened.info.value_size // 8
        words = struct.Struct(f"={one * opened.cpus}Q")
        total = struct.Struct(f"={one}Q")
        found = {}
        for key, value in opened.entries():
            each = words.unpack(value)
            sums = (sum(each[place::one]) & 0xFFFF_FFFF_FFFF_FFFF for place in range(one))
            found[opened.codec.parse_key(key)] = opened.codec.parse_value(total.pack(*sums))
        return found

    def per_cpu(self, table: Table, key: Any) -> Sequence[Any]:
        """The rows of a per-CPU map's key, by CPU."""
        opened = self._open(table)
        value = bpf.map_lookup(opened.fd, opened.codec.key(key), opened.value_size) or b""
        step, size = opened.value_size // opened.cpus, opened.info.value_size
        return [
            opened.codec.parse_value(value[at : at + size]) for at in range(0, len(value), step)
        ]

    def close(self) -> None:
        """Close what this object opened."""
        if self._owned:
            for fd in self._fds.values():
                os.close(fd)
            self._fds = {}
        self._opened.clear()

    def _open(self, table: Table) -> _Open:
        if table not in self._opened:
            self._opened[table] = _Open(table, self._fds[table])
        return self._opened[table]


class Writer:
    """The one writer of a node's maps."""

    def __init__(self, datapath: Datapath) -> None:
        self._fds = datapath.maps
        self._opened: dict[Table, _Open] = {}

    def execute(self, plan: Plan) -> tuple[TableFull, ...]:
        """Do the steps in order; returned are the entries that a full map has no room for, or
        the kernel no memory.

        Raises:
            BadEnvironment: the kernel refused something else; later steps are not done.
        """
        refused: list[TableFull] = []
        for step in plan.steps:
            match step:
                case Upsert(table, rows):
                    refused += self._upsert(self._open(table), rows)
                case Delete(table, keys):
                    self._delete(self._open(table), keys)
                case Grace():
                    grace()
        return tuple(refused)

    def _open(self, table: Table) -> _Open:
        if table not in self._opened:
            opened = self._opened[table] = _Open(table, self._fds[table])
            if opened.info.flags & bpf.MMAPABLE:
                info = opened.info
                opened.words = bpf.map_words(opened.fd, info.value_size, info.max_entries)
        return self._opened[table]

    def _upsert(self, opened: _Open, rows: Sequence[tuple[Key, Row]]) -> Iterator[TableFull]:
        done = _batch(opened, *opened.codec.pack(rows))
        pauses = iter(_MEMORY_PAUSES)
        for key, row in rows[done:]:  # some found no room: one by one, to know for whom
            error = _tried(opened, opened.codec.key(key), opened.codec.value(row), pauses)
            if error is None:
                continue
            what = f"{opened.table.pin}: {key}"
            if error.errno == errno.ENOMEM:
                why = "the kernel has no memory for it"
                step = "give the machine, or the agent's cgroup, more memory and restart the agent"
                yield NoMemory(what, why, step)
            elif error.errno in _FULL:
                why = f"the map is full at {opened.info.max_entries} entries"
                yield TableFull(what, why, f"raise mapSizes.{opened.table.name}")
            else:
                raise _refusal(opened.table, key, error) from error

    def _delete(self, opened: _Open, keys: Sequence[Key]) -> None:
        packed, done = b"".join(map(opened.codec.key, keys)), 0
        if opened.is_array:
            _batch(opened, packed, bytes(opened.value_size * len(keys)), len(keys))
            return
        try:
            bpf.map_delete_batch(opened.fd, packed, len(keys))
            return
        except BpfError as error:
            done = error.done
        for key in keys[done:]:  # one is not there, or worse: one by one
            try:
                bpf.map_delete(opened.fd, opened.codec.key(key))
            except BpfError as error:
                raise _refusal(opened.table, key, error) from error


def _batch(opened: _Open, keys: bytes, values: bytes, count: int) -> int:
    """Write entries; how many were written before there was no room."""
    if opened.words is not None:
        return _store(opened.words, keys, values, opened.info.max_entries)
    try:
        bpf.map_update_batch(opened.fd, keys, values, count)
    except BpfError as error:
        if error.errno in _FULL or error.errno == errno.ENOMEM:
            return error.done
        key = opened.codec.parse_key(
            keys[error.done * opened.info.key_size :][: opened.info.key_size]
        )
        raise _refusal(opened.table, key, error) from error
    return count


def _tried(opened: _Open, key: bytes, value: bytes, pauses: Iterator[float]) -> BpfError | None:
    """Write an entry, again after the next pause where memory was short; what refused it."""
    while True:
        try:
            _update(opened, key, value)
            return None
        except BpfError as error:
            pause = next(pauses, None) if error.errno == errno.ENOMEM else None
            if pause is None:
                return error
        time.sleep(pause)


def _update(opened: _Open, key: bytes, value: bytes) -> None:
    if opened.words is None:
        bpf.map_update(opened.fd, key, value)
    elif not _store(opened.words, key, value, opened.info.max_entries):
        raise BpfError(errno.E2BIG, "a place of a map")


def _store(words: memoryview, keys: bytes, values: bytes, size: int) -> int:
    """Write entries word by word (decision 0016); how many, up to a place that there is not."""
    stored = memoryview(values).cast("Q")
    places = memoryview(keys).cast("I")
    width = len(stored) // len(places) if places else 0
    for number, place in enumerate(places):
        if place >= size:
            return number
        for word in range(width):
            words[place * width + word] = stored[number * width + word]
    return len(places)


def _refusal(table: Table, key: Key, error: BpfError) -> BadEnvironment:
    return BadEnvironment(f"map {table.pin}: {key}", str(error))


def grace() -> None:
    """Wait until all programs that run now, on any CPU, have ended (an RCU grace period).

    Writing into a map of maps waits for that (maybe_wait_bpf_programs in
    kernel/bpf/syscall.c), also where membarrier(2) refuses to: with nohz_full.
    """
    inner = bpf.map_create("grace", bpf.MAP_ARRAY, 4, 4, 1)
    try:
        outer = bpf.map_create("grace", bpf.MAP_ARRAY_OF_MAPS, 4, 4, 1, inner=inner)
        try:
            bpf.map_update(outer, bytes(4), struct.pack("=I", inner))
        finally:
            os.close(outer)
    finally:
        os.close(inner)
