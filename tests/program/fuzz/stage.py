# SPDX-License-Identifier: Apache-2.0
"""A node that takes tens of thousands of test runs a second, of both families.

A packet costs two or three system calls on buffers that are made once. All is to be called
in the sandbox's thread, which stays on one CPU, so that it is known where a verdict lies.
Must not make packets, and judges nothing.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, socket
from typing import NamedTuple

from dataplane.abi.layout import abi
from dataplane.kernel import bpf, loader
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.loader import Datapath
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.program import prelude, world
from tests.program.node import Node
from tests.program.prelude import Setup
from tests.program.sandbox import Sandbox

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
DROP_MAX = ABI.constant("DROP_MAX")
_VERDICT = struct.Struct("=4I")  # action, reason, hook, ifindex: the head of struct verdict
_VERDICT_SIZE = (ABI.struct("verdict").size + 7) // 8 * 8
_COUNTER = struct.Struct("=QQ")

# A port of the masquerade range that is a socket's of the node.
TAKEN_PORT = world.MASQUERADE_MIN + 5


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One way into the node: a program, the device, and what the packet is given before."""

    name: str  # in a corpus
    hook: str
    program: str
    family: Family
    device: int
    setup: Setup | None = None
    gso_size: int = 0

    @property
    def tables(self) -> Family:
        """Whose maps it uses: the one program for other protocols is of the IPv4 compile."""
        return Family.V4 if self.program == "from_pod_l2" else self.family

    @property
    def least(self) -> int:
        """Bytes that the kernel wants of a test packet: Ethernet's and IP's header."""
        return 54 if self.family is Family.V6 or self.program == "from_pod_l2" else 34

    def meets(self, frame: bytes) -> bytes:
        """What the program gets of a frame."""
        cut = self.setup.cut if self.setup else None
        return frame[:cut].ljust(cut, b"\0") if cut else frame


class Seen(NamedTuple):
    """What came of a packet; action 0: the program left no verdict."""

    retval: int
    action: int
    reason: int
    hook: int
    ifindex: int
    frame: bytes


Count = Counter[tuple[Family, int, int]]  # by family, hook and reason


class _Run:
    """The buffers of one case's runs."""

    def __init__(self, case: Case, program: int, data_in: int, data_out: int) -> None:
        self._context = bytearray(_CONTEXT_SIZE)
        struct.pack_into("=II", self._context, _INGRESS, case.device, case.device)
        if case.gso_size:
            struct.pack_into("=I", self._context, _GSO_SEGMENTS, 2)
            struct.pack_into("=I", self._context, _GSO_SIZE, case.gso_size)
        context = ctypes.addressof(ctypes.c_char.from_buffer(self._context))
        self.attr = bytearray(80)
        struct.pack_into(
            "=IIIIQQIIIIQQ", self.attr, 0,
            program, 0, 0, 0, data_in, data_out, 1, 0, _CONTEXT_SIZE, 0, context, 0,
        )  # fmt: skip
        self.family = case.tables
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.attr))


