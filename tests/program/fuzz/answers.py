# SPDX-License-Identifier: Apache-2.0
"""Says what is wrong with an answer, by RFC 826, 792, 4443, 4861, 9293 and 1122.

Resets, ICMP errors, ARP replies and neighbour advertisements that a program made of the
packet that it was given. Knows no program.
"""

from __future__ import annotations

from dataplane.model.net import Family
from tests.program import world
from tests.program.fuzz.place import Place
from tests.program.fuzz.sight import (
    ACK,
    ETHERNET,
    FIN,
    ICMP_OF,
    ICMPV6,
    LATER,
    RST,
    SYN,
    TCP,
    WHOLE,
    Sight,
    header_remainder,
    look,
    transport_remainder,
)  # fmt: skip
from tests.program.fuzz.stage import Case
from tests.program.quick import ABI, Seen

_DROP = ABI.enum("drop")
_HOPS, _BIG = (int(_DROP[f"DROP_{name}"]) for name in ("HOP_LIMIT", "TOO_BIG"))
_REFUSED = range(int(_DROP["DROP_NO_BACKEND"]), int(_DROP["DROP_NO_FLOW"]) + 1)
# type and code: port unreachable, hops ran out, too big
_KINDS = {
    Family.V4: ((3, 3), (11, 0), (3, 4)),
    Family.V6: ((1, 4), (3, 0), (2, 0)),
}
_ECHO = {Family.V4: 8, Family.V6: 128}
_SOLICIT, _ADVERT = 135, 136


def wrong(case: Case, given: bytes, sight: Sight, seen: Seen, place: Place) -> str:
    """One sentence; "" if the answer is as the RFCs have it."""
    family, out = case.family, seen.frame
    why = _wrong_question(given, sight, seen, place, family)
    if why:
        return f"answered {why}"
    after = look(out, family)
    if after is None or after.wrong or after.end != len(out) or not after.plain:
        return "answer is malformed"
    if out[12:14] != given[12:14] or (family is Family.V6 and out[14:18] != b"\x60\0\0\0"):
        return "answer's type, class or flow label"
    if out[:12] != given[6:12] + given[:6] and seen.reason != 0:
        return "answer's MACs"
    if after.dst != sight.src:
        return "answer goes to another"
    if family is Family.V4 and header_remainder(out, after):
        return "answer's IPv4 checksum"
    if transport_remainder(out, after, family):
        return "answer's checksum"
    if after.part != WHOLE:
        return "answer is a fragment"
    if seen.reason == 0:
        return _wrong_advert(given, sight, out, after, place)
    if after.hops not in (64, 255):
        return f"answer has {after.hops} hops"
    if seen.reason in _REFUSED and after.src != sight.dst:
        return "refused by another than it was sent to"
    if after.protocol == TCP:
        return _wrong_reset(given, sight, out, after, seen)
    if after.protocol != ICMP_OF[family]:
        return f"answer of protocol {after.protocol}"
    return _wrong_error(case, given, sight, out, after, seen, place)


def _wrong_question(given: bytes, sight: Sight, seen: Seen, place: Place, family: Family) -> str:
    """RFC 1122 3.2.2, RFC 4443 2.4(e), RFC 9293 3.10.7: what is never answered."""
    if sight.wrong:
        return f"a packet whose {sight.wrong} is wrong"
    if sight.part == LATER:
        return "a later fragment"
    if place.is_no_source(sight.src):
        return "a source that is no one's"
    advert = seen.reason == 0 and given[sight.l4] == _SOLICIT
    if place.is_group(sight.dst) and not advert:
        return "multicast"
    if sight.protocol == TCP and given[sight.l4 + 13] & RST:
        return "a reset"
    if sight.protocol == ICMP_OF[family] and given[sight.l4] != _ECHO[family] and not advert:
        return f"ICMP of type {given[sight.l4]}"
    return ""


