# SPDX-License-Identifier: Apache-2.0
"""bpf(2), one function a command: bytes in, bytes and file descriptors out.

Must not know struct layouts of ours, pins or maps by name. Every failure is a
`BpfError` with errno and the call. Source: include/uapi/linux/bpf.h, bpf(2).
File descriptors are the caller's to close.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_NUMBER = _NUMBERS.get(os.uname().machine)
_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_SYSCALL.restype = ctypes.c_long

# enum bpf_cmd
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY, _PROG_LOAD = range(6)
_OBJ_PIN, _OBJ_GET, _PROG_TEST_RUN, _OBJ_INFO, _BTF_LOAD = 6, 7, 10, 15, 18
_PROG_QUERY, _LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH = 16, 24, 26, 27
_PROG_BY_ID, _LINK_CREATE, _LINK_UPDATE = 13, 28, 29

# enum bpf_map_type
MAP_HASH, MAP_ARRAY, MAP_PROG_ARRAY, MAP_PERCPU_HASH, MAP_PERCPU_ARRAY = 1, 2, 3, 5, 6
MAP_LRU_HASH, MAP_LRU_PERCPU_HASH, MAP_LPM_TRIE, MAP_ARRAY_OF_MAPS = 9, 10, 11, 12
MAP_TYPE_NAMES = {
    MAP_HASH: "hash",
    MAP_ARRAY: "array",
    MAP_PROG_ARRAY: "prog_array",
    MAP_PERCPU_HASH: "percpu_hash",
    MAP_PERCPU_ARRAY: "percpu_array",
    MAP_LRU_HASH: "lru_hash",
    MAP_LRU_PERCPU_HASH: "lru_percpu_hash",
    MAP_LPM_TRIE: "lpm_trie",
}
PERCPU_TYPES = frozenset({MAP_PERCPU_HASH, MAP_PERCPU_ARRAY, MAP_LRU_PERCPU_HASH})
ARRAY_TYPES = frozenset({MAP_ARRAY, MAP_PERCPU_ARRAY})

# enum bpf_prog_type
PROG_SCHED_CLS, PROG_CGROUP_SOCK, PROG_CGROUP_SOCK_ADDR = 3, 9, 18

# enum bpf_link_type
LINK_CGROUP = 3

# How programs share a cgroup
ALLOW_MULTI = 2

# enum bpf_attach_type
CGROUP_INET4_CONNECT, CGROUP_INET6_CONNECT = 10, 11
CGROUP_UDP4_SENDMSG, CGROUP_UDP6_SENDMSG = 14, 15
CGROUP_UDP4_RECVMSG, CGROUP_UDP6_RECVMSG = 19, 20
CGROUP_INET4_GETPEERNAME, CGROUP_INET6_GETPEERNAME = 29, 30
CGROUP_INET_SOCK_RELEASE = 34

# flags of map_update; of obj_get (BPF_F_RDONLY, for maps)
ANY, NOEXIST = 0, 1
READ_ONLY = 8

# flags of map_create
NO_PREALLOC, MMAPABLE = 1, 1 << 10

# log levels of prog_load
LOG_FIRST_PATH, LOG_ALL, LOG_STATS = 1, 2, 4

_NAME_LENGTH = 15  # BPF_OBJ_NAME_LEN less the zero at the end


class BpfError(OSError):
    """bpf(2) failed: `.errno`, `.call` (the command), `.done` (entries that a batch finished)."""

    def __init__(self, number: int, call: str, done: int = 0, log: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.call, self.done, self.log = call, done, log

    def __str__(self) -> str:
        return f"bpf({self.call}): {os.strerror(self.errno or 0)}"


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map; sizes in bytes, value size of one CPU."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """What the kernel says of a program; the tag is a digest of its instructions."""

    type: int
    id: int
    tag: str
    name: str


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link to a cgroup; cgroup 0: it was removed, the link does nothing."""

    type: int
    id: int
    prog_id: int
    cgroup: int
    attach_type: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """Outcome of one BPF_PROG_TEST_RUN; duration in ns, the mean of one run."""

    retval: int
    data: bytes
    context: bytes
    duration: int


