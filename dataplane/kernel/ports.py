# SPDX-License-Identifier: Apache-2.0
"""Which process listens at a TCP port of this network namespace. Must not open sockets.

Read from /proc: a process of another PID namespace is not to be seen there, unless this one
is its parent (a container needs hostPID).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TABLES = ("tcp", "tcp6")
_LISTENING = "0A"
# proc(5): columns of /proc/net/tcp
_LOCAL, _STATE, _INODE = 1, 3, 9


def listener(port: int, proc: Path = Path("/proc")) -> str:
    """Who listens at a TCP port, on any address: "name (pid N)", or that it is not to be seen."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port, proc)}
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if sockets and not sockets.isdisjoint(_descriptors(folder / "fd")):
            with suppress(OSError):
                return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
    return "a process that is not to be seen from here"


def _inodes(port: int, proc: Path) -> Iterator[str]:
    for table in _TABLES:
        with suppress(OSError):  # no IPv6
            for line in (proc / "thread-self/net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                at = int(fields[_LOCAL].rpartition(":")[2], 16)
                if at == port and fields[_STATE] == _LISTENING:
                    yield fields[_INODE]


def _descriptors(folder: Path) -> Iterator[str]:
    with suppress(OSError):  # it has ended, or is not ours to look at
        for entry in os.scandir(folder):
            with suppress(OSError):
                yield os.readlink(entry.path)