class Stage:
    """`here` with all tables filled, once a family; use `opened`."""

    def __init__(self, nodes: dict[Family, Node], datapaths: dict[Family, Datapath]) -> None:
        self._nodes, self._datapaths = nodes, datapaths
        self._in, self._out = bytearray(_ROOM), bytearray(_ROOM)
        self._runs: dict[Case, _Run] = {}
        self._cpu = min(os.sched_getaffinity(0))
        self._left = bytearray(_VERDICT_SIZE * bpf.possible_cpus())
        self._nothing = bytes(len(self._left))
        self._key = bytes(4)
        self._read = {f: self._element(f, self._left) for f in Family}
        self._reset = {f: self._element(f, bytearray(self._nothing)) for f in Family}

    def _element(self, family: Family, value: bytearray) -> tuple[int, object]:
        """The attributes of a lookup or update of the verdict, by address."""
        fd = self._datapaths[family].maps[Table("verdicts")]
        key = ctypes.create_string_buffer(4)
        room = ctypes.c_char.from_buffer(value)
        attr = ctypes.create_string_buffer(
            struct.pack("=I4xQQQ", fd, ctypes.addressof(key), ctypes.addressof(room), 0), 32
        )
        return ctypes.addressof(attr), (attr, key, room)

    def run(self, case: Case, frame: bytes) -> Seen:
        """One packet. Raises OSError if the kernel refuses it (shorter than Ethernet's header)."""
        run = self._runs.get(case) or self._make_run(case)
        size = len(frame)
        self._in[:size] = frame
        struct.pack_into("=II", run.attr, 8, size, _ROOM)
        family = run.family
        _SYSCALL(_NUMBER, _UPDATE, self._reset[family][0], 32)
        if _SYSCALL(_NUMBER, _TEST_RUN, run.address, 80) < 0:
            raise bpf.BpfError(ctypes.get_errno(), f"PROG_TEST_RUN {case.program}")
        _SYSCALL(_NUMBER, _LOOKUP, self._read[family][0], 32)
        retval, _, length = struct.unpack_from("=III", run.attr, 4)
        at = self._cpu * _VERDICT_SIZE
        action, reason, hook, ifindex = _VERDICT.unpack_from(self._left, at)
        return Seen(retval, action, reason, hook, ifindex, bytes(self._out[:length]))

    def _make_run(self, case: Case) -> _Run:
        datapath = self._datapaths[case.tables]
        program = datapath.programs[case.program]
        if case.setup is not None:
            name = f"{case.program} after {case.setup}"
            if name not in datapath.programs:
                datapath.programs[name] = prelude.load(program, case.setup)
            program = datapath.programs[name]
        data_in, data_out = (
            ctypes.addressof(ctypes.c_char.from_buffer(b)) for b in (self._in, self._out)
        )
        return self._runs.setdefault(case, _Run(case, program, data_in, data_out))

    def forget(self) -> None:
        """All tables as at the start: no flows, no fragments, no counts."""
        for family, node in self._nodes.items():
            node.fill(family, world.Underlay())

    def drops(self) -> Count:
        """Packets dropped since the tables were filled."""
        counted: Count = Counter()
        for family, datapath in self._datapaths.items():
            fd = datapath.maps[Table("drops", family)]
            info = bpf.map_info(fd)
            size = info.value_size * bpf.possible_cpus()
            for keys, values, count in bpf.map_batches(fd, 4, size):
                for i in range(count):
                    (place,) = struct.unpack_from("=I", keys, i * 4)
                    packets = sum(
                        _COUNTER.unpack_from(values, i * size + at)[0]
                        for at in range(0, size, info.value_size)
                    )
                    if packets:
                        counted[family, *divmod(place, DROP_MAX)] = packets
        return counted


@contextmanager
def opened(
    bundle: Bundle, folder: Path, sizes: Mapping[str, int]
) -> Iterator[tuple[Sandbox, Stage]]:
    """A stage in a sandbox of its own, with tables of these sizes; folder: where to mount."""
    with ExitStack() as stack:
        sandbox = Sandbox(folder, world.DEVICE_MACS)
        stack.callback(sandbox.close)
        nodes, datapaths = {}, {}
        for family in Family:
            place = sandbox.bpffs / f"v{family}"
            datapath = sandbox.do(partial(loader.load, bundle, place, sizes))
            stack.callback(datapath.close)
            nodes[family] = Node("here", datapath, sandbox)
            datapaths[family] = datapath
        for made in sandbox.do(_sockets):
            stack.callback(made.close)
        yield sandbox, Stage(nodes, datapaths)


def _sockets() -> list[socket]:
    """Sockets of the node itself inside the masquerade range."""
    made = []
    for family in (AF_INET, AF_INET6):
        for kind in (SOCK_DGRAM, SOCK_STREAM):
            one = socket(family, kind)
            if family == AF_INET6:
                one.setsockopt(41, 26, 1)  # IPPROTO_IPV6, IPV6_V6ONLY
            one.bind(("", TAKEN_PORT))
            if kind == SOCK_STREAM:
                one.listen()
            made.append(one)
    return made
