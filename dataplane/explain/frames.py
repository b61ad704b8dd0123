# SPDX-License-Identifier: Apache-2.0
"""The first packet of a flow as bytes, and what a program made of it.

Pure. Only what a new flow begins with: TCP SYN, a UDP datagram, SCTP INIT.
Sources: RFC 791, 8200, 9293, 768, 9260 (CRC32c: RFC 3309).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dataplane.model.net import Family, IPAddress, Protocol, family_of

ETHERNET = 14
_TYPES = {Family.V4: 0x0800, Family.V6: 0x86DD}
_HEADER = {Family.V4: 20, Family.V6: 40}
_HOPS = 64
_DONT_FRAGMENT = 0x4000
_SYN, _RST = 0x02, 0x04
_ICMP = {Family.V4: 1, Family.V6: 58}
_UDP_DATA = b"podlane "
# init tag, window, streams out and in, first sequence number
_SCTP_INIT = struct.pack("!BBHIIHHI", 1, 0, 20, 0x706C, 65536, 1, 1, 0x706C)


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet by its outermost headers. answer says what a refusal is; empty for others."""

    source: IPAddress
    source_port: int
    target: IPAddress
    target_port: int
    answer: str = ""


def build(
    macs: tuple[bytes, bytes],
    protocol: Protocol,
    source: tuple[IPAddress, int],
    target: tuple[IPAddress, int],
) -> bytes:
    """A frame that opens a flow; macs are destination and source."""
    family = family_of(source[0])
    body = _transport(protocol, source, target)
    if family is Family.V4:
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, _DONT_FRAGMENT, _HOPS, protocol, 0,
            source[0].packed, target[0].packed,
        )  # fmt: skip
        head = head[:10] + _checksum(head) + head[12:]
    else:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, _HOPS)
        head += source[0].packed + target[0].packed
    return macs[0] + macs[1] + struct.pack("!H", _TYPES[family]) + head + body


def _transport(
    protocol: Protocol, source: tuple[IPAddress, int], target: tuple[IPAddress, int]
) -> bytes:
    ports = struct.pack("!HH", source[1], target[1])
    if protocol is Protocol.SCTP:
        body = ports + bytes(8) + _SCTP_INIT
        return body[:8] + _crc32c(body) + body[12:]
    if protocol is Protocol.TCP:
        body, place = ports + struct.pack("!IIBBHHH", 1000, 0, 5 << 4, _SYN, 4096, 0, 0), 16
    else:
        body, place = ports + struct.pack("!HH", 8 + len(_UDP_DATA), 0) + _UDP_DATA, 6
    pseudo = source[0].packed + target[0].packed + struct.pack("!II", len(body), protocol)
    return body[:place] + _checksum(pseudo + body) + body[place + 2 :]


def _checksum(data: bytes) -> bytes:
    """RFC 1071, over data with zeros in the sum's place."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF or 0xFFFF)


def _crc32c(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def read(frame: bytes) -> Seen:
    """The outermost headers of a frame of IPv4 or IPv6 without options."""
    family = Family.V4 if frame[ETHERNET] >> 4 == 4 else Family.V6
    ip = frame[ETHERNET:]
    source: IPAddress
    target: IPAddress
    if family is Family.V4:
        protocol, source, target = ip[9], IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
    else:
        protocol, source, target = ip[6], IPv6Address(ip[8:24]), IPv6Address(ip[24:40])
    body = ip[_HEADER[family] :]
    if protocol == _ICMP[family]:
        return Seen(source, 0, target, 0, _icmp(family, body))
    ports = struct.unpack_from("!HH", body) if len(body) >= 4 else (0, 0)
    reset = protocol == Protocol.TCP and len(body) > 13 and body[13] & _RST
    return Seen(source, ports[0], target, ports[1], "TCP reset" if reset else "")


def _icmp(family: Family, body: bytes) -> str:
    kind = tuple(body[:2])
    port = (3, 3) if family is Family.V4 else (1, 4)
    name = "ICMP" if family is Family.V4 else "ICMPv6"
    return f"{name} port unreachable" if kind == port else f"{name} type {kind[0]} code {kind[1]}"
