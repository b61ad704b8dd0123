# SPDX-License-Identifier: Apache-2.0
"""What a frame is, read from its bytes by the RFCs; and sums over it.

The judge's eyes: written from RFC 791, 8200, 9293, 768, 792, 4443 and 1071, never from the
programs, which it is to disagree with. Offsets are into the frame, from its Ethernet header on.
"""

from __future__ import annotations

from typing import NamedTuple

from dataplane.model.net import Family
from tests.program.packets import sctp_sum

ETHERNET = 14
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
FIN, SYN, RST, ACK = 1, 2, 4, 16
WHOLE, FIRST, LATER = 0, 1, 2

# Where addresses, hops and (IPv4) the header's checksum are.
SRC = {Family.V4: 26, Family.V6: 22}
DST = {Family.V4: 30, Family.V6: 38}
END = {Family.V4: 34, Family.V6: 54}
HOPS = {Family.V4: 22, Family.V6: 21}
SIZE = {Family.V4: 4, Family.V6: 16}
V4_SUM = slice(24, 26)
ICMP_OF = {Family.V4: ICMP, Family.V6: ICMPV6}
ECHOES = {Family.V4: (8, 0), Family.V6: (128, 129)}
ERRORS = {Family.V4: frozenset({3, 4, 11, 12}), Family.V6: frozenset({1, 2, 3, 4})}
HEADER = {Family.V4: 20, Family.V6: 40}
# By protocol: bytes that its header has at least, where its checksum is.
LEAST = {
    Family.V4: {TCP: 20, UDP: 8, SCTP: 12, ICMP: 8},
    Family.V6: {TCP: 20, UDP: 8, SCTP: 12, ICMPV6: 8},
}
SUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}

Address = bytes
Party = tuple[Address, int]
Tuple = tuple[int, Address, int, Address, int]  # protocol, source and port, destination and port


class Sight(NamedTuple):
    """One packet. `wrong` says what contradicts the RFCs, "" for nothing."""

    wrong: str
    src: Address
    dst: Address
    hops: int
    protocol: int = -1
    l4: int = 0
    end: int = 0
    part: int = WHOLE  # WHOLE, FIRST or LATER fragment
    id: bytes = b""
    plain: bool = True  # no options, no extension headers


def look(frame: bytes, family: Family, gso: bool = False) -> Sight | None:
    """None: too short to have addresses. Of a GSO packet, length 0 means too long to say it."""
    if len(frame) < END[family]:
        return None
    return _look_v4(frame, gso) if family is Family.V4 else _look_v6(frame, gso)


def _look_v4(frame: bytes, gso: bool) -> Sight:
    src, dst, hops = frame[26:30], frame[30:34], frame[22]
    header = (frame[14] & 15) * 4
    total = frame[16] << 8 | frame[17]
    if gso and not total:
        total = len(frame) - ETHERNET
    end = ETHERNET + total
    if frame[14] >> 4 != 4 or header < 20:
        return Sight("version or header length", src, dst, hops)
    if total < header or end > len(frame):
        return Sight("total length", src, dst, hops)
    protocol, l4 = frame[23], ETHERNET + header
    field = frame[20] << 8 | frame[21]
    part = LATER if field & 0x1FFF else FIRST if field & 0x2000 else WHOLE
    wrong = "" if part == LATER else _wrong_l4(frame, Family.V4, protocol, l4, end, part, gso)
    return Sight(wrong, src, dst, hops, protocol, l4, end, part, frame[18:20], header == 20)


def _look_v6(frame: bytes, gso: bool) -> Sight:
    src, dst, hops = frame[22:38], frame[38:54], frame[21]
    length = frame[18] << 8 | frame[19]
    end = ETHERNET + 40 + length if length or not gso else len(frame)
    if frame[14] >> 4 != 6:
        return Sight("version", src, dst, hops)
    if end > len(frame):
        return Sight("payload length", src, dst, hops)
    following, at, part, id_ = frame[20], ETHERNET + 40, WHOLE, b""
    while following in (HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT) and part != LATER:
        if at + 8 > end:
            return Sight("extension header's length", src, dst, hops)
        if following == FRAGMENT and part != WHOLE:
            return Sight("fragment in a fragment", src, dst, hops)
        if following == FRAGMENT:
            field = frame[at + 2] << 8 | frame[at + 3]
            part = LATER if field & 0xFFF8 else FIRST if field & 1 else WHOLE
            id_ = frame[at + 4 : at + 8]
            length = 8
        else:
            length = 8 + 8 * frame[at + 1]
        following, at = frame[at], at + length
    wrong = "" if part == LATER else _wrong_l4(frame, Family.V6, following, at, end, part, gso)
    return Sight(wrong, src, dst, hops, following, at, end, part, id_, at == ETHERNET + 40)


