# SPDX-License-Identifier: Apache-2.0
"""Packets kept in a file: a line is a way in and a frame in hex, a blank line means fresh tables.

client/4 0a706c0000020200000000650800...  # words
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.program.fuzz.run import Packet
from tests.program.fuzz.stage import Case


def read(path: Path, cases: Mapping[str, Case]) -> list[list[Packet]]:
    """Its sequences. Raises KeyError for a way in that there is not, ValueError for hex."""
    sequences: list[list[Packet]] = [[]]
    for line in path.read_text().splitlines():
        words = line.partition("#")[0].split()
        if words:
            name, frame = words
            sequences[-1].append((cases[name], bytes.fromhex(frame)))
        elif not line and sequences[-1]:
            sequences.append([])
    return [s for s in sequences if s]


def lines(packets: Iterable[Packet]) -> str:
    """A sequence as in the file."""
    return "".join(f"{case.name} {frame.hex()}\n" for case, frame in packets)