def _bpf(command: int, call: str, attr: bytearray | ctypes.Array[ctypes.c_char]) -> int:
    buffer = (
        attr if isinstance(attr, ctypes.Array) else (ctypes.c_char * len(attr)).from_buffer(attr)
    )
    if _NUMBER is None:
        raise BpfError(errno.ENOSYS, call)
    result: int = _SYSCALL(_NUMBER, command, buffer, len(attr))
    if result < 0:
        raise BpfError(ctypes.get_errno(), call)
    return result


def _address(data: bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    if data is None:
        return 0
    if isinstance(data, bytes):
        return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    return ctypes.addressof(data)


def _name(name: str) -> bytes:
    return name.encode()[:_NAME_LENGTH]


# ---- maps ----
def map_create(
    name: str,
    type_: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    inner: int = 0,
) -> int:
    """A new map's fd; the kernel keeps 15 bytes of its name. inner: fd, for a map of maps."""
    attr = bytearray(72)
    struct.pack_into(
        "=7I16s", attr, 0, type_, key_size, value_size, max_entries, flags, inner, 0, _name(name)
    )
    return _bpf(_MAP_CREATE, "MAP_CREATE", attr)


def map_words(fd: int, value_size: int, max_entries: int) -> memoryview:
    """An array's values as u64s that live in the kernel; for maps made with MMAPABLE.

    Storing one is one aligned store of 8 bytes, which readers see whole or not at all.
    """
    try:
        return memoryview(mmap.mmap(fd, value_size * max_entries)).cast("Q")
    except OSError as error:
        raise BpfError(error.errno or 0, "mmap of a map") from error


def _element(
    command: int, call: str, fd: int, key: bytes | None, value: int, flags: int = 0
) -> None:
    attr = bytearray(32)
    struct.pack_into("=I4xQQQ", attr, 0, fd, _address(key), value, flags)
    _bpf(command, call, attr)


def map_lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value of a key as `size` bytes (per-CPU maps: of all possible CPUs), None if absent."""
    value = ctypes.create_string_buffer(size)
    try:
        _element(_MAP_LOOKUP, "MAP_LOOKUP_ELEM", fd, key, ctypes.addressof(value))
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Write one entry."""
    _element(_MAP_UPDATE, "MAP_UPDATE_ELEM", fd, key, _address(value), flags)


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one entry; False if it was not there."""
    try:
        _element(_MAP_DELETE, "MAP_DELETE_ELEM", fd, key, 0)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """The key after `key` (None: the first) as `size` bytes, None at the end."""
    following = ctypes.create_string_buffer(size)
    try:
        _element(_MAP_NEXT_KEY, "MAP_GET_NEXT_KEY", fd, key, ctypes.addressof(following))
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return following.raw


class Entries:
    """Lookups and deletions in one map with buffers that are kept: a third of the cost a call."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self._key = (ctypes.c_char * key_size)()
        self._value = (ctypes.c_char * value_size)()
        key, value = _address(self._key), _address(self._value)
        self._asked = ctypes.create_string_buffer(struct.pack("=I4xQQQ", fd, key, value, 0), 32)
        self._deleted = ctypes.create_string_buffer(struct.pack("=I4xQQQ", fd, key, 0, 0), 32)

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, None if absent."""
        self._key.raw = key
        there = _there(_MAP_LOOKUP, "MAP_LOOKUP_ELEM", self._asked)
        return self._value.raw if there else None

    def delete(self, key: bytes) -> bool:
        """Delete one entry; False if it was not there."""
        self._key.raw = key
        return _there(_MAP_DELETE, "MAP_DELETE_ELEM", self._deleted)


def _there(command: int, call: str, attr: ctypes.Array[ctypes.c_char]) -> bool:
    try:
        _bpf(command, call, attr)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


_BATCH = struct.Struct("=QQQQIIQQ")
_BATCH_COUNT_AT = 32


def _batch_write(
    command: int, call: str, fd: int, keys: bytes, values: bytes | None, count: int, flags: int
) -> None:
    attr = bytearray(_BATCH.size)
    _BATCH.pack_into(attr, 0, 0, 0, _address(keys), _address(values), count, fd, flags, 0)
    try:
        _bpf(command, call, attr)
    except BpfError as error:
        (done,) = struct.unpack_from("=I", attr, _BATCH_COUNT_AT)
        # The kernel writes the count back only once it has begun.
        raise BpfError(error.errno or 0, call, 0 if done == count else done) from None


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int, flags: int = ANY) -> None:
    """Write `count` entries from packed keys and values; on failure `.done` were written."""
    if count:
        _batch_write(_UPDATE_BATCH, "MAP_UPDATE_BATCH", fd, keys, values, count, flags)


def map_delete_batch(fd: int, keys: bytes, count: int) -> None:
    """Delete `count` entries from packed keys; on failure `.done` were deleted."""
    if count:
        _batch_write(_DELETE_BATCH, "MAP_DELETE_BATCH", fd, keys, None, count, 0)


def map_lookup_batch(
    fd: int, after: bytes | None, key_size: int, value_size: int, count: int
) -> tuple[bytes, bytes, int, bytes | None]:
    """Up to `count` entries: packed keys, packed values, how many, where to go on.

    `after` is None at the start and the last answer's fourth part later; that part
    is None at the end. value_size is what one entry takes: of all CPUs for per-CPU
    maps. Raises BpfError ENOSPC if one hash bucket holds more than `count`.
    """
    # The position is a bucket's number (4 bytes) or a key.
    position = ctypes.create_string_buffer(max(key_size, 8))
    keys = ctypes.create_string_buffer(key_size * count)
    values = ctypes.create_string_buffer(value_size * count)
    attr = bytearray(_BATCH.size)
    _BATCH.pack_into(
        attr,
        0,
        _address(after),
        ctypes.addressof(position),
        ctypes.addressof(keys),
        ctypes.addressof(values),
        count,
        fd,
        0,
        0,
    )
    ended = False
    try:
        _bpf(_LOOKUP_BATCH, "MAP_LOOKUP_BATCH", attr)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        ended = True
    (done,) = struct.unpack_from("=I", attr, _BATCH_COUNT_AT)
    return (
        keys.raw[: done * key_size],
        values.raw[: done * value_size],
        done,
        None if ended else position.raw,
    )


def map_batches(
    fd: int, key_size: int, value_size: int, count: int = 4096
) -> Iterator[tuple[bytes, bytes, int]]:
    """All entries as packed keys, packed values and how many, a batch at a time."""
    after: bytes | None = None
    while True:
        try:
            keys, values, done, after = map_lookup_batch(fd, after, key_size, value_size, count)
        except BpfError as error:
            if error.errno != errno.ENOSPC:
                raise
            count *= 2  # a bucket with more entries than asked for
            continue
        if done:
            yield keys, values, done
        if after is None:
            return


# ---- programs ----
def prog_load(
    name: str,
    type_: int,
    instructions: bytes,
    license_: str,
    expected_attach_type: int = 0,
    log_level: int = 0,
    log_size: int = 0,
) -> int:
    """A loaded program's fd. On failure with a log level, BpfError.log holds the verifier's log."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    words = license_.encode()
    log = ctypes.create_string_buffer(log_size) if log_level else None
    attr = bytearray(72)
    struct.pack_into(
        "=IIQQIIQII16sII",
        attr,
        0,
        type_,
        len(instructions) // 8,
        ctypes.addressof(code),
        _address(words),
        log_level,
        log_size,
        _address(log),
        0,
        0,
        _name(name),
        0,
        expected_attach_type,
    )
    try:
        return _bpf(_PROG_LOAD, "PROG_LOAD", attr)
    except BpfError as error:
        text = log.value.decode(errors="replace") if log is not None else ""
        raise BpfError(error.errno or 0, f"PROG_LOAD {name}", log=text) from None


def prog_test_run(
    fd: int, data: bytes, context: bytes = b"", repeat: int = 1, room: int = 256, flags: int = 0
) -> TestRun:
    """Run a program on a packet that may grow by `room`; context: a struct __sk_buff."""
    out = ctypes.create_string_buffer(len(data) + room)
    context_out = ctypes.create_string_buffer(len(context)) if context else None
    attr = bytearray(80)
    struct.pack_into(
        "=IIIIQQIIIIQQIII",
        attr,
        0,
        fd,
        0,
        len(data),
        len(out),
        _address(data),
        ctypes.addressof(out),
        repeat,
        0,
        len(context),
        len(context),
        _address(context) if context else 0,
        _address(context_out),
        flags,
        0,
        0,
    )
    _bpf(_PROG_TEST_RUN, "PROG_TEST_RUN", attr)
    retval, _, size = struct.unpack_from("=III", attr, 4)
    duration, _, context_size = struct.unpack_from("=III", attr, 36)
    after = context_out.raw[:context_size] if context_out is not None else b""
    return TestRun(retval, out.raw[:size], after, duration)


# ---- links ----
def link_create(prog: int, target: int, attach_type: int) -> int:
    """A new link's fd: the program beside all others on a cgroup (an open folder)."""
    attr = bytearray(struct.pack("=IIII16x", prog, target, attach_type, 0))
    return _bpf(_LINK_CREATE, "LINK_CREATE", attr)


def link_update(link: int, prog: int) -> None:
    """Put another program in a link's place, in one step."""
    _bpf(_LINK_UPDATE, "LINK_UPDATE", bytearray(struct.pack("=IIII", link, prog, 0, 0)))


def link_info(fd: int) -> LinkInfo:
    """Type, program and cgroup of a link; of a link of another type the last two mean nothing."""
    return LinkInfo(*struct.unpack_from("=III4xQI", _info(fd, 64)))


def cgroup_programs(cgroup: int, attach_type: int) -> tuple[int, list[int]]:
    """How programs are attached to a cgroup itself (BPF_F_ALLOW_…), and their ids in order."""
    most = 64  # BPF_CGROUP_MAX_PROGS
    ids = (ctypes.c_char * (most * 4))()
    attr = bytearray(64)
    struct.pack_into("=IIIIQI", attr, 0, cgroup, attach_type, 0, 0, _address(ids), most)
    _bpf(_PROG_QUERY, "PROG_QUERY", attr)
    flags, count = struct.unpack_from("=I8xI", attr, 12)
    return flags, list(struct.unpack_from(f"={count}I", ids))


def prog_by_id(number: int) -> int:
    """The fd of a loaded program."""
    return _bpf(_PROG_BY_ID, "PROG_GET_FD_BY_ID", bytearray(struct.pack("=III", number, 0, 0)))


# ---- any object ----
def obj_pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Pin a map or program at a path of a bpffs."""
    name = os.fsencode(path)
    _bpf(_OBJ_PIN, "OBJ_PIN", bytearray(struct.pack("=QII", _address(name), fd, 0)))


def obj_get(path: str | os.PathLike[str], flags: int = 0) -> int:
    """The fd of a pinned object."""
    name = os.fsencode(path)
    return _bpf(_OBJ_GET, "OBJ_GET", bytearray(struct.pack("=QII", _address(name), 0, flags)))


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    attr = bytearray(struct.pack("=IIQ", fd, size, ctypes.addressof(info)))
    _bpf(_OBJ_INFO, "OBJ_GET_INFO_BY_FD", attr)
    return info.raw


def map_info(fd: int) -> MapInfo:
    """Shape and name of a map."""
    *numbers, name = struct.unpack_from("=6I16s", _info(fd, 80))
    type_, id_, key_size, value_size, max_entries, flags = numbers
    return MapInfo(
        type_, id_, key_size, value_size, max_entries, flags, name.rstrip(b"\0").decode()
    )


def prog_info(fd: int) -> ProgInfo:
    """Type, tag and name of a program."""
    raw = _info(fd, 128)
    type_, id_, tag = struct.unpack_from("=II8s", raw)
    (name,) = struct.unpack_from("=16s", raw, 64)
    return ProgInfo(type_, id_, tag.hex(), name.rstrip(b"\0").decode())


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        last = file.read().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1
