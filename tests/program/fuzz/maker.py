# SPDX-License-Identifier: Apache-2.0
"""Makes packets: shapes between chosen ends, what follows from packets, and mutations of both.

All from one seed, so the same seed gives the same packets as long as the programs answer the
same. Must not judge.
"""

from __future__ import annotations

from collections import deque
from random import Random

from dataplane.model.net import Family
from tests.program import world
from tests.program.fuzz import mutations
from tests.program.fuzz.mutations import refresh
from tests.program.fuzz.shapes import PORTS, SERVED, Shapes, macs
from tests.program.fuzz.sight import (
    DST,
    ECHOES,
    END,
    ETHERNET,
    ICMPV6,
    LATER,
    SCTP,
    SRC,
    TCP,
    UDP,
    WHOLE,
    Sight,
    is_echo,
    look,
)  # fmt: skip
from tests.program.fuzz.stage import Case
from tests.program.quick import MOST, Seen

_PASS, _POD, _TUNNEL, _WORLD = 1, 3, 4, 6
_WAITING = 64  # packets that follow from others
_FLAGS = (0x12, 0x10, 0x10, 0x18, 0x11, 0x14, 0x04, 0x02)
_ERRORS = {
    Family.V4: (b"\3\3", b"\3\4", b"\x0b\0", b"\3\1"),
    Family.V6: (b"\1\4", b"\2\0", b"\3\0", b"\1\0"),
}


