# SPDX-License-Identifier: Apache-2.0
"""What packets are made of: well-formed frames to start from, and values worth trying.

Shapes are built once, by scapy, with addresses and ports that the maker replaces; from then on
packets are patched bytes. Must not know what a program makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from dataplane.kernel.prelude import Setup
from dataplane.model.net import Family
from tests.program import world
from tests.program.fuzz.stage import Case
from tests.program.packets import sctp_sum

GATEWAY, CLIENT = world.GATEWAY_MAC.hex(":"), world.mac_of(world.CLIENT).hex(":")
DONE = 0x706C  # tc_index of a packet that another hook has finished

PORTS = (
    0, 1, 53, 80, 81, 443, 5353, 8080, 8087, 8472, 9053, 9080, 10250, 8888, 30080, 30081, 30084,
    30087, 30088, 30092, 30053, 30054, 40000, 40001, 40002, 40003, 61000, 61005, 62000, 64999, 65535,
)  # fmt: skip
SERVED = (80, 80, 80, 53, 53, 30080, 30081, 30053, 30092, 8888, 8080)
LENGTHS = (
    0,
    1,
    7,
    8,
    19,
    20,
    21,
    28,
    39,
    40,
    41,
    48,
    60,
    576,
    1280,
    1450,
    1451,
    1500,
    0x7FFF,
    0xFFFF,
)
BYTES = (
    0,
    1,
    2,
    4,
    5,
    6,
    8,
    15,
    16,
    17,
    43,
    44,
    50,
    51,
    58,
    59,
    60,
    63,
    64,
    127,
    128,
    132,
    254,
    255,
)

INSIDE = ("client", "neighbour", "remote")
SERVICES = (
    "near", "far", "self", "empty", "pair", "daemon", "kept", "away", "inside", "twin",
    "balancer", "external", "no-service",
)  # fmt: skip
OUTSIDE = ("outside", "outside2", "kept-world")
NODES = ("here", "here2", "router", "there", "router-there")


def cases() -> list[Case]:
    """Every way in, the ones that matter more than once."""
    there = world.addresses(Family.V4)["there"]
    there6 = world.addresses(Family.V6)["there"]
    stranger = ip_address("203.0.113.66")
    made = []
    for family in Family:

        def case(
            name: str, hook: str, device: int, setup: Setup | None = None, gso_size: int = 0,
            family: Family = family,
        ) -> Case:  # fmt: skip
            return Case(
                f"{name}/{family:d}", hook, f"{hook}_{family:d}", family, device, setup, gso_size
            )

        made += [
            *[case("client", "from_pod", world.CLIENT)] * 8,
            *[case("neighbour", "from_pod", world.NEIGHBOUR)] * 4,
            case("stranger", "from_pod", world.STRANGER),
            case("client-vlan", "from_pod", world.CLIENT, Setup(vlan=5)),
            case("client-gso", "from_pod", world.CLIENT, None, 1000),
            *[case(f"client-cut{n}", "from_pod", world.CLIENT, Setup(cut=n)) for n in (14, 33, 53)],
            case("to-client-cut", "to_pod", world.CLIENT, Setup(cut=33)),
            case("uplink-cut", "from_uplink", world.UPLINK, Setup(cut=33)),
            case("to-uplink-cut", "to_uplink", world.UPLINK, Setup(cut=33)),
            case(
                "overlay-cut",
                "from_overlay",
                world.OVERLAY,
                Setup(tunnel=(there, world.VNI), cut=33),
            ),
            case("to-overlay-cut", "to_overlay", world.OVERLAY, Setup(cut=33)),
            case("to-client", "to_pod", world.CLIENT),
            *[case("to-neighbour", "to_pod", world.NEIGHBOUR)] * 2,
            case("to-client-done", "to_pod", world.CLIENT, Setup(tc_index=DONE)),
            *[case("uplink", "from_uplink", world.UPLINK)] * 6,
            *[case("uplink2", "from_uplink", world.UPLINK2)] * 2,
            *[case("to-uplink", "to_uplink", world.UPLINK)] * 3,
            case("to-uplink-done", "to_uplink", world.UPLINK, Setup(tc_index=DONE)),
            *[case("overlay", "from_overlay", world.OVERLAY, Setup(tunnel=(there, world.VNI)))] * 4,
            case("overlay6", "from_overlay", world.OVERLAY, Setup(tunnel=(there6, world.VNI))),
            case("overlay-vni", "from_overlay", world.OVERLAY, Setup(tunnel=(there, 7001))),
            case(
                "overlay-stranger",
                "from_overlay",
                world.OVERLAY,
                Setup(tunnel=(stranger, world.VNI)),
            ),
            case("overlay-bare", "from_overlay", world.OVERLAY),
            *[case("to-overlay", "to_overlay", world.OVERLAY)] * 2,
            case("to-overlay-done", "to_overlay", world.OVERLAY, Setup(tc_index=DONE)),
        ]
    for name, device, setup in (
        ("l2", world.CLIENT, None),
        ("l2-neighbour", world.NEIGHBOUR, None),
        ("l2-vlan", world.CLIENT, Setup(vlan=5)),
    ):
        made += [Case(name, "from_pod", "from_pod_l2", Family.V4, device, setup)] * 2
    return made


# Who sends by a hook, and to whom, by rights.
SENDERS = {
    "from_pod": ("self",),
    "to_pod": ("here", "router", "remote", "lan", "outside", "client"),
    "from_uplink": ("outside", "outside", "outside2", "there", "kept-world"),
    "to_uplink": ("here", "client", "neighbour", "here2", "near"),
    "from_overlay": ("remote", "remote", "remote", "router-there"),
    "to_overlay": ("router", "here", "client"),
}
RECEIVERS = {
    "from_pod": (*SERVICES, *INSIDE, *OUTSIDE, *NODES, "lan", "nowhere", "ghost", "gateway"),
    "to_pod": ("self",),
    "from_uplink": ("here", "here", "here2", "balancer", "external", *INSIDE[:2], "near", "lan"),
    "to_uplink": (*OUTSIDE, "there", "lan"),
    "from_overlay": (*INSIDE[:2], "router", "here", "outside", "ghost"),
    "to_overlay": ("remote", "router-there", "outside"),
}


def frames(family: Family) -> list[bytes]:
    """Well-formed packets of all kinds, on Ethernet, from `client` to `near`."""
    kind = 0x0800 if family is Family.V4 else 0x86DD
    head = Ether(dst=GATEWAY, src=CLIENT, type=kind)
    return [bytes(head / p) for p in (_v4() if family is Family.V4 else _v6())]


def _raw(length: int) -> Raw:
    return Raw(bytes((7 * i + 1) & 0xFF for i in range(length)))


def _transports() -> Iterator[Packet]:
    """The same over both families, the common ones more than once."""
    for flags in ("S", "S", "S", "A", "A", "PA", "FA", "R", "RA", "SA", "SF", ""):
        yield TCP(sport=40000, dport=80, flags=flags, seq=1000, ack=7)
    yield TCP(sport=40000, dport=80, flags="PA", seq=0xFFFFFFF0, ack=2000) / _raw(100)
    yield TCP(sport=40000, dport=80, flags="S", options=[("MSS", 1400), ("WScale", 7)]) / _raw(3)
    yield TCP(sport=40000, dport=80, flags="A") / _raw(1500)
    inner = Ether(dst=GATEWAY, src=CLIENT) / IP() / UDP()
    for length in (0, 12, 13, 200):
        yield UDP(sport=40000, dport=53) / _raw(length)
    yield UDP(sport=40000, dport=53, chksum=0) / _raw(20)
    yield UDP(sport=40000, dport=8472) / Raw(b"\x08\0\0\0\0\x1b\x58\0") / inner
    yield UDP(sport=40000, dport=53) / _raw(1500)
    # SCTP, whose sum of zero is left to a device; see _number
    yield Raw(b"\x9c\x40\0\x50\0\0\0\1\0\0\0\0\1\0\0\x10" + bytes(24))
    for chunk in (0, 1, 6, 14):
        body = b"\x9c\x40\0\x50\0\0\0\1\0\0\0\0" + bytes([chunk, 0, 0, 16]) + bytes(12)
        yield Raw(body[:8] + sctp_sum(body) + body[12:])


def _number(layer: Packet) -> dict[str, int]:
    return {"proto": 132} if isinstance(layer, Raw) else {}


def _v4() -> Iterator[Packet]:
    def ip(**fields: object) -> Packet:
        return IP(src="10.244.1.10", dst="10.96.0.1", id=4711, **fields)

    for layer in _transports():
        for flags in ("DF", "DF", 0):
            yield ip(flags=flags, **_number(layer)) / layer
    quotes = (TCP(sport=80, dport=40000), UDP(sport=53, dport=40000), ICMP(id=77, seq=1))
    for quoted in quotes:
        sent = IP(src="10.244.1.11", dst="10.244.1.10", flags="DF") / quoted / _raw(8)
        for type_, code in ((3, 3), (3, 4), (11, 0), (12, 0), (4, 0), (5, 1)):
            yield ip() / ICMP(type=type_, code=code) / sent
    for type_ in (8, 8, 8, 0, 13, 14, 15, 17, 42):
        yield ip(flags="DF") / ICMP(type=type_, id=77, seq=1) / _raw(24)
    for number in (2, 4, 41, 47, 50, 51, 89, 103, 112, 136, 253):
        yield ip(proto=number) / _raw(40)
    for start, more in ((0, 1), (1, 1), (3, 0), (3, 1), (0x1FFF, 0)):
        yield ip(flags=more, frag=start, proto=17) / UDP(sport=40000, dport=53, len=100) / _raw(24)
        yield ip(flags=more, frag=start, proto=6) / TCP(sport=40000, dport=80, flags="S") / _raw(24)
        yield ip(flags=more, frag=start, proto=1) / ICMP(id=77) / _raw(24)
    for option in (
        b"\x94\x04\0\0",
        b"\x83\x07\x04\x0a\x60\0\1\0",
        b"\x07\x0b\x04" + bytes(9),
        b"\1" * 40,
    ):
        yield ip(options=[IPOption(option)]) / TCP(sport=40000, dport=80)
        yield ip(options=[IPOption(option)]) / UDP(sport=40000, dport=53)


def _v6() -> Iterator[Packet]:
    def ip(**fields: object) -> Packet:
        return IPv6(src="fd00:244:1::10", dst="fd00:96::1", **fields)

    for layer in _transports():
        for _ in range(2):
            yield ip(**({"nh": 132} if isinstance(layer, Raw) else {})) / layer
    quotes = (
        TCP(sport=80, dport=40000), UDP(sport=53, dport=40000), ICMPv6EchoRequest(id=77, seq=1)
    )  # fmt: skip
    errors = (
        ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded(),
        ICMPv6ParamProblem(),
    )  # fmt: skip
    for quoted in quotes:
        for error in errors:
            yield ip() / error / IPv6(src="fd00:244:1::11", dst="fd00:244:1::10") / quoted / _raw(8)
    for _ in range(3):
        yield ip() / ICMPv6EchoRequest(id=77, seq=1) / _raw(24)
    yield ip() / ICMPv6EchoReply(id=77, seq=1) / _raw(24)
    mac, link = "02:00:00:00:00:65", "fe80::65"
    lladdr, own = ICMPv6NDOptSrcLLAddr(lladdr=mac), IPv6(src=link, dst="ff02::1", hlim=255)
    for target in ("fe80::1", "fe80::1", "fd00:244:1::10", "fd00:244:1::11", link):
        yield own / ICMPv6ND_NS(tgt=target) / lladdr
        yield IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=target)
        yield IPv6(src="fd00:244:1::10", dst="fe80::1", hlim=255) / ICMPv6ND_NS(tgt=target) / lladdr
        yield own / ICMPv6ND_NA(tgt=target) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    yield own / ICMPv6ND_RS() / lladdr
    yield own / ICMPv6ND_RA()
    yield own / ICMPv6MLReport()
    for number in (0, 4, 41, 47, 50, 51, 59, 89, 112, 135, 139, 253):
        yield ip(nh=number) / _raw(40)
    upper = (
        TCP(sport=40000, dport=80, flags="S"), UDP(sport=40000, dport=53) / _raw(10),
        ICMPv6EchoRequest(id=77) / _raw(8), ICMPv6DestUnreach(code=4) / IPv6() / UDP() / _raw(8),
    )  # fmt: skip
    chains = (
        IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(addresses=[]),
        IPv6ExtHdrRouting(addresses=["fd00:96::1"], segleft=1), IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
        IPv6ExtHdrFragment(id=7, m=0), IPv6ExtHdrFragment(id=8, m=1),
        IPv6ExtHdrFragment(id=8, offset=3, m=0), IPv6ExtHdrFragment(id=9, offset=1, m=1),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(id=10, m=1) / IPv6ExtHdrDestOpt(),
    )  # fmt: skip
    for layer in upper:
        for chain in chains:
            yield ip() / chain / layer
        for length in (5, 6, 7, 8):
            long: Packet = IPv6ExtHdrDestOpt()
            for _ in range(length - 1):
                long = long / IPv6ExtHdrDestOpt()
            yield ip() / long / layer


def beyond_ip() -> list[bytes]:
    """ARP, tags and others, from `client`'s device."""
    gateway = world.CAST["gateway"][0]
    asked = {"hwsrc": CLIENT, "psrc": world.CAST["client"][0], "pdst": gateway}
    everyone = "ff:ff:ff:ff:ff:ff"
    head = Ether(src=CLIENT, dst=everyone)
    made = [head / ARP(op=op, **{**asked, **change}) for op in (1, 1, 1, 2) for change in (
        {}, {"psrc": "0.0.0.0"}, {"psrc": world.CAST["neighbour"][0]}, {"psrc": gateway},
        {"pdst": world.CAST["neighbour"][0]}, {"hwlen": 5}, {"ptype": 0x86DD},
    )]  # fmt: skip
    tagged = Ether(src=CLIENT, dst=everyone, type=0x8100) / Dot1Q(vlan=5, type=0x0800)
    made += [tagged / IP() / UDP(), head / ARP(**asked) / _raw(18)]
    for kind in (0x0800, 0x86DD, 0x88CC, 0x8847, 0x8863, 0x0042, 0x0600, 0x88A8, 0xFFFF):
        made.append(Ether(src=CLIENT, dst=everyone, type=kind) / _raw(50))
    return [bytes(p) for p in made]


