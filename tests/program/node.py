# SPDX-License-Identifier: Apache-2.0
"""A node under test: the real programs on maps of their own, fed with packets.

`node.from_pod("client", "tcp client:40000 > near:80")` gives a `Result`, whose
`expect` compares verdict, packet and drop counters with what was meant.
Must not know what is right: the tables of the tests say it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, socket

from dataplane.abi.layout import abi
from dataplane.kernel import bpf, prelude
from dataplane.kernel.loader import Datapath
from dataplane.kernel.prelude import Setup
from dataplane.kernel.testrun import Runner
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table
from tests.program import packets, world
from tests.program.result import Frame, Result
from tests.program.sandbox import Sandbox
from tests.program.state import Tables


class Node(Tables):
    """`here` or `there`, of one family at a time."""

    def __init__(self, name: str, datapath: Datapath, sandbox: Sandbox) -> None:
        super().__init__(name, datapath)
        self._runner, self._sandbox = Runner(datapath), sandbox

    # ---- packets ----
    def build(self, line: str, dst: bytes, src: bytes) -> Frame:
        packet = packets.build(line, self.family, self.addresses)
        return packets.frame(packet, self.family, dst, src)

    def hop(self, name: str | None) -> IPAddress | None:
        """What a verdict calls a next hop of this name."""
        if name is None:
            return None
        outer = self.underlay.outer if self.underlay.vxlan else self.family
        return ip_address(world.CAST[name][outer is Family.V6])

    def from_pod(self, pod: str, packet: str | Frame) -> Result:
        device = world.PODS[pod]
        return self.run("from_pod", device, self._from(packet, world.GATEWAY_MAC, device))

    def to_pod(self, pod: str, packet: str | Frame, setup: Setup | None = None) -> Result:
        device = world.PODS[pod]
        frame = self._frame(packet, world.mac_of(device), world.GATEWAY_MAC)
        return self.run("to_pod", device, frame, setup)

    def from_uplink(self, packet: str | Frame, device: int = 0) -> Result:
        device = device or self.uplink
        frame = self._frame(packet, world.mac_of(device), world.SWITCH_MAC)
        return self.run("from_uplink", device, frame)

    def to_uplink(self, packet: str | Frame, setup: Setup | None = None) -> Result:
        frame = self._frame(packet, world.SWITCH_MAC, world.mac_of(self.uplink))
        return self.run("to_uplink", self.uplink, frame, setup)

    def from_overlay(
        self, packet: str | Frame, sender: IPAddress | None = None, vni: int = world.VNI
    ) -> Result:
        """By default from the other node, with our VNI."""
        sender = sender or self.hop("there" if self.name == "here" else "here")
        assert sender is not None
        frame = self._frame(packet, world.OVERLAY_MAC, world.OVERLAY_MAC)
        return self.run("from_overlay", self.overlay, frame, Setup(tunnel=(sender, vni)))

    def to_overlay(self, packet: str | Frame, setup: Setup | None = None) -> Result:
        frame = self._frame(packet, bytes(6), world.OVERLAY_MAC)
        return self.run("to_overlay", self.overlay, frame, setup)

    @contextmanager
    def socket(self, protocol: str, port: int) -> Iterator[None]:
        """A socket of the node itself, bound to any address."""
        kind = SOCK_STREAM if protocol == "tcp" else SOCK_DGRAM

        def bind() -> socket:
            made = socket(AF_INET if self.family is Family.V4 else AF_INET6, kind)
            made.bind(("", port))
            if protocol == "tcp":
                made.listen()
            return made

        with self._sandbox.do(bind):
            yield

    @contextmanager
    def without(self, tail: str) -> Iterator[None]:
        """No program stands at this place of `tails`."""
        place = struct.pack("=I", abi(self.family).enum("tail")[f"TAIL_{tail}"])
        fd = self.datapath.tails[Table("tails", self.family)]
        bpf.map_delete(fd, place)
        try:
            yield
        finally:
            program = self.datapath.programs[f"tail_{tail.lower()}_{self.family:d}"]
            bpf.map_update(fd, place, struct.pack("=I", program))

    @property
    def uplink(self) -> int:
        return world.UPLINK if self.name == "here" else world.UPLINK_THERE

    @property
    def overlay(self) -> int:
        return world.OVERLAY if self.name == "here" else world.OVERLAY_THERE

    def run(
        self,
        hook: str,
        device: int,
        frame: Frame,
        setup: Setup | None = None,
        gso_size: int = 0,
    ) -> Result:
        """One frame through one hook of a device, prepared by a prelude if need be."""
        program = hook if hook == "from_pod_l2" else f"{hook}_{self.family:d}"
        if setup is not None:
            program = self._with_prelude(program, setup)
        # The one program for all other protocols is of the IPv4 compile.
        family = Family.V4 if hook == "from_pod_l2" else self.family
        before = self.drops(family)
        outcome = self._sandbox.do(
            lambda: self._runner.run(program, frame, ifindex=device, gso_size=gso_size)
        )
        assert outcome.retval not in (prelude.FAILED_SETUP, prelude.FAILED_CALL), (
            f"the prelude failed: {outcome.retval:#x}"
        )
        return Result(self, hook, device, frame, outcome, self.drops(family) - before)

    def _with_prelude(self, program: str, setup: Setup) -> str:
        name = f"{program} after {setup}"
        if name not in self.datapath.programs:
            fd = prelude.load(self.datapath.programs[program], setup)
            self.datapath.programs[name] = fd
        return name

    def _from(self, packet: str | Frame, dst: bytes, device: int) -> Frame:
        return self._frame(packet, dst, world.mac_of(device))

    def _frame(self, packet: str | Frame, dst: bytes, src: bytes) -> Frame:
        return packet if isinstance(packet, bytes) else self.build(packet, dst, src)
