# SPDX-License-Identifier: Apache-2.0
"""Packets by a line of text, and what is wrong with one, by field.

    tcp client:40000 > web:80 SA ttl=63 seq=7 ack=9 data=10
    udp client:5000 > web:53 csum=0
    sctp client:40000 > call:80 chunk=1
    echo client > outside id=77            echo-reply outside > client id=77
    protocol-50 client > outside

Names stand for addresses, so that one line is a packet of either family. What a line
does not say has the same value in every packet (WHEN_UNSAID), and scapy computes
lengths and checksums. So a packet that a program has changed must equal, byte for
byte, the one that the line of its expected form builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, crc32c
from scapy.packet import Packet, Raw

from dataplane.model.flow import FlowKey
from dataplane.model.net import Family, IPAddress

NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
ICMP_NUMBER = {Family.V4: 1, Family.V6: 58}
# By protocol, how many bytes of data; the rest for all.
DATA = {"tcp": 0, "udp": 12, "echo": 24, "echo-reply": 24}
WHEN_UNSAID = {"ttl": 64, "seq": 1000, "ack": 0, "window": 4096, "id": 77, "ip-id": 4711}

Addresses = Mapping[str, IPAddress]


@dataclass(frozen=True, slots=True)
class Line:
    """A line as read; ports are 0 where there are none."""

    protocol: str
    src: str
    sport: int
    dst: str
    dport: int
    flags: str = "S"
    options: Mapping[str, int] = field(default_factory=dict)

    def option(self, name: str) -> int:
        return self.options.get(name, WHEN_UNSAID.get(name, 0))


def read(line: str) -> Line:
    """A line's parts. Raises ValueError."""
    protocol, src, arrow, dst, *more = line.split()
    if arrow != ">":
        raise ValueError(f"no '>' in {line!r}")
    options = dict(word.split("=") for word in more if "=" in word)
    flags = "".join(word for word in more if "=" not in word)
    (src, sport), (dst, dport) = _party(src), _party(dst)
    known = {name: int(value, 0) for name, value in options.items()}
    return Line(protocol, src, sport, dst, dport, flags or "S", known)


def _party(text: str) -> tuple[str, int]:
    name, _, port = text.partition(":")
    return name, int(port or 0)


def number(line: Line, family: Family) -> int:
    """IANA's number of a line's protocol."""
    if line.protocol.startswith("protocol-"):
        return int(line.protocol.removeprefix("protocol-"))
    return NUMBERS.get(line.protocol) or ICMP_NUMBER[family]


def key(line: str, family: Family, addresses: Addresses) -> FlowKey:
    """The flow table's key of a packet."""
    said = read(line)
    sport, dport = said.sport, said.dport
    if said.protocol.startswith("echo"):
        sport = dport = said.option("id")
    return FlowKey(addresses[said.src], addresses[said.dst], sport, dport, number(said, family))


def build(line: str, family: Family, addresses: Addresses) -> Packet:
    """The packet of a line, without its Ethernet header."""
    said = read(line)
    src, dst = str(addresses[said.src]), str(addresses[said.dst])
    ttl, protocol = said.option("ttl"), number(said, family)
    head: Packet
    if family is Family.V4:
        head = IP(src=src, dst=dst, ttl=ttl, proto=protocol, id=said.option("ip-id"), flags="DF")
    else:
        head = IPv6(src=src, dst=dst, hlim=ttl, nh=protocol)
    return head / transport(said, family) / data(said)


def transport(said: Line, family: Family) -> Packet:
    """The header above IP, its checksum still to be computed unless the line gives one."""
    csum = {"chksum": said.options["csum"]} if "csum" in said.options else {}
    seq = said.option("seq")
    match said.protocol:
        case "tcp":
            return TCP(
                sport=said.sport,
                dport=said.dport,
                flags=said.flags,
                seq=seq,
                ack=said.option("ack"),
                window=said.option("window"),
                **csum,
            )
        case "udp":
            return UDP(sport=said.sport, dport=said.dport, **csum)
        case "sctp":
            # one chunk of a header only; what data follow are not looked at by anyone
            chunk = bytes([said.options.get("chunk", 1), 0, 0, 4])
            return SCTP(sport=said.sport, dport=said.dport, tag=seq, **csum) / Raw(chunk)
        case "echo" if family is Family.V4:
            return ICMP(type="echo-request", id=said.option("id"), seq=seq)
        case "echo-reply" if family is Family.V4:
            return ICMP(type="echo-reply", id=said.option("id"), seq=seq)
        case "echo":
            return ICMPv6EchoRequest(id=said.option("id"), seq=seq)
        case "echo-reply":
            return ICMPv6EchoReply(id=said.option("id"), seq=seq)
        case _:
            return Raw(bytes(16))


