# SPDX-License-Identifier: Apache-2.0
"""How many instructions a packet costs: the program again, with each of its blocks counted.

At the head of each block stands a counter's addition, in registers that nobody needs there
or that are put aside. What is counted is the program's own instructions, so it is the same
on each kernel. Must not know maps of ours, nor packets.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dataplane.kernel import bpf, bundle
from dataplane.kernel.bundle import Program

COUNTER = "executed"  # in relocations: a map of one u64 in an array

_INSN = struct.Struct("<BBhi")
_LD, _LDX, _ST, _STX, _ALU, _JMP, _JMP32, _ALU64 = range(8)
_JA, _CALL, _EXIT, _LOAD_64 = 0x00, 0x80, 0x90, 0x18
_MOV, _END, _NEG = 0xB0, 0xD0, 0x80
_FROM_REGISTER, _ATOMIC, _COMPARE_EXCHANGE = 0x08, 0xC0, 0xF1
_CLOBBERED = range(6)  # by a call: its result and its arguments
_ALL = frozenset(range(10))  # r10, the stack, is always there


@dataclass(frozen=True, slots=True)
class _Insn:
    opcode: int
    dst: int
    src: int
    offset: int
    number: int

    @property
    def jumps(self) -> bool:
        return self.opcode & 7 in (_JMP, _JMP32) and self.opcode & 0xF0 not in (_CALL, _EXIT)

    def pack(self) -> bytes:
        return _INSN.pack(self.opcode, self.src << 4 | self.dst, self.offset, self.number)

    def reads(self) -> Iterable[int]:
        kind, operation = self.opcode & 7, self.opcode & 0xF0
        if kind in (_JMP, _JMP32):
            if operation == _CALL:
                return range(1, 6)
            if operation == _EXIT:
                return (0,)
            if operation == _JA:
                return ()
            return (self.dst, self.src) if self.opcode & _FROM_REGISTER else (self.dst,)
        if kind == _LDX:
            return (self.src,)
        if kind == _ST:
            return (self.dst,)
        if kind == _STX:
            exchanges = self.opcode & 0xE0 == _ATOMIC and self.number == _COMPARE_EXCHANGE
            return (self.dst, self.src, 0) if exchanges else (self.dst, self.src)
        if kind == _LD:
            return ()
        if operation in (_END, _NEG):
            return (self.dst,)
        known = self.opcode & _FROM_REGISTER
        if operation == _MOV:
            return (self.src,) if known else ()
        return (self.dst, self.src) if known else (self.dst,)

    def writes(self) -> Iterable[int]:
        kind = self.opcode & 7
        if kind in (_JMP, _JMP32):
            return _CLOBBERED if self.opcode & 0xF0 == _CALL else ()
        return (self.dst,) if kind in (_LD, _LDX, _ALU, _ALU64) else ()


def _insn(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, number: int = 0) -> _Insn:
    return _Insn(opcode, dst, src, offset, number)


def counted(program: Program) -> Program:
    """The program, which adds to COUNTER's number what it executes."""
    code = [
        _Insn(op, registers & 15, registers >> 4, offset, number)
        for op, registers, offset, number in _INSN.iter_unpack(program.instructions)
    ]
    # the second half of a 64-bit load is no instruction
    halves = {at + 1 for at, one in enumerate(code) if one.opcode == _LOAD_64}
    ways = [_ways(at, one) for at, one in enumerate(code)]
    live = _live(code, ways, halves)
    heads = {0} | {
        way for at, one in enumerate(code) if at not in halves and one.jumps for way in ways[at]
    }
    out: list[_Insn] = []
    moved: dict[int, int] = {}
    jumps: list[tuple[int, int]] = []
    counters: list[int] = []
    for at, one in enumerate(code):
        moved[at] = len(out)
        if at in heads:
            length = _length(at, code, heads, halves)
            preamble, place = _addition(length, live[at], program.stack)
            counters.append(len(out) + place)
            out += preamble
        if at not in halves and one.jumps:
            jumps.append((len(out), at + one.offset + 1))
        out.append(one)
    for place, target in jumps:
        out[place] = dataclasses.replace(out[place], offset=moved[target] - place - 1)
    relocations = {
        pin: tuple(_past_addition(moved[at], at, heads, live, program) for at in places)
        for pin, places in program.relocations.items()
    }
    return dataclasses.replace(
        program,
        instructions=b"".join(one.pack() for one in out),
        relocations=relocations | {COUNTER: tuple(counters)},
    )


def load(program: Program, fds: Mapping[str, int], counter: int) -> int:
    """The fd of the counted program; fds: maps by pin; counter: an array's, of one u64."""
    made = counted(program)
    code = bytearray(made.instructions)
    for pin, places in made.relocations.items():
        for place in places:
            struct.pack_into("=i", code, place * 8 + 4, {**fds, COUNTER: counter}[pin])
    return bpf.prog_load("counted", program.type, bytes(code), bundle.LICENSE)


def _ways(at: int, one: _Insn) -> tuple[int, ...]:
    if one.opcode == _LOAD_64:
        return (at + 2,)
    if one.opcode & 7 in (_JMP, _JMP32):
        operation = one.opcode & 0xF0
        if operation == _EXIT:
            return ()
        if operation == _JA:
            return (at + one.offset + 1,)
        if operation != _CALL:
            return (at + 1, at + one.offset + 1)
    return (at + 1,)


def _live(code: list[_Insn], ways: list[tuple[int, ...]], halves: set[int]) -> list[frozenset[int]]:
    """By instruction, the registers that are read before they are written, from there on."""
    live: list[frozenset[int]] = [frozenset()] * len(code)
    changed = True
    while changed:
        changed = False
        for at in reversed(range(len(code))):
            if at in halves:
                continue
            after = frozenset[int]().union(*(live[way] for way in ways[at]))
            here = (after - frozenset(code[at].writes())) | frozenset(code[at].reads()) & _ALL
            if here != live[at]:
                live[at], changed = here, True
    return live


def _length(head: int, code: list[_Insn], heads: set[int], halves: set[int]) -> int:
    """Instructions of the block that begins here."""
    length = 0
    for at in range(head, len(code)):
        if at in heads and at != head:
            break
        length += at not in halves
        if at not in halves and (code[at].jumps or code[at].opcode == _JMP | _EXIT):
            break
    return length


def _addition(length: int, live: frozenset[int], stack: int) -> tuple[list[_Insn], int]:
    """Instructions that add to the counter, and which of them loads its address."""
    one, two = sorted(_ALL, key=lambda register: (register in live, register))[:2]
    below = -(stack + 7) // 8 * 8 - 8
    aside = [(r, below - 8 * i) for i, r in enumerate((one, two)) if r in live]
    save = [_insn(0x7B, 10, r, at) for r, at in aside]  # *(u64 *)(r10 + at) = r
    restore = [_insn(0x79, r, 10, at) for r, at in aside]
    load = [_insn(_LOAD_64, one, 2), _insn(0)]  # the address of a map's value
    add = [_insn(0xB7, two, number=length), _insn(0xDB, one, two)]  # atomic u64 addition
    return [*save, *load, *add, *restore], len(save)


def _past_addition(
    place: int, at: int, heads: set[int], live: list[frozenset[int]], program: Program
) -> int:
    return place + (len(_addition(0, live[at], program.stack)[0]) if at in heads else 0)
