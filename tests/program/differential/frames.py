# SPDX-License-Identifier: Apache-2.0
"""Packets as patched bytes, and what is wrong with one that came out.

A `Sent` is a packet but for its source port; checksums follow from one remainder each, since
the sum in one's complement is arithmetic modulo 65,535 (RFC 1071). Must not know programs.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

from dataplane.core.reference import Place
from dataplane.model.net import Family, IPAddress, Protocol
from tests.program.fuzz.sight import DST, END, ETHERNET, HOPS, SRC

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
_PORT = struct.Struct(">H")
_SUM_AT = {TCP: 16, UDP: 6, SCTP: 8}
HOP_LIMIT = 64
SYN, ACK, RST = 2, 16, 4
DATA = bytes((7 * i + 1) & 0xFF for i in range(12))


def crc32c(data: bytes | bytearray) -> int:
    """RFC 9260 appendix A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _crc_table()


def _transport(protocol: Protocol, dport: int, flags: int) -> bytes:
    match protocol:
        case Protocol.TCP:
            return struct.pack(">HHIIBBHHH", 0, dport, 1000, 7, 0x50, flags, 4096, 0, 0)
        case Protocol.UDP:
            return struct.pack(">HHHH", 0, dport, 8 + len(DATA), 0) + DATA
    # INIT: tag 0, then type, flags, length, and its fixed part
    return struct.pack(">HHIIBBHIIHHI", 0, dport, 0, 0, 1, 0, 20, 77, 65535, 1, 1, 5)


class Sent:
    """A packet from one address to one place, its source port still open."""

    __slots__ = ("_base", "_sum_at", "family", "frame", "l4", "protocol")

    def __init__(
        self,
        macs: bytes,
        source: IPAddress,
        destination: IPAddress,
        port: int,
        protocol: Protocol,
        flags: int = SYN,
    ) -> None:
        self.family, self.protocol = Family(source.version), protocol
        body = _transport(protocol, port, flags)
        ends = source.packed + destination.packed
        if self.family is Family.V4:
            head = struct.pack(
                ">BBHHHBBH", 0x45, 0, 20 + len(body), 4711, 0x4000, HOP_LIMIT, protocol, 0
            )
            total = int.from_bytes(head + ends, "big") % 0xFFFF
            ip, kind = head[:10] + _PORT.pack(0xFFFF - total) + ends, b"\x08\0"
        else:
            ip = struct.pack(">IHBB", 6 << 28, len(body), protocol, HOP_LIMIT) + ends
            kind = b"\x86\xdd"
        self.frame = bytearray(macs + kind + ip + body)
        self.l4 = END[self.family]
        self._sum_at = self.l4 + _SUM_AT[protocol]
        pseudo = int.from_bytes(ends, "big") + protocol + len(body)
        self._base = (int.from_bytes(body, "big") + pseudo) % 0xFFFF

    def by(self, sport: int) -> bytearray:
        """The packet with this source port; the same bytes each time, changed."""
        frame = self.frame
        _PORT.pack_into(frame, self.l4, sport)
        if self.protocol is SCTP:
            frame[self._sum_at : self._sum_at + 4] = bytes(4)
            crc = crc32c(frame[self.l4 :])
            frame[self._sum_at : self._sum_at + 4] = crc.to_bytes(4, "little")
        else:
            _PORT.pack_into(frame, self._sum_at, 0xFFFF - (self._base + sport) % 0xFFFF)
        return frame


def wrong_copy(frame: bytes, sent: bytes | bytearray, family: Family, protocol: Protocol) -> str:
    """What is wrong with a packet that differs from `sent` in addresses, ports and hops alone."""
    l4, sums = END[family], _SUM_AT[protocol]
    width = 4 if protocol is SCTP else 2
    if len(frame) != len(sent):
        return f"{len(frame)} bytes, not {len(sent)}"
    if frame[l4 + 4 : l4 + sums] != sent[l4 + 4 : l4 + sums]:
        return "the transport header has changed beyond its ports"
    if frame[l4 + sums + width :] != sent[l4 + sums + width :]:
        return "what is behind the checksum has changed"
    hops = HOPS[family]
    same = frame[ETHERNET:hops] == sent[ETHERNET:hops]
    if not same or (family is Family.V4 and frame[hops + 1] != sent[hops + 1]):
        return "the IP header has changed beyond addresses and hops"
    body, ends = frame[l4:], frame[SRC[family] : END[family]]
    if family is Family.V4 and int.from_bytes(frame[ETHERNET:l4], "big") % 0xFFFF:
        return "the IPv4 header's checksum"
    if protocol is SCTP:
        at = l4 + sums
        whole = frame[l4:at] + bytes(4) + frame[at + 4 :]
        return "" if crc32c(whole).to_bytes(4, "little") == frame[at : at + 4] else "the CRC32c"
    whole_sum = int.from_bytes(body, "big") + int.from_bytes(ends, "big") + protocol + len(body)
    return f"the {protocol.name} checksum" if whole_sum % 0xFFFF else ""


def destination_of(frame: bytes, family: Family) -> bytes:
    """Address and port that a packet goes to, as one key."""
    l4 = END[family]
    return frame[DST[family] : l4] + frame[l4 + 2 : l4 + 4]


def place_of(key: bytes) -> Place:
    """A place from what `destination_of` gives."""
    return ip_address(key[:-2]), key[-2] << 8 | key[-1]


def source_of(frame: bytes, family: Family) -> bytes:
    """The address that it comes from."""
    return frame[SRC[family] : DST[family]]


def source_port_of(frame: bytes, family: Family) -> int:
    """The port that it comes from."""
    l4 = END[family]
    return frame[l4] << 8 | frame[l4 + 1]


def key_of(address: IPAddress, port: int) -> bytes:
    """A place as `destination_of` gives it."""
    return address.packed + _PORT.pack(port)