def data(said: Line) -> Packet:
    """As many bytes of payload as the line says, all different from their neighbours."""
    length = said.options.get("data", DATA.get(said.protocol, 0))
    return Raw(bytes((7 * i + 1) & 0xFF for i in range(length)))


def frame(packet: Packet, family: Family, dst: bytes, src: bytes) -> bytes:
    """On Ethernet, as bytes."""
    kind = 0x0800 if family is Family.V4 else 0x86DD
    return bytes(Ether(dst=dst.hex(":"), src=src.hex(":"), type=kind) / packet)


def wrong_checksums(raw: bytes) -> list[str]:
    """Names of the checksums that are not right; a UDP sum of zero is none (RFC 768), an
    SCTP sum of zero is left to a device.

    Computed without scapy (but for SCTP's), and of the outermost headers only: what an ICMP error quotes
    is as it was sent.
    """
    ip, wrong = raw[14:], []
    if raw[12:14] == b"\x08\x00" and len(ip) >= 20:
        size = (ip[0] & 15) * 4
        protocol, addresses_, body = ip[9], ip[12:20], ip[size : int.from_bytes(ip[2:4], "big")]
        if _sum(ip[:size]) != 0xFFFF:
            wrong.append("IPv4")
        if int.from_bytes(ip[6:8], "big") & 0x3FFF:
            return wrong
    elif raw[12:14] == b"\x86\xdd" and len(ip) >= 40:
        length = int.from_bytes(ip[4:6], "big")
        protocol, addresses_, body = ip[6], ip[8:40], ip[40 : 40 + length]
    else:
        return wrong
    pseudo = addresses_ + len(body).to_bytes(4, "big") + protocol.to_bytes(4, "big")
    match protocol:
        case 6 if _sum(pseudo + body) != 0xFFFF:
            wrong.append("TCP")
        case 17 if body[6:8] != bytes(2) and _sum(pseudo + body) != 0xFFFF:
            wrong.append("UDP")
        case 132 if body[8:12] not in (bytes(4), sctp_sum(body)):
            wrong.append("SCTP")
        case 1 if _sum(body) != 0xFFFF:
            wrong.append("ICMP")
        case 58 if _sum(pseudo + body) != 0xFFFF:
            wrong.append("ICMPv6")
    return wrong


def sctp_sum(body: bytes) -> bytes:
    """The checksum that an SCTP packet should have (RFC 9260 appendix A)."""
    made: int = crc32c(body[:8] + bytes(4) + body[12:])
    return made.to_bytes(4, "big")


def _sum(data_: bytes) -> int:
    """RFC 1071; 0xffff over data that holds its own checksum."""
    data_ += bytes(len(data_) % 2)
    total = sum(int.from_bytes(data_[at : at + 2], "big") for at in range(0, len(data_), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def shown(raw: bytes) -> str:
    """For people: the layers, data shortened."""
    packet = Ether(raw)
    if Raw in packet and len(packet[Raw].load) > 16:
        packet[Raw].load = packet[Raw].load[:16] + b"..."
    return repr(packet)


def differences(got: bytes, wanted: bytes) -> list[str]:
    """Where two frames differ, by layer and field."""
    found = []
    ours, theirs = _layers(Ether(got)), _layers(Ether(wanted))
    for layer, right in zip(ours, theirs, strict=False):
        if layer.name != right.name:
            found.append(f"{layer.name}, not {right.name}")
            break
        for name in layer.fields.keys() | right.fields.keys():
            value, meant = layer.fields.get(name), right.fields.get(name)
            if value != meant:
                found.append(f"{layer.name}.{name}: {value!r}, not {meant!r}")
    if len(got) != len(wanted):
        found.append(f"{len(got)} bytes, not {len(wanted)}")
    return found


def _layers(packet: Packet) -> list[Packet]:
    layers = []
    while packet and packet.name != "NoPayload":
        layers.append(packet)
        packet = packet.payload
    return layers