def _wrong_reset(given: bytes, sight: Sight, out: bytes, after: Sight, seen: Seen) -> str:
    """RFC 9293 3.10.7.1."""
    if seen.reason not in _REFUSED or sight.protocol != TCP or sight.part != WHOLE:
        return "reset, where there is none to send"
    at, l4 = sight.l4, after.l4
    if after.end - l4 != 20 or out[l4 + 12] != 0x50 or out[l4 + 14 : l4 + 16] != b"\0\0":
        return "reset with options, data or a window"
    if out[l4 : l4 + 4] != given[at + 2 : at + 4] + given[at : at + 2]:
        return "reset's ports"
    flags = given[at + 13]
    data = sight.end - at - (given[at + 12] >> 4) * 4
    seq = int.from_bytes(given[at + 4 : at + 8], "big")
    if flags & ACK:
        meant = given[at + 8 : at + 12] + bytes(4), RST
    else:
        length = data + bool(flags & SYN) + bool(flags & FIN)
        meant = bytes(4) + (seq + length & 0xFFFFFFFF).to_bytes(4, "big"), RST | ACK
    if (out[l4 + 4 : l4 + 12], out[l4 + 13]) != meant:
        return "reset's numbers or flags"
    return ""


def _wrong_error(
    case: Case, given: bytes, sight: Sight, out: bytes, after: Sight, seen: Seen, place: Place
) -> str:
    family, l4 = case.family, after.l4
    refused, hops, big = _KINDS[family]
    meant = {_HOPS: hops, _BIG: big}.get(seen.reason, refused)
    if (out[l4], out[l4 + 1]) != meant:
        return f"ICMP of type {out[l4]}, code {out[l4 + 1]}"
    quote = out[l4 + 8 :]
    if quote != given[ETHERNET : ETHERNET + len(quote)]:
        return "ICMP quotes what was not sent"
    if len(quote) < sight.l4 - ETHERNET + 8:
        return "ICMP quotes too little"
    if seen.reason in _REFUSED:
        return ""
    if after.src not in place.own:
        return "ICMP from another than this node"
    rest = int.from_bytes(out[l4 + 4 : l4 + 8], "big")
    if seen.reason != _BIG:
        return "" if rest == 0 else "ICMP's unused word"
    if family is Family.V4 and not given[20] & 0x40:
        return "too big, but it may be fragmented"
    return "" if rest in (world.POD_MTU, 1500) else f"too big for an MTU of {rest}"


def _wrong_advert(given: bytes, sight: Sight, out: bytes, after: Sight, place: Place) -> str:
    """RFC 4861 4.4, 7.1.1, 7.2.4: solicited, for the gateway."""
    gateway, mac = place.names["gateway"], world.GATEWAY_MAC
    if sight.protocol != ICMPV6 or given[sight.l4] != _SOLICIT or sight.hops != 255:
        return "answer to what asks nothing"
    if given[sight.l4 + 8 : sight.l4 + 24] != gateway:
        return "answer for another than the gateway"
    if after.src != gateway or after.hops != 255 or out[:12] != given[6:12] + mac:
        return "advertisement's source, hops or MACs"
    body = out[after.l4 :]
    if body[:2] != bytes([_ADVERT, 0]) or body[4:8] != b"\xe0\0\0\0":
        return "advertisement's type or flags"
    return "" if body[8:] == gateway + b"\x02\x01" + mac else "advertisement's target or option"


def wrong_arp(case: Case, given: bytes, seen: Seen, place: Place) -> str:
    """RFC 826: a reply for the gateway to who asked."""
    out, gateway, mac = seen.frame, place.names["gateway"], world.GATEWAY_MAC
    if len(given) < 42 or given[20:22] != b"\0\x01" or given[38:42] != gateway:
        return "ARP: answered what is no request for the gateway"
    if given[28:32] not in (place.zero, place.pods.get(case.device)):
        return "ARP: answered who spoofs"
    if given[14:20] != b"\0\x01\x08\0\x06\x04":
        return "ARP: answered what is not Ethernet and IPv4"
    asker = given[22:32]
    meant = given[22:28] + mac + given[12:20] + b"\0\x02" + mac + gateway + asker + given[42:]
    return "" if out == meant else "ARP: malformed reply"