class Shapes:
    """All of the above, built once."""

    def __init__(self) -> None:
        self._cases = cases()
        self.by_name = {case.name: case for case in self._cases}
        self.frames = {family: frames(family) for family in Family}
        self.beyond_ip = beyond_ip()
        self.addresses = {
            f: {name: a.packed for name, a in world.addresses(f).items()} for f in Family
        }
        self.all_addresses = {f: list(known.values()) for f, known in self.addresses.items()}

    def pick_case(self, rng: Random) -> Case:
        return self._cases[int(rng.random() * len(self._cases))]

    def ends(self, case: Case) -> tuple[list[bytes], list[bytes]]:
        """Who sends and who receives there, by rights."""
        known = self.addresses[case.family]
        own = next((pod for pod, device in world.PODS.items() if device == case.device), "client")
        senders, receivers = (
            [known[own if name == "self" else name] for name in names[case.hook]]
            for names in (SENDERS, RECEIVERS)
        )
        return senders, receivers


def macs(case: Case) -> bytes:
    """Destination and source of a frame that comes this way."""
    if case.hook == "from_pod":
        return world.GATEWAY_MAC + world.mac_of(case.device)
    if case.hook == "to_pod":
        return world.mac_of(case.device) + world.GATEWAY_MAC
    if case.hook == "from_uplink":
        return world.mac_of(case.device) + world.SWITCH_MAC
    if case.hook == "to_uplink":
        return world.SWITCH_MAC + world.mac_of(case.device)
    return world.OVERLAY_MAC + world.OVERLAY_MAC
