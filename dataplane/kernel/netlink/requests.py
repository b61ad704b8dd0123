# SPDX-License-Identifier: Apache-2.0
"""Requests to rtnetlink as bytes, one function each, so that many can go in one message.

Numbers are those of linux/{rtnetlink,if_link,if_addr,neighbour,pkt_cls,pkt_sched}.h.
Must not do I/O or know what a request is for.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from dataplane.kernel.netlink.values import (
    OUR_ROUTES,
    Address,
    Direction,
    Filter,
    KernelRoute,
    Neighbour,
    Shaper,
)

REQUEST, ACK, ECHO, DUMP = 0x1, 0x4, 0x8, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400

LINK, ADDRESS, ROUTE, NEIGHBOUR, QDISC, FILTER = 16, 20, 24, 28, 36, 44
"""The first of each object's three numbers: new, delete, get."""
_DELETE, _GET = 1, 2

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
IFF_UP, IFF_NOARP = 0x1, 0x80
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
RTN_UNICAST, MAIN_TABLE, ONLINK = 1, 254, 4
NUD_PERMANENT = 0x80
CLSACT_PARENT, ROOT_PARENT = 0xFFFFFFF1, 0xFFFFFFFF
_CLSACT_HANDLE, _SHAPER_HANDLE = 0xFFFF0000, 0x706C0000
_IFA_F_NODAD = 0x02
_SKIP_STATS = 1 << 3
_DIRECT_ACTION = 1
_LINKLAYER_ETHERNET = 1

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=8BI")
_NDMSG = struct.Struct("=BxxxiHBB")
_TCMSG = struct.Struct("=BxxxiIII")
_ATTR = struct.Struct("=HH")
_RATESPEC = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate
_U32_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what to do, and the message's body.

    `settled` is the refusals that mean that there is nothing to do.
    """

    number: int
    body: bytes
    flags: int = 0
    settled: tuple[int, ...] = ()


def _attr(kind: int, value: bytes) -> bytes:
    return _ATTR.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def _text(kind: int, value: str) -> bytes:
    return _attr(kind, value.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return _attr(kind, value.to_bytes(4, "little" if _LITTLE else "big"))


_LITTLE = struct.pack("=H", 1)[0] == 1


# ---- devices ----


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFO.pack(0, 0, index, flags, change)


def _named(which: str | int) -> bytes:
    return _ifinfo(which) if isinstance(which, int) else _ifinfo() + _text(3, which)


def _new_device(name: str, mac: bytes, mtu: int, kind: str, data: bytes) -> Request:
    info = _attr(18, _text(1, kind) + _attr(2, data))  # IFLA_LINKINFO: KIND, DATA
    body = _ifinfo() + _text(3, name) + _attr(1, mac) + _u32(4, mtu) + info
    return Request(LINK, body, CREATE | EXCL)


def new_veth(
    name: str, mac: bytes, peer: str, peer_mac: bytes, peer_netns: int, mtu: int
) -> Request:
    """A pair, both ends down, the peer inside another namespace (a descriptor)."""
    other = _ifinfo() + _text(3, peer) + _attr(1, peer_mac) + _u32(4, mtu) + _u32(28, peer_netns)
    return _new_device(name, mac, mtu, "veth", _attr(1, other))


def new_vxlan(name: str, mac: bytes, port: int, mtu: int) -> Request:
    """Its tunnel key comes with each packet, and it learns nothing."""
    on, off = b"\1", b"\0"
    data = _attr(25, on) + _attr(7, off) + _attr(15, port.to_bytes(2, "big"))
    # Over IPv6 the outer UDP checksum may be zero (RFC 6935), as over IPv4.
    data += _attr(19, on) + _attr(20, on)
    return _new_device(name, mac, mtu, "vxlan", data)


def device(which: str | int) -> Request:
    """Ask for one, by name or index; without its statistics."""
    return Request(LINK + _GET, _named(which) + _u32(29, _SKIP_STATS))


def devices() -> Request:
    return Request(LINK + _GET, _ifinfo() + _u32(29, _SKIP_STATS))


def set_up(index: int, alias: str = "") -> Request:
    """With a remark that `links` shows, at most 255 bytes."""
    return Request(LINK, _ifinfo(index, IFF_UP, IFF_UP) + (_text(20, alias) if alias else b""))


def set_no_arp(index: int) -> Request:
    return Request(LINK, _ifinfo(index, IFF_NOARP, IFF_NOARP))


def set_mtu(index: int, mtu: int) -> Request:
    return Request(LINK, _ifinfo(index) + _u32(4, mtu))


def delete_device(which: str | int) -> Request:
    return Request(LINK + _DELETE, _named(which), 0, (errno.ENODEV,))


# ---- addresses ----


def _address(one: Address) -> bytes:
    version = one.address.version
    scope = SCOPE_LINK if one.link_scope else SCOPE_UNIVERSE
    head = _IFADDR.pack(FAMILY[version], one.prefix, 0, scope, one.index)
    return head + _attr(2, one.address.packed) + _attr(1, one.address.packed)


def put_address(one: Address, *, new: bool = False) -> Request:
    """Without duplicate address detection; `new`: EEXIST if it is there already."""
    flags = _u32(8, _IFA_F_NODAD) if one.address.version == 6 else b""
    return Request(ADDRESS, _address(one) + flags, CREATE | (EXCL if new else REPLACE))


def delete_address(one: Address) -> Request:
    return Request(ADDRESS + _DELETE, _address(one), 0, (errno.EADDRNOTAVAIL, errno.ENODEV))


def addresses(index: int) -> Request:
    """Of one device; 0: of all."""
    return Request(ADDRESS + _GET, _IFADDR.pack(0, 0, 0, 0, index))


# ---- routes ----


def _route(route: KernelRoute) -> bytes:
    destination = route.destination
    # IPv6 knows no scopes; IPv4 wants "link" for a route without gateway.
    link_scope = route.link_scope and destination.version == 4
    body = _RTMSG.pack(
        FAMILY[destination.version], destination.prefixlen, 0, 0, MAIN_TABLE,
        route.protocol or OUR_ROUTES, SCOPE_LINK if link_scope else SCOPE_UNIVERSE, RTN_UNICAST,
        ONLINK if route.onlink else 0,
    ) + _u32(4, route.index)  # fmt: skip
    if destination.prefixlen:
        body += _attr(1, destination.network_address.packed)
    if route.gateway is not None:
        body += _attr(5, route.gateway.packed)
    if route.source is not None:
        body += _attr(7, route.source.packed)
    if route.metric:
        body += _u32(6, route.metric)
    return body + (_attr(8, _u32(2, route.mtu)) if route.mtu else b"")  # RTA_METRICS: RTAX_MTU


def put_route(route: KernelRoute) -> Request:
    """Added, or in the place of the one with its destination and metric."""
    return Request(ROUTE, _route(route), CREATE | REPLACE)


def delete_route(route: KernelRoute) -> Request:
    return Request(ROUTE + _DELETE, _route(route), 0, (errno.ESRCH, errno.ENODEV))


def routes(version: int) -> Request:
    return Request(ROUTE + _GET, _RTMSG.pack(FAMILY[version], *bytes(7), 0))


# ---- neighbours ----


def put_neighbour(entry: Neighbour) -> Request:
    """A permanent entry."""
    address = entry.address
    head = _NDMSG.pack(FAMILY[address.version], entry.index, NUD_PERMANENT, 0, 0)
    body = head + _attr(1, address.packed) + _attr(2, entry.mac)
    return Request(NEIGHBOUR, body, CREATE | REPLACE)


def neighbours(version: int) -> Request:
    return Request(NEIGHBOUR + _GET, _NDMSG.pack(FAMILY[version], 0, 0, 0, 0))


# ---- tc ----


def _tc(index: int, parent: int, handle: int = 0, info: int = 0) -> bytes:
    return _TCMSG.pack(0, index, handle, parent, info)


def qdiscs() -> Request:
    return Request(QDISC + _GET, _tc(0, 0))


def root_qdisc(index: int) -> Request:
    # the kernel tells everybody who listens to tc, and the asker only with this flag
    return Request(QDISC + _GET, _tc(index, ROOT_PARENT), ECHO)


def _clsact(index: int) -> bytes:
    return _tc(index, CLSACT_PARENT, _CLSACT_HANDLE) + _text(1, "clsact")


def new_clsact(index: int) -> Request:
    return Request(QDISC, _clsact(index), CREATE | EXCL)


def delete_clsact(index: int) -> Request:
    return Request(QDISC + _DELETE, _clsact(index))


def put_shaper(index: int, shaper: Shaper) -> Request:
    """A token bucket at the root of a device, or in the place of ours."""
    slow = min(shaper.rate, _U32_MAX)
    rate = _RATESPEC.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, slow)
    parms = rate + bytes(_RATESPEC.size) + struct.pack("=III", shaper.limit, 0, 0)
    options = _attr(1, parms) + _u32(6, shaper.burst)
    if shaper.rate > _U32_MAX:
        options += _attr(4, struct.pack("=Q", shaper.rate))
    body = _tc(index, ROOT_PARENT, _SHAPER_HANDLE) + _text(1, "tbf") + _attr(2, options)
    return Request(QDISC, body, CREATE | REPLACE)


def filters(index: int, direction: Direction) -> Request:
    return Request(FILTER + _GET, _tc(index, direction.value))


def _place(spec: Filter) -> bytes:
    info = spec.priority << 16 | socket.htons(spec.protocol)
    return _tc(spec.index, spec.direction.value, spec.handle, info)


def put_program(spec: Filter, program: int) -> Request:
    """A direct-action program (a descriptor) in its place, or instead of what is there."""
    options = _u32(6, program) + _text(7, spec.name) + _u32(8, _DIRECT_ACTION)
    return Request(FILTER, _place(spec) + _text(1, "bpf") + _attr(2, options), CREATE | REPLACE)


def delete_filter(spec: Filter) -> Request:
    gone = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
    return Request(FILTER + _DELETE, _place(spec) + _text(1, spec.kind), 0, gone)
