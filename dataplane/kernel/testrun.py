# SPDX-License-Identifier: Apache-2.0
"""One packet through one real program, without sending it: BPF_PROG_TEST_RUN.

For program tests and explain. Must not fill tables, and judges nothing: it says what
the program returned, what became of the packet and what verdict it left behind.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dataplane.abi.codec import codec
from dataplane.kernel import bpf
from dataplane.kernel.loader import Datapath
from dataplane.model.flow import Verdict
from dataplane.model.rows import Table

_VERDICTS = Table("verdicts")
# struct __sk_buff (uapi/linux/bpf.h): what a test run takes, by offset, and its size.
_SIZE = 192
_MARK, _INGRESS, _CB = 8, 36, 48  # ifindex follows ingress_ifindex
_WIRE_LENGTH, _GSO_SEGMENTS, _GSO_SIZE = 160, 164, 176
LOOPBACK = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """retval is the tc verdict; `verdict.action` is 0 if the program came to none.

    cb and mark are the packet's afterwards; duration is ns, the mean of the repeats.
    """

    retval: int
    packet: bytes
    verdict: Verdict
    mark: int
    cb: tuple[int, ...]
    duration: int


class Runner:
    """Runs the programs of a loaded datapath, on one CPU, on its maps."""

    def __init__(self, datapath: Datapath) -> None:
        self._programs = datapath.programs
        self._verdicts = datapath.maps[_VERDICTS]
        self._codec = codec(_VERDICTS)
        self._step = (self._codec.value_size + 7) // 8 * 8
        self._cpu = min(os.sched_getaffinity(0))
        self._nothing = bytes(self._step * bpf.possible_cpus())

    def run(
        self,
        program: str,
        packet: bytes,
        *,
        ifindex: int = LOOPBACK,
        mark: int = 0,
        cb: tuple[int, ...] = (),
        gso_size: int = 0,
        gso_segments: int = 0,
        repeat: int = 1,
    ) -> Outcome:
        """Feed a packet (from its Ethernet header on) to a program, by name.

        `ifindex` is the device that it comes by or leaves by; it must be there in this
        network namespace, or the kernel says ENODEV. Raises BpfError.
        """
        context = bytearray(_SIZE)
        struct.pack_into("=I", context, _MARK, mark)
        struct.pack_into("=II", context, _INGRESS, ifindex, ifindex)
        struct.pack_into("=5I", context, _CB, *(*cb, 0, 0, 0, 0, 0)[:5])
        struct.pack_into("=II", context, _WIRE_LENGTH, 0, gso_segments)
        struct.pack_into("=I", context, _GSO_SIZE, gso_size)
        with self._pinned():
            bpf.map_update(self._verdicts, bytes(4), self._nothing)
            done = bpf.prog_test_run(
                self._programs[program], packet, bytes(context), repeat, room=512
            )
            left = bpf.map_lookup(self._verdicts, bytes(4), len(self._nothing)) or self._nothing
        at = self._cpu * self._step
        return Outcome(
            retval=done.retval,
            packet=done.data,
            verdict=self._codec.parse_value(left[at : at + self._codec.value_size]),
            mark=struct.unpack_from("=I", done.context, _MARK)[0],
            cb=struct.unpack_from("=5I", done.context, _CB),
            duration=done.duration,
        )

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        """This thread on one CPU, so that it is known where the verdict is."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cpu})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
