# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do, tried rather than guessed from its version.

Must leave nothing behind: each probe closes what it makes.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dataplane.kernel import bpf
from dataplane.kernel.bpf import BpfError
from dataplane.model.errors import BadEnvironment

_CALL, _EXIT = struct.Struct("=BBhi"), struct.pack("=BBhi", 0x95, 0, 0, 0)
_ZERO = struct.pack("=BBhi", 0xB7, 0, 0, 0)  # r0 = 0
_ABSENT = ("unknown func", "invalid func", "cannot use helper")

# Helpers of the programs that not every kernel has, by number (enum bpf_func_id).
_HELPERS = {
    "bpf_skb_set_tunnel_key": (21, "the overlay between nodes"),
    "bpf_sk_lookup_udp": (85, "masquerade ports that no socket of the node has"),
    "bpf_skc_lookup_tcp": (99, "masquerade ports that no socket of the node has"),
    "bpf_redirect_peer": (155, "packets straight into a pod of this node"),
}


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that podlane needs. `why` says what is missing; empty if it is there."""

    name: str
    needed_for: str
    why: str = ""

    @property
    def present(self) -> bool:
        return not self.why


def probe() -> list[Feature]:
    """Every feature, each tried now."""
    try:
        os.close(bpf.map_create("probe", bpf.MAP_ARRAY, 4, 4, 1))
    except BpfError as error:
        hint = "; run it as root" if error.errno == errno.EPERM else ""
        return [Feature("bpf(2)", "everything", f"{error}{hint}")]
    filesystems = Path("/proc/filesystems").read_text().split()
    found = [Feature("bpf(2)", "everything")]
    for name, needed_for in (("bpf", "pinned maps and programs"), ("cgroup2", "socket programs")):
        missing = "" if name in filesystems else "not in /proc/filesystems"
        found.append(Feature(f"filesystem {name}", needed_for, missing))
    tried: tuple[tuple[str, str, Callable[[], None]], ...] = (
        ("map lpm_trie", "routes", _lpm_trie),
        ("map lru_hash", "flows", _lru_hash),
        ("map batches", "thousands of Services at once", _batches),
        ("test runs", "`explain` and the program tests", _test_run),
    )
    found += [_tried(*one) for one in tried]
    for name, (number, needed_for) in _HELPERS.items():
        found.append(Feature(f"helper {name}", needed_for, _helper(number)))
    return found


def require() -> None:
    """Raises BadEnvironment naming what is missing, and what for."""
    missing = [feature for feature in probe() if not feature.present]
    if missing:
        raise BadEnvironment(
            "kernel",
            "; ".join(f"{f.name}, needed for {f.needed_for}: {f.why}" for f in missing),
            "podlane needs Linux 6.1 or newer and root",
        )


def _tried(name: str, needed_for: str, attempt: Callable[[], None]) -> Feature:
    try:
        attempt()
    except BpfError as error:
        return Feature(name, needed_for, str(error))
    return Feature(name, needed_for)


def _lpm_trie() -> None:
    os.close(bpf.map_create("probe", bpf.MAP_LPM_TRIE, 8, 4, 1, bpf.NO_PREALLOC))


def _lru_hash() -> None:
    os.close(bpf.map_create("probe", bpf.MAP_LRU_HASH, 4, 4, 1))


def _batches() -> None:
    fd = bpf.map_create("probe", bpf.MAP_HASH, 4, 4, 1)
    try:
        bpf.map_update_batch(fd, bytes(4), bytes(4), 1)
    finally:
        os.close(fd)


def _test_run() -> None:
    fd = bpf.prog_load("probe", bpf.PROG_SCHED_CLS, _ZERO + _EXIT, "GPL")
    try:
        bpf.prog_test_run(fd, bytes(64))
    finally:
        os.close(fd)


def _helper(number: int) -> str:
    """Why a helper can't be used; empty if only its arguments are wrong."""
    code = _CALL.pack(0x85, 0, 0, number) + _EXIT
    try:
        os.close(
            bpf.prog_load("probe", bpf.PROG_SCHED_CLS, code, "GPL", 0, bpf.LOG_FIRST_PATH, 1 << 16)
        )
    except BpfError as error:
        return next((line for line in error.log.splitlines() for a in _ABSENT if a in line), "")
    return ""
