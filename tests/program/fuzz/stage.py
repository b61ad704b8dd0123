# SPDX-License-Identifier: Apache-2.0
"""A node that takes tens of thousands of test runs a second, of both families.

All is to be called in the sandbox's thread. Must not make packets, and judges nothing.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, socket

from dataplane.kernel import bpf, loader
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.loader import Datapath
from dataplane.kernel.prelude import Setup
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.program import world
from tests.program.node import Node
from tests.program.quick import ABI, Quick, Seen, Way
from tests.program.sandbox import Sandbox

DROP_MAX = ABI.constant("DROP_MAX")
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


Count = Counter[tuple[Family, int, int]]  # by family, hook and reason


class Stage:
    """`here` with all tables filled, once a family; use `opened`."""

    def __init__(self, nodes: dict[Family, Node], datapaths: dict[Family, Datapath]) -> None:
        self._nodes, self._datapaths = nodes, datapaths
        self._quick = {family: Quick(datapath) for family, datapath in datapaths.items()}
        self._ways: dict[Case, Way] = {}

    def run(self, case: Case, frame: bytes) -> Seen:
        """One packet. Raises OSError if the kernel refuses it (shorter than Ethernet's header)."""
        quick = self._quick[case.tables]
        way = self._ways.get(case)
        if way is None:
            way = quick.way(case.program, case.device, case.setup, case.gso_size)
            self._ways[case] = way
        return quick.run(way, frame)

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
