# SPDX-License-Identifier: Apache-2.0
"""Tens of thousands of test runs a second, for tests that send packets by the million.

A packet costs three system calls on buffers that are made once. All is to be called in the
sandbox's thread, which stays on one CPU, so that it is known where a verdict lies. Must not
make packets, and judges nothing.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from dataplane.abi.layout import abi
from dataplane.kernel import bpf, prelude
from dataplane.kernel.loader import Datapath
from dataplane.kernel.prelude import Setup
from dataplane.model.net import Family
from dataplane.model.rows import Table

_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_SYSCALL.restype = ctypes.c_long
_SYSCALL.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long]
_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[os.uname().machine]
_LOOKUP, _UPDATE, _TEST_RUN = 1, 2, 10

# The kernel makes no test packet that is longer or shorter; shorter ones are cut by a prelude.
MOST = 3600
_ROOM = 4096
_CONTEXT_SIZE, _INGRESS, _GSO_SEGMENTS, _GSO_SIZE = 192, 36, 164, 176

ABI = abi(Family.V4)
_VERDICT = struct.Struct("=4I")  # action, reason, hook, ifindex: the head of struct verdict
_VERDICT_SIZE = (ABI.struct("verdict").size + 7) // 8 * 8


class Seen(NamedTuple):
    """What came of a packet; action 0: the program left no verdict."""

    retval: int
    action: int
    reason: int
    hook: int
    ifindex: int
    frame: bytes


class Way:
    """One program with the device that packets come by, and the buffers of its runs."""

    __slots__ = ("_context", "address", "attr", "program")

    def __init__(
        self, name: str, program: int, device: int, gso_size: int, data: tuple[int, int]
    ) -> None:
        self.program = name
        self._context = bytearray(_CONTEXT_SIZE)
        struct.pack_into("=II", self._context, _INGRESS, device, device)
        if gso_size:
            struct.pack_into("=I", self._context, _GSO_SEGMENTS, 2)
            struct.pack_into("=I", self._context, _GSO_SIZE, gso_size)
        context = ctypes.addressof(ctypes.c_char.from_buffer(self._context))
        self.attr = bytearray(80)
        struct.pack_into(
            "=IIIIQQIIIIQQ", self.attr, 0,
            program, 0, 0, 0, *data, 1, 0, _CONTEXT_SIZE, 0, context, 0,
        )  # fmt: skip
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.attr))


class Quick:
    """Runs of one datapath's programs."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self._in, self._out = bytearray(_ROOM), bytearray(_ROOM)
        self._data = (
            ctypes.addressof(ctypes.c_char.from_buffer(self._in)),
            ctypes.addressof(ctypes.c_char.from_buffer(self._out)),
        )
        self._at = min(os.sched_getaffinity(0)) * _VERDICT_SIZE
        self._left = bytearray(_VERDICT_SIZE * bpf.possible_cpus())
        self._read = self._element(self._left)
        self._reset = self._element(bytearray(len(self._left)))

    def _element(self, value: bytearray) -> tuple[int, object]:
        """The attributes of a lookup or update of the verdict, by address."""
        fd = self._datapath.maps[Table("verdicts")]
        key = ctypes.create_string_buffer(4)
        room = ctypes.c_char.from_buffer(value)
        attr = ctypes.create_string_buffer(
            struct.pack("=I4xQQQ", fd, ctypes.addressof(key), ctypes.addressof(room), 0), 32
        )
        return ctypes.addressof(attr), (attr, key, room)

    def way(self, program: str, device: int, setup: Setup | None = None, gso_size: int = 0) -> Way:
        """What `run` needs for one program and device; setup is a prelude's."""
        programs, name = self._datapath.programs, program
        if setup is not None:
            name = f"{program} after {setup}"
            if name not in programs:
                programs[name] = prelude.load(programs[program], setup)
        return Way(program, programs[name], device, gso_size, self._data)

    def run(self, way: Way, frame: bytes | bytearray) -> Seen:
        """One packet. Raises OSError if the kernel refuses it (shorter than Ethernet's header)."""
        size = len(frame)
        self._in[:size] = frame
        struct.pack_into("=II", way.attr, 8, size, _ROOM)
        _SYSCALL(_NUMBER, _UPDATE, self._reset[0], 32)
        if _SYSCALL(_NUMBER, _TEST_RUN, way.address, 80) < 0:
            raise bpf.BpfError(ctypes.get_errno(), f"PROG_TEST_RUN {way.program}")
        _SYSCALL(_NUMBER, _LOOKUP, self._read[0], 32)
        retval, _, length = struct.unpack_from("=III", way.attr, 4)
        action, reason, hook, ifindex = _VERDICT.unpack_from(self._left, self._at)
        return Seen(retval, action, reason, hook, ifindex, bytes(self._out[:length]))
