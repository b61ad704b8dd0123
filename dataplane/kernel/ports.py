# SPDX-License-Identifier: Apache-2.0
"""Which processes listen at TCP ports of this network namespace. Must not open sockets.

Read from /proc: a process of another PID namespace is not to be seen there, unless this one
is its parent (a container needs hostPID).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_TABLES = ("tcp", "tcp6")
_LISTENING = "0A"
# proc(5): columns of /proc/net/tcp
_LOCAL, _STATE, _INODE = 1, 3, 9


def listeners(wanted: Collection[int], proc: Path = Path("/proc")) -> dict[int, str]:
    """Who listens at these TCP ports, on any address: "name (pid N)", or that it is not to be seen.

    One look for all: it reads every descriptor of every process.
    """
    found = dict.fromkeys(wanted, "a process that is not to be seen from here")
    at = {f"socket:[{inode}]": port for inode, port in _inodes(proc) if port in found}
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)) if at else ():
        held = at.keys() & set(_descriptors(folder / "fd"))
        if not held:
            continue
        with suppress(OSError):
            command = (folder / "comm").read_text(errors="replace").strip()
            for name in held:  # the first process that has it is its eldest
                found[at.pop(name)] = f"{command} (pid {folder.name})"
        if not at:
            break
    return found


def _inodes(proc: Path) -> Iterator[tuple[str, int]]:
    """Of sockets that listen, with their ports."""
    for table in _TABLES:
        with suppress(OSError):  # no IPv6
            for line in (proc / "thread-self/net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[_STATE] == _LISTENING:
                    yield fields[_INODE], int(fields[_LOCAL].rpartition(":")[2], 16)


def _descriptors(folder: Path) -> Iterator[str]:
    with suppress(OSError):  # it has ended, or is not ours to look at
        for entry in os.scandir(folder):
            with suppress(OSError):
                yield os.readlink(entry.path)