def _wrong_l4(
    frame: bytes, family: Family, protocol: int, l4: int, end: int, part: int, gso: bool
) -> str:
    if l4 + LEAST[family].get(protocol, 0) > end:
        return "no room for the transport header"
    if protocol == TCP:
        header = (frame[l4 + 12] >> 4) * 4
        if header < 20 or l4 + header > end:
            return "TCP header length"
    if protocol == UDP and not gso:
        length = frame[l4 + 4] << 8 | frame[l4 + 5]
        if length < 8 or (part == WHOLE and l4 + length > end):
            return "UDP length"
    return ""


def is_echo(frame: bytes, sight: Sight, family: Family) -> bool:
    return (
        sight.part != LATER
        and sight.protocol == ICMP_OF[family]
        and frame[sight.l4] in ECHOES[family]
    )


def tuple_of(frame: bytes, sight: Sight, family: Family) -> Tuple:
    """Of a packet that is no later fragment; without ports they are 0."""
    protocol, l4 = sight.protocol, sight.l4
    if protocol in (TCP, UDP, SCTP):
        ports = frame[l4 : l4 + 4]
        return protocol, sight.src, ports[0] << 8 | ports[1], sight.dst, ports[2] << 8 | ports[3]
    if is_echo(frame, sight, family):
        id_ = frame[l4 + 4] << 8 | frame[l4 + 5]
        return protocol, sight.src, id_, sight.dst, id_
    return protocol, sight.src, 0, sight.dst, 0


def back(way: Tuple) -> Tuple:
    """The tuple of the other direction."""
    protocol, src, sport, dst, dport = way
    return protocol, dst, dport, src, sport


class Quote(NamedTuple):
    """What an ICMP error quotes: its tuple, and where its parts are in the frame."""

    way: Tuple
    l3: int
    ports: slice


def quote_of(frame: bytes, sight: Sight, family: Family) -> Quote | None:
    """None if this is no ICMP error, or quotes what has no ports, or too little of it."""
    if sight.protocol != ICMP_OF[family] or sight.part == LATER:
        return None
    l3 = sight.l4 + 8
    shift = l3 - ETHERNET
    l4 = l3 + HEADER[family]
    if frame[sight.l4] not in ERRORS[family] or sight.end < l4 or frame[l3] >> 4 != family:
        return None
    if family is Family.V4:
        if frame[l3] & 15 < 5 or (frame[l3 + 6] << 8 | frame[l3 + 7]) & 0x1FFF:
            return None
        l4 = l3 + (frame[l3] & 15) * 4
        protocol = frame[l3 + 9]
    else:
        protocol = frame[l3 + 6]
    if sight.end < l4 + 8:
        return None
    if family is Family.V6 and protocol == FRAGMENT:
        if frame[l4 + 2] or frame[l4 + 3] & 0xF8:
            return None
        protocol, l4 = frame[l4], l4 + 8
        if sight.end < l4 + 8:
            return None
    src = frame[SRC[family] + shift : DST[family] + shift]
    dst = frame[DST[family] + shift : END[family] + shift]
    if protocol in (TCP, UDP, SCTP):
        sport, dport = (frame[at] << 8 | frame[at + 1] for at in (l4, l4 + 2))
        return Quote((protocol, src, sport, dst, dport), l3, slice(l4, l4 + 4))
    if protocol == ICMP_OF[family] and frame[l4] in ECHOES[family]:
        id_ = frame[l4 + 4] << 8 | frame[l4 + 5]
        return Quote((protocol, src, id_, dst, id_), l3, slice(l4 + 4, l4 + 6))
    return None


def remainder(data: bytes) -> int:
    """Of the 16-bit words' sum in one's complement, from an even offset; 0: a right checksum."""
    if len(data) % 2:
        data += b"\0"
    return int.from_bytes(data, "big") % 0xFFFF


def ends(frame: bytes, sight: Sight) -> bool:
    """Whether this says that a flow ends, of a packet that is no later fragment."""
    l4 = sight.l4
    if sight.protocol == TCP:
        return bool(frame[l4 + 13] & (FIN | RST))
    # RFC 9260 3.2: ABORT, and the last of a shutdown
    return sight.protocol == SCTP and l4 + 12 < sight.end and frame[l4 + 12] in (6, 14)


def transport_remainder(frame: bytes, sight: Sight, family: Family) -> int | None:
    """With the pseudo-header; None where there is no checksum that we know of."""
    protocol = sight.protocol
    body = frame[sight.l4 : sight.end]
    if protocol == SCTP and sight.part == WHOLE:
        # no pseudo-header; a sum of zero is left to a device, and stays
        true, said = sctp_sum(body), body[8:12]
        return int.from_bytes(true, "big") ^ int.from_bytes(said, "big") if any(said) else None
    if protocol not in SUM_AT or sight.part == LATER:
        return None
    if protocol == ICMP:
        return remainder(body) if family is Family.V4 else None
    if protocol == ICMPV6 and family is Family.V4:
        return None
    if protocol == UDP and body[6:8] == b"\0\0":
        return None
    return (remainder(body) + remainder(sight.src + sight.dst) + protocol + len(body)) % 0xFFFF


def header_remainder(frame: bytes, sight: Sight) -> int:
    """Of an IPv4 header."""
    return remainder(frame[ETHERNET : sight.l4])