class Maker:
    """`next` gives a packet, `take` tells what became of it."""

    def __init__(self, seed: str, shapes: Shapes) -> None:
        self._rng = Random(seed)
        self._shapes = shapes
        self._waiting: deque[tuple[Case, bytes]] = deque(maxlen=_WAITING)
        self._ends = {case: shapes.ends(case) for case in shapes.by_name.values()}
        self._least = {case: case.least for case in shapes.by_name.values()}
        self._macs = {case: macs(case) for case in shapes.by_name.values()}

    def next(self) -> tuple[Case, bytes]:
        """A case and its packet."""
        rng = self._rng
        dice = rng.random()
        if dice < 0.45 and self._waiting:
            case, frame = self._waiting.popleft()
            mutate = rng.random() < 0.15
        else:
            case = self._shapes.pick_case(rng)
            if dice > 0.97:
                frame, mutate = self._random(case), False
            else:
                frame, mutate = self._fresh(case), rng.random() < 0.5
        if mutate:
            frame = mutations.mutate(frame, case, rng, self._shapes)
        return case, frame[:MOST].ljust(self._least[case], b"\0")

    # ---- out of nothing ----
    def _fresh(self, case: Case) -> bytes:
        rng, family = self._rng, case.family
        if case.program == "from_pod_l2":
            return rng.choice(self._shapes.beyond_ip)
        frame = bytearray(rng.choice(self._shapes.frames[family]))
        frame[:12] = self._macs[case]
        known = self._shapes.addresses[family]
        # neighbour discovery and the like keep their own ends
        if frame[SRC[family] : DST[family]] != known["client"] and rng.random() < 0.8:
            return bytes(frame)
        for at, ends in zip((SRC, DST), self._ends[case], strict=True):
            if rng.random() < 0.1:
                ends = self._shapes.all_addresses[family]
            start = at[family]
            chosen = ends[int(rng.random() * len(ends))]
            frame[start : start + len(chosen)] = chosen
        sight = look(bytes(frame), family)
        assert sight is not None
        if sight.protocol in (TCP, UDP, SCTP) and sight.part != LATER:
            ports = self._ports()
            if case.hook in ("to_uplink", "from_overlay") and rng.random() < 0.3:
                ports = ports[::-1]
            frame[sight.l4 : sight.l4 + 4] = ports
        refresh(frame, family)
        return bytes(frame)

    def _ports(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.15:
            sport, dport = rng.choice(PORTS), rng.choice(PORTS)
        else:
            sport, dport = 40000 + rng.getrandbits(6), rng.choice(SERVED)
        return sport.to_bytes(2, "big") + dport.to_bytes(2, "big")

    def _random(self, case: Case) -> bytes:
        """Noise, with the type that the filter asks for: no other packet reaches the program."""
        rng = self._rng
        frame = bytearray(rng.randbytes(rng.randrange(ETHERNET, 200)))
        if case.program != "from_pod_l2":
            frame[12:14] = b"\x08\0" if case.family is Family.V4 else b"\x86\xdd"
        if rng.getrandbits(1):
            frame[:12] = self._macs[case]
        return bytes(frame)

    # ---- out of what came out ----
    def take(self, case: Case, given: bytes, seen: Seen) -> None:
        """Let packets follow from what became of one."""
        if seen.action not in (_PASS, _POD, _TUNNEL, _WORLD) or case.program == "from_pod_l2":
            return
        rng, family, frame = self._rng, case.family, seen.frame
        sight = look(frame, family)
        if sight is None or sight.wrong:
            return
        there = self._goes(case, sight, seen)
        if there is None:
            return
        onward, answers = there
        dice = rng.random()
        if onward and dice < 0.7:
            self._wait(onward, frame)
        if answers is None or sight.part != WHOLE:
            return
        if dice < 0.45:
            self._wait(answers, self._reply(frame, sight, family))
        elif dice < 0.55:
            self._wait(answers, self._error(frame, sight, family))
        elif dice < 0.65 and sight.protocol == TCP:
            again = bytearray(given)
            again[sight.l4 + 13] = rng.choice(_FLAGS)
            refresh(again, family)
            self._wait(case, bytes(again))
        elif dice < 0.70:
            for part in _fragments(given, sight, family):
                self._wait(case, part)
        elif dice < 0.72:
            for part in reversed(_fragments(given, sight, family)):
                self._wait(case, part)

    def _wait(self, case: Case, frame: bytes) -> None:
        self._waiting.append((case, self._macs[case] + frame[12:]))

    def _goes(self, case: Case, sight: Sight, seen: Seen) -> tuple[Case | None, Case | None] | None:
        """The hook that it comes to next, and the hook that its answer comes by."""
        names, known, f = (
            self._shapes.by_name,
            self._shapes.addresses[case.family],
            int(case.family),
        )
        pods = {known["client"]: "client", known["neighbour"]: "neighbour"}
        pod = pods.get(sight.dst)
        if seen.action == _POD:
            return None, names[f"{pod}/{f}"] if pod else None
        if seen.action == _TUNNEL:
            return None, names[f"overlay/{f}"]
        if seen.action == _WORLD:
            name = "uplink2" if seen.ifindex == world.UPLINK2 else "uplink"
            return None, names[f"{name}/{f}"]
        if case.hook == "to_pod":
            return None, names[f"{pod}/{f}"] if pod else None
        if case.hook == "to_uplink":
            return None, names[f"uplink/{f}"]
        if case.hook == "to_overlay":
            return None, names[f"overlay/{f}"]
        if pod:
            return names[f"to-{pod}/{f}"], names[f"{pod}/{f}"]
        return names[f"to-uplink/{f}"], None

    def _reply(self, frame: bytes, sight: Sight, family: Family) -> bytes:
        reply = _turned(frame, sight, family)
        if sight.protocol == TCP:
            reply[sight.l4 + 13] = self._rng.choice(_FLAGS)
        refresh(reply, family)
        return bytes(reply)

    def _error(self, frame: bytes, sight: Sight, family: Family) -> bytes:
        """From the receiver, or from a router on the way."""
        rng = self._rng
        quote = frame[ETHERNET : sight.end if rng.getrandbits(1) else sight.l4 + 8]
        src = sight.dst if rng.random() < 0.7 else rng.choice(self._shapes.all_addresses[family])
        body = rng.choice(_ERRORS[family]) + b"\0\0" + b"\0\0\5\0" + quote[:520]
        if family is Family.V4:
            head = b"\x45\0" + (20 + len(body)).to_bytes(2, "big") + b"\0\1\0\0\x40\1\0\0"
        else:
            head = b"\x60\0\0\0" + len(body).to_bytes(2, "big") + bytes([ICMPV6, 64])
        error = bytearray(frame[:ETHERNET] + head + src + sight.src + body)
        refresh(error, family)
        return bytes(error)


def _turned(frame: bytes, sight: Sight, family: Family) -> bytearray:
    """The other way round."""
    turned = bytearray(frame)
    turned[SRC[family] : END[family]] = sight.dst + sight.src
    l4 = sight.l4
    if sight.protocol in (TCP, UDP, SCTP):
        turned[l4 : l4 + 4] = frame[l4 + 2 : l4 + 4] + frame[l4 : l4 + 2]
    elif is_echo(frame, sight, family):
        request, reply = ECHOES[family]
        turned[l4] = reply if frame[l4] == request else request
    return turned


def _fragments(frame: bytes, sight: Sight, family: Family) -> list[bytes]:
    """A whole packet without options in two."""
    size = (sight.end - sight.l4) // 2 // 8 * 8
    if size < 8 or not sight.plain:
        return []
    parts = []
    for start, end, more in ((0, size, 1), (size, sight.end - sight.l4, 0)):
        body = frame[sight.l4 + start : sight.l4 + end]
        part = bytearray(frame[: sight.l4] + body)
        if family is Family.V4:
            part[20:22] = (more << 13 | start // 8).to_bytes(2, "big")
            part[16:18] = (20 + len(body)).to_bytes(2, "big")
            mutations.refresh_header(part)
        else:
            part[20] = 44
            part[18:20] = (8 + len(body)).to_bytes(2, "big")
            extension = (
                bytes([sight.protocol, 0]) + (start | more).to_bytes(2, "big") + frame[40:44]
            )
            part[54:54] = extension
        parts.append(bytes(part))
    return parts
