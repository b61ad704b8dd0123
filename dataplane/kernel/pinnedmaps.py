# SPDX-License-Identifier: Apache-2.0
"""A map of the bundle in the kernel: made, opened at its pin, or moved to another size.

Must not pin, and knows no programs.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataplane.kernel import bpf
from dataplane.kernel.bpf import BpfError
from dataplane.kernel.bundle import MapSpec
from dataplane.model.errors import BadEnvironment


@dataclass(slots=True)
class Move:
    """A map that is replaced by one of another size. old, new: fds; new is -1 until `to`."""

    spec: MapSpec
    old: int
    new: int = -1

    def to(self, new: int, size: int) -> None:
        """Everything of the old map into the new one, of `size` entries."""
        self.new = new
        for keys, values, count in _entries(self.old):
            if self.spec.type in bpf.ARRAY_TYPES:
                (first,) = struct.unpack_from("=I", keys)
                fits = max(0, min(count, size - first))
                width = len(values) // count
                if any(values[fits * width :]):
                    raise _too_small(self.spec, size)
                keys, values, count = keys[: fits * 4], values[: fits * width], fits
            try:
                bpf.map_update_batch(self.new, keys, values, count)
            except BpfError as error:
                if error.errno in (errno.E2BIG, errno.ENOSPC):
                    raise _too_small(self.spec, size) from error
                raise BadEnvironment(f"map {self.spec.pin}", f"copying it: {error}") from error

    def finish(self) -> None:
        """Bring over what programs wrote to the old map since, and close it; newer entries win."""
        try:
            if self.spec.type == bpf.MAP_LRU_HASH:  # no other map's entries are the programs'
                self._copy_missing()
        finally:
            os.close(self.old)

    def _copy_missing(self) -> None:
        key_size, value_size = self.spec.key_size, self.spec.value_size
        for keys, values, count in _entries(self.old):
            for index in range(count):  # batches take no BPF_NOEXIST
                key = keys[index * key_size : (index + 1) * key_size]
                value = values[index * value_size : (index + 1) * value_size]
                try:
                    bpf.map_update(self.new, key, value, bpf.NOEXIST)
                except BpfError as error:
                    if error.errno != errno.EEXIST:
                        raise BadEnvironment(
                            f"map {self.spec.pin}", f"copying it: {error}"
                        ) from error


def create(spec: MapSpec, size: int) -> int:
    """Its fd. Raises BadEnvironment if the kernel refuses it."""
    try:
        return bpf.map_create(spec.pin, spec.type, spec.key_size, spec.value_size, size, spec.flags)
    except BpfError as error:
        step = {
            errno.EPERM: "run it as root",
            errno.E2BIG: f"lower mapSizes.{spec.name}",
            errno.ENOMEM: f"lower mapSizes.{spec.name}, or raise the memory limit",
        }.get(error.errno or 0, "")
        raise BadEnvironment(f"map {spec.pin} of {size} entries", str(error), step) from error


def reopen(spec: MapSpec, path: Path, root: Path) -> int | None:
    """The pinned map, None if there is none. Raises BadEnvironment if its shape is another."""
    try:
        fd = bpf.obj_get(path)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise BadEnvironment(f"pinned map {path}", str(error)) from error
    info = bpf.map_info(fd)
    if _shape(info) == _shape(spec):
        return fd
    os.close(fd)
    raise BadEnvironment(
        f"pinned map {path}",
        f"it is {_shape(info)}, and this version has {_shape(spec)}",
        f"stop the agent and `rm -r {root}`; flows that are open then break",
    )


def _shape(of: MapSpec | bpf.MapInfo) -> str:
    kind = bpf.MAP_TYPE_NAMES.get(of.type, f"type {of.type}")
    return f"{kind} of {of.key_size}-byte keys, {of.value_size}-byte values, flags {of.flags:#x}"


def _entries(fd: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Packed keys, packed values (of all CPUs) and how many, in batches."""
    info = bpf.map_info(fd)
    size = info.value_size
    if info.type in bpf.PERCPU_TYPES:
        size = (size + 7) // 8 * 8 * bpf.possible_cpus()
    return bpf.map_batches(fd, info.key_size, size)


def _too_small(spec: MapSpec, size: int) -> BadEnvironment:
    return BadEnvironment(
        f"mapSizes.{spec.name}", f"{spec.pin} holds more than {size} entries", "give it more"
    )
