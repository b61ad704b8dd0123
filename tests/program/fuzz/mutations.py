# SPDX-License-Identifier: Apache-2.0
"""What is done to a frame: bytes, lengths and fields changed, sums put right again or not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from dataplane.model.net import Family
from tests.program.fuzz.shapes import BYTES, LENGTHS, PORTS, Shapes
from tests.program.fuzz.sight import (
    DST,
    ETHERNET,
    HOPS,
    ICMP,
    LATER,
    SRC,
    SUM_AT,
    UDP,
    WHOLE,
    look,
    remainder,
)  # fmt: skip
from tests.program.fuzz.stage import Case

Mutation = Callable[[bytearray, Case, Random, Shapes], None]


def mutate(frame: bytes, case: Case, rng: Random, shapes: Shapes) -> bytes:
    """One to three mutations; more than half of the frames get right checksums after."""
    changed = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_ALL)(changed, case, rng, shapes)
    if case.program == "from_pod_l2":
        return bytes(changed)
    # the filter lets no other type in
    changed[12:14] = b"\x08\0" if case.family is Family.V4 else b"\x86\xdd"
    if rng.random() < 0.6:
        refresh(changed, case.family)
    return bytes(changed)


def refresh(frame: bytearray, family: Family) -> None:
    """Right checksums, where the packet is whole enough to have them."""
    sight = look(frame, family)  # type: ignore[arg-type]
    if sight is None or sight.protocol < 0:
        return
    if family is Family.V4:
        refresh_header(frame)
    protocol, l4 = sight.protocol, sight.l4
    if sight.wrong or sight.part != WHOLE or protocol not in SUM_AT:
        return
    at = l4 + SUM_AT[protocol]
    if protocol == UDP and not (frame[at] or frame[at + 1]):
        return
    frame[at : at + 2] = b"\0\0"
    body = frame[l4 : sight.end]
    total = remainder(bytes(body))
    if protocol != ICMP:
        total += remainder(sight.src + sight.dst) + protocol + len(body)
    value = 0xFFFF - total % 0xFFFF
    frame[at : at + 2] = value.to_bytes(2, "big")


def refresh_header(frame: bytearray) -> None:
    """An IPv4 header's checksum."""
    frame[24:26] = b"\0\0"
    total = remainder(bytes(frame[ETHERNET : ETHERNET + (frame[ETHERNET] & 15) * 4]))
    frame[24:26] = (0xFFFF - total).to_bytes(2, "big")


# ---- mutations: in place, of a frame that has at least an Ethernet header ----
def _flip(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    for _ in range(rng.choice((1, 1, 2, 4))):
        frame[rng.randrange(len(frame))] ^= 1 << rng.getrandbits(3)


def _set_byte(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    frame[rng.randrange(len(frame))] = rng.choice(BYTES)


def _set_header(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    """A byte of the IP header or what follows it closely."""
    at = rng.randrange(ETHERNET, ETHERNET + (44 if case.family is Family.V4 else 64))
    if at < len(frame):
        frame[at] = rng.choice(BYTES)


def _set_length(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    at = 16 if case.family is Family.V4 else 18
    if len(frame) < at + 2:
        return
    length = rng.choice((len(frame) - ETHERNET + rng.randrange(-9, 9), rng.choice(LENGTHS)))
    frame[at : at + 2] = (length & 0xFFFF).to_bytes(2, "big")


def _cut(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    """Shorter than it says; half of them say so."""
    if len(frame) <= ETHERNET:
        return
    del frame[rng.randrange(ETHERNET, len(frame)) :]
    if rng.getrandbits(1):
        _say_length(frame, case)


def _grow(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    """Padded, or longer and says so."""
    frame += rng.randbytes(rng.choice((1, 2, 7, 64, 1400)))
    if rng.getrandbits(1):
        _say_length(frame, case)


def _say_length(frame: bytearray, case: Case) -> None:
    if case.family is Family.V4 and len(frame) >= 34:
        frame[16:18] = (len(frame) - ETHERNET).to_bytes(2, "big")
    elif case.family is Family.V6 and len(frame) >= 54:
        frame[18:20] = (len(frame) - ETHERNET - 40).to_bytes(2, "big")


def _set_hops(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    at = HOPS[case.family]
    if at < len(frame):
        frame[at] = rng.choice((0, 1, 1, 2, 255))


def _set_address(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    at = rng.choice((SRC, DST))[case.family]
    chosen = rng.choice(shapes.all_addresses[case.family])
    if len(frame) >= at + len(chosen):
        frame[at : at + len(chosen)] = chosen


def _set_port(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    sight = look(frame, case.family)  # type: ignore[arg-type]
    if sight is None or sight.protocol < 0 or sight.part == LATER:
        return
    at = sight.l4 + rng.choice((0, 2, 4))
    if at + 2 <= len(frame):
        frame[at : at + 2] = rng.choice(PORTS).to_bytes(2, "big")


def _set_fragment(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    if case.family is Family.V4 and len(frame) >= 34:
        field = rng.choice((0x2000, 0x2000, 0x0001, 0x2001, 0x00B9, 0x1FFF, 0x8000, 0x6000))
        frame[20:22] = field.to_bytes(2, "big")
        frame[18:20] = bytes([0, rng.getrandbits(2)])
    elif case.family is Family.V6 and len(frame) >= 62:
        field = rng.choice((1, 1, 8, 9, 0x05C8, 0xFFF8, 0))
        extension = bytes([frame[20], 0]) + field.to_bytes(2, "big")
        frame[54:54] = extension + bytes([0, 0, 0, rng.getrandbits(2)])
        frame[20] = 44
        length = (frame[18] << 8 | frame[19]) + 8
        frame[18:20] = (length & 0xFFFF).to_bytes(2, "big")


def _noise(frame: bytearray, case: Case, rng: Random, shapes: Shapes) -> None:
    """From somewhere on, nothing but random bytes."""
    at = rng.randrange(ETHERNET, max(len(frame), ETHERNET + 1))
    frame[at:] = rng.randbytes(len(frame) - at)


_ALL: tuple[Mutation, ...] = (
    _flip, _flip, _set_byte, _set_header, _set_header, _set_length, _cut, _grow, _set_hops,
    _set_address, _set_address, _set_port, _set_port, _set_fragment, _noise,
)  # fmt: skip
