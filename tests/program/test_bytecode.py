# SPDX-License-Identifier: Apache-2.0
"""What older verifiers ask of the bytecode's shape, told here without such a kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from dataplane.kernel.bundle import Program
from dataplane.kernel.compiler import compile_bundle

_INSN = struct.Struct("<BBhi")
# Classes, and the operations of jumps (uapi/linux/bpf.h, bpf_common.h).
_JMP, _JMP32 = 5, 6
_JA, _CALL, _EXIT, _LOAD_64 = 0x00, 0x80, 0x90, 0x18


def edges(program: Program) -> list[list[tuple[int, bool]]]:
    """By instruction, where it may go on, and whether by an instruction that jumps."""
    code = list(_INSN.iter_unpack(program.instructions))
    ways: list[list[tuple[int, bool]]] = []
    for place, (opcode, _, offset, _) in enumerate(code):
        operation = opcode & 0xF0 if opcode & 7 in (_JMP, _JMP32) else None
        if opcode == _LOAD_64:
            ways.append([(place + 2, False)])
        elif operation is None or operation == _CALL:
            ways.append([(place + 1, False)])
        elif operation == _EXIT:
            ways.append([])
        elif operation == _JA:
            ways.append([(place + offset + 1, True)])
        else:
            ways.append([(place + 1, True), (place + offset + 1, True)])
    return ways


def falls_back(program: Program) -> Iterator[tuple[int, int]]:
    """Loops that are closed by falling into their head, as check_cfg() of Linux 6.1 finds them."""
    ways = edges(program)
    unseen, open_, done = range(3)
    state = [unseen] * len(ways)
    state[0] = open_
    walk = [(0, iter(ways[0]))]
    while walk:
        place, rest = walk[-1]
        for target, jumps in rest:
            if state[target] == unseen:
                state[target] = open_
                walk.append((target, iter(ways[target])))
                break
            if state[target] == open_ and not jumps:
                yield place, target
        else:
            state[place] = done
            walk.pop()


def test_every_loop_is_closed_by_a_jump(pytestconfig: pytest.Config) -> None:
    """Linux 6.1 refuses one whose last instruction falls into its head: "back-edge from insn"."""
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    found = {p.name: list(falls_back(p)) for p in bundle.programs}
    assert not {name: places for name, places in found.items() if places}
