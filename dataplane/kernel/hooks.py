# SPDX-License-Identifier: Apache-2.0
"""Which programs belong on which kind of device, put there and compared.

Places are fixed (docs/architecture.md, "tc"), so that a changed program replaces the old
one in one step and everybody else's filters stay. Must not load programs.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from dataplane.kernel import bpf
from dataplane.kernel.netlink import Direction, Filter, NetlinkError, Tc
from dataplane.model.errors import BadEnvironment, Contradiction

_IP, _IPV6, _ALL = 0x0800, 0x86DD, 0x0003
_PRIORITY = {_IP: 100, _IPV6: 101, _ALL: 102}
_HANDLE = 0x706C


class Role(enum.Enum):
    """What a device is to us; the value is the name of its hooks after from_ and to_."""

    POD = "pod"
    UPLINK = "uplink"
    OVERLAY = "overlay"


def places(role: Role, index: int) -> list[Filter]:
    """The filters that a device of this role has, in the order that packets meet them."""
    wanted = [
        (Direction.INGRESS, f"from_{role.value}_4", _IP),
        (Direction.INGRESS, f"from_{role.value}_6", _IPV6),
        (Direction.EGRESS, f"to_{role.value}_4", _IP),
        (Direction.EGRESS, f"to_{role.value}_6", _IPV6),
    ]
    if role is Role.POD:
        wanted.insert(2, (Direction.INGRESS, "from_pod_l2", _ALL))
    return [
        Filter(index, direction, _PRIORITY[protocol], protocol, _HANDLE, "bpf", name)
        for direction, name, protocol in wanted
    ]


class Hooks:
    """The loaded programs, ready to be put on devices."""

    def __init__(self, tc: Tc, programs: Mapping[str, int]) -> None:
        self._tc, self._programs = tc, programs
        self._ids = {name: bpf.prog_info(fd).id for name, fd in programs.items()}

    def wrong(self, role: Role, index: int) -> list[Filter]:
        """Places on a device where our program is missing or another one sits."""
        there = {
            (one.direction, one.priority, one.protocol, one.handle): one.program
            for way in Direction
            for one in self._tc.filters(index, way)
        }
        return [
            place
            for place in places(role, index)
            if there.get((place.direction, place.priority, place.protocol, place.handle))
            != self._ids.get(place.name)
        ]

    def attach(self, role: Role, index: int, device: str, *, fresh: bool = False) -> list[str]:
        """Put what is missing or other in place; the names of the programs that moved.

        `fresh`: the device was just made, so that nothing need be looked for.

        Raises:
            BadEnvironment: someone else's qdisc or filter has our place.
        """
        wanted = places(role, index) if fresh else self.wrong(role, index)
        if not wanted:
            return []
        moving = [(place, self._program(place.name)) for place in wanted]
        try:
            if not fresh:
                self._tc.add_clsact(index)
            self._tc.attach(moving, new=fresh)
        except NetlinkError as refusal:
            place = wanted[refusal.place]
            raise BadEnvironment(
                f"device {device}: filter {place.name}",
                f"the kernel refused it: {refusal.strerror}",
                f"see `tc qdisc show dev {device}` and"
                f" `tc filter show dev {device} {place.direction.name.lower()}`:"
                " an ingress qdisc, or another filter at our priority, stands in its way",
            ) from refusal
        return [place.name for place in wanted]

    def _program(self, name: str) -> int:
        fd = self._programs.get(name)
        if fd is None:
            raise Contradiction(f"program {name}", "is not in the bundle")
        return fd


def detach(tc: Tc, role: Role, index: int) -> int:
    """Take our filters off a device; how many there were. clsact stays."""
    taken = 0
    for place in places(role, index):
        here = {(one.priority, one.handle, one.name) for one in tc.filters(index, place.direction)}
        if (place.priority, place.handle, place.name) in here:
            tc.detach(place)
            taken += 1
    return taken
