# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses, routes, neighbours, settings and tc of one network namespace.

The only user of pyroute2. Each call is one request that is done when it returns.
Must not know pods, nodes or Services, nor keep state between calls.
"""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Self

from dataplane.kernel.netlink import wire
from dataplane.kernel.netlink.events import Events
from dataplane.kernel.netlink.sysctl import Sysctls
from dataplane.kernel.netlink.tc import Tc
from dataplane.kernel.netlink.values import (
    OUR_ROUTES,
    Address,
    Direction,
    Filter,
    KernelRoute,
    Link,
    Neighbour,
)
from dataplane.kernel.netlink.wire import Message, NetlinkError, Wire
from dataplane.kernel.netns import Netns
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import IPAddress

__all__ = [
    "OUR_ROUTES",
    "Address",
    "Direction",
    "Events",
    "Filter",
    "KernelRoute",
    "Link",
    "Links",
    "Neighbour",
    "NetlinkError",
    "Sysctls",
    "Tc",
    "open_netns",
]

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_IFA_F_NODAD, _IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x02, 0x40, 0x08
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTN_UNICAST, _MAIN_TABLE, _RTNH_F_ONLINK = 1, 254, 4
_NUD_PERMANENT = 0x80
_RTAX_MTU = "RTAX_MTU"


class Links:
    """The network of one namespace (None: the caller's own)."""

    def __init__(self, netns: Netns | None = None, sysctl_root: Path = Path("/proc/sys")) -> None:
        self._wire = Wire(netns)
        self.tc = Tc(self._wire)
        self.sysctls = Sysctls(netns, sysctl_root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    # -- devices ---------------------------------------------------------------

    def links(self) -> list[Link]:
        """All devices, by index."""
        return sorted(_link(message) for message in self._wire.dump(wire.LINK, {}))

    def link(self, which: str | int) -> Link | None:
        """One device by name or index; None if there is none."""
        fields = {"index": which} if isinstance(which, int) else {}
        attrs = [] if isinstance(which, int) else [("IFLA_IFNAME", which)]
        try:
            return _link(self._wire.get(wire.LINK, fields, attrs))
        except NetlinkError as refusal:
            if refusal.errno == errno.ENODEV:
                return None
            raise

    def create_veth(
        self, name: str, mac: bytes, peer: str, peer_mac: bytes, peer_netns: int, mtu: int
    ) -> Link:
        """Make a veth pair, both ends down, the peer straight inside another namespace.

        Raises:
            NetlinkError: EEXIST if either name is taken.
        """
        info = {
            "attrs": [
                ["IFLA_IFNAME", peer],
                ["IFLA_ADDRESS", peer_mac.hex(":")],
                ["IFLA_MTU", mtu],
                ["IFLA_NET_NS_FD", peer_netns],
            ]
        }
        self._create(name, mac, mtu, "veth", [["VETH_INFO_PEER", info]])
        return self._made(name)

    def create_vxlan(self, name: str, mac: bytes, port: int, mtu: int) -> Link:
        """Make a VXLAN device whose tunnel key comes with each packet; down, no ARP.

        Raises:
            BadEnvironment: another VXLAN device has the port; it is named.
        """
        data = [
            ["IFLA_VXLAN_COLLECT_METADATA", 1],
            ["IFLA_VXLAN_LEARNING", 0],
            ["IFLA_VXLAN_PORT", port],
            # Over IPv6 the outer UDP checksum may be zero (RFC 6935), as over IPv4.
            ["IFLA_VXLAN_UDP_ZERO_CSUM6_TX", 1],
            ["IFLA_VXLAN_UDP_ZERO_CSUM6_RX", 1],
        ]
        for other in self.links():
            if other.vxlan_port == port and other.name != name:
                raise BadEnvironment(
                    f"device {name}",
                    f"UDP port {port} is taken by VXLAN device {other.name}",
                    f"remove {other.name}, or let it use another port",
                )
        try:
            self._create(name, mac, mtu, "vxlan", data)
        except NetlinkError as refusal:
            if refusal.errno != errno.EEXIST or self.link(name) is not None:
                raise
            raise BadEnvironment(
                f"device {name}", f"UDP port {port} is taken by another tunnel device"
            ) from refusal
        made = self._made(name)
        self._wire.new(
            wire.LINK, {"index": made.index, "flags": _IFF_NOARP, "change": _IFF_NOARP}, []
        )
        return made

    def _create(self, name: str, mac: bytes, mtu: int, kind: str, data: list[list[object]]) -> None:
        info = {"attrs": [["IFLA_INFO_KIND", kind], ["IFLA_INFO_DATA", {"attrs": data}]]}
        self._wire.new(
            wire.LINK,
            {},
            [
                ("IFLA_IFNAME", name),
                ("IFLA_ADDRESS", mac.hex(":")),
                ("IFLA_MTU", mtu),
                ("IFLA_LINKINFO", info),
            ],
            flags=wire.CREATE | wire.EXCL,
        )

    def _made(self, name: str) -> Link:
        found = self.link(name)
        if found is None:
            raise NetlinkError(errno.ENODEV, f"device {name} went as it was made")
        return found

    def set_up(self, index: int, alias: str = "") -> None:
        """Bring a device up; `alias` is a remark that `links` shows, at most 255 bytes."""
        attrs = [("IFLA_IFALIAS", alias)] if alias else []
        self._wire.new(wire.LINK, {"index": index, "flags": _IFF_UP, "change": _IFF_UP}, attrs)

    def set_mtu(self, index: int, mtu: int) -> None:
        self._wire.new(wire.LINK, {"index": index}, [("IFLA_MTU", mtu)])

    def delete_link(self, index: int) -> None:
        """Delete a device; nothing to do if it is gone."""
        try:
            self._wire.delete(wire.LINK, {"index": index}, [])
        except NetlinkError as refusal:
            if refusal.errno != errno.ENODEV:
                raise

    # -- addresses -------------------------------------------------------------

    def addresses(self, index: int = 0) -> list[Address]:
        """Addresses of one device, or of all; in the kernel's order (the first is primary)."""
        found = []
        for message in self._wire.dump(wire.ADDRESS, {"index": index}):
            if message["index"] != index and index != 0:
                continue
            local = message.attr("IFA_LOCAL") or message.attr("IFA_ADDRESS")
            flags = message.attr("IFA_FLAGS") or message["flags"]
            found.append(
                Address(
                    index=message["index"],
                    address=ip_address(local),
                    prefix=message["prefixlen"],
                    link_scope=message["scope"] >= _SCOPE_LINK,
                    usable=not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED),
                )
            )
        return found

    def add_address(
        self, index: int, address: IPAddress, prefix: int, *, link_scope: bool = False
    ) -> bool:
        """Add an address, without duplicate detection; False if it is there already."""
        scope = _SCOPE_LINK if link_scope else _SCOPE_UNIVERSE
        fields = _address_fields(index, address, prefix) | {"scope": scope}
        flags = _IFA_F_NODAD if address.version == 6 else 0
        attrs = [*_address_attrs(address), ("IFA_FLAGS", flags)]
        try:
            self._wire.new(wire.ADDRESS, fields, attrs, flags=wire.CREATE | wire.EXCL)
        except NetlinkError as refusal:
            if refusal.errno != errno.EEXIST:
                raise
            return False
        return True

    def delete_address(self, index: int, address: IPAddress, prefix: int) -> None:
        """Remove an address; nothing to do if it is gone."""
        try:
            self._wire.delete(
                wire.ADDRESS, _address_fields(index, address, prefix), _address_attrs(address)
            )
        except NetlinkError as refusal:
            if refusal.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise

    # -- routes ----------------------------------------------------------------

    def routes(self) -> list[KernelRoute]:
        """Unicast routes of the main table, both families, multipath ones by first hop."""
        found = []
        for family in _FAMILY.values():
            for message in self._wire.dump(wire.ROUTE, {"family": family}):
                if message["type"] == _RTN_UNICAST and _table(message) == _MAIN_TABLE:
                    route = _route(message)
                    if route is not None:
                        found.append(route)
        return found

    def put_route(self, route: KernelRoute) -> None:
        """Add a route, or replace the one with its destination and metric."""
        self._wire.new(
            wire.ROUTE, _route_fields(route), _route_attrs(route), flags=wire.CREATE | wire.REPLACE
        )

    def delete_route(self, route: KernelRoute) -> None:
        """Remove a route; nothing to do if it is gone."""
        try:
            self._wire.delete(wire.ROUTE, _route_fields(route), _route_attrs(route))
        except NetlinkError as refusal:
            if refusal.errno not in (errno.ESRCH, errno.ENODEV):
                raise

    # -- neighbours ------------------------------------------------------------

    def neighbours(self) -> list[Neighbour]:
        """Permanent neighbour entries."""
        return [
            Neighbour(
                message["ifindex"],
                ip_address(message.attr("NDA_DST")),
                _mac(message.attr("NDA_LLADDR")),
            )
            for family in _FAMILY.values()
            for message in self._wire.dump(wire.NEIGHBOUR, {"family": family})
            if message["state"] & _NUD_PERMANENT and message.attr("NDA_LLADDR")
        ]

    def put_neighbour(self, entry: Neighbour) -> None:
        """Add or replace a permanent neighbour entry."""
        self._wire.new(
            wire.NEIGHBOUR,
            {
                "family": _FAMILY[entry.address.version],
                "ifindex": entry.index,
                "state": _NUD_PERMANENT,
            },
            [("NDA_DST", str(entry.address)), ("NDA_LLADDR", entry.mac.hex(":"))],
            flags=wire.CREATE | wire.REPLACE,
        )


def open_netns(path: Path) -> int:
    """A descriptor of a namespace, to hand to `create_veth` and to `Links`; the caller closes it.

    Raises:
        BadEnvironment: it is not there.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as failure:
        raise BadEnvironment(
            f"network namespace {path}", failure.strerror or str(failure)
        ) from failure


def _mac(text: str | None) -> bytes:
    return bytes.fromhex(text.replace(":", "")) if text else b""


def _link(message: Message) -> Link:
    info = message.attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") or "") if info else ""
    data = info.get_attr("IFLA_INFO_DATA") if kind == "vxlan" else None
    ethernet = message["ifi_type"] == _ARPHRD_ETHER
    return Link(
        index=message["index"],
        name=message.attr("IFLA_IFNAME"),
        mac=_mac(message.attr("IFLA_ADDRESS")) if ethernet else b"",
        mtu=message.attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        kind="loopback" if message["ifi_type"] == _ARPHRD_LOOPBACK else kind,
        ethernet=ethernet,
        no_arp=bool(message["flags"] & _IFF_NOARP),
        alias=message.attr("IFLA_IFALIAS") or "",
        peer_index=(message.attr("IFLA_LINK") or 0) if kind == "veth" else 0,
        vxlan_port=(data.get_attr("IFLA_VXLAN_PORT") or 0) if data else 0,
        vxlan_metadata=bool(data and data.get_attr("IFLA_VXLAN_COLLECT_METADATA")),
    )


def _address_fields(index: int, address: IPAddress, prefix: int) -> dict[str, object]:
    return {"family": _FAMILY[address.version], "prefixlen": prefix, "index": index}


def _address_attrs(address: IPAddress) -> list[tuple[str, object]]:
    return [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(address))]


def _table(message: Message) -> int:
    return int(message.attr("RTA_TABLE") or message["table"])


def _route(message: Message) -> KernelRoute | None:
    version = 4 if message["family"] == socket.AF_INET else 6
    index, gateway = message.attr("RTA_OIF"), message.attr("RTA_GATEWAY")
    hops = message.attr("RTA_MULTIPATH")
    onlink = bool(message["flags"] & _RTNH_F_ONLINK)
    if hops:
        index, gateway = hops[0]["oif"], hops[0].get_attr("RTA_GATEWAY")
        onlink = bool(hops[0]["flags"] & _RTNH_F_ONLINK)
    if not index:
        return None
    zero = "0.0.0.0" if version == 4 else "::"
    metrics = message.attr("RTA_METRICS")
    source = message.attr("RTA_PREFSRC")
    return KernelRoute(
        destination=ip_network(f"{message.attr('RTA_DST') or zero}/{message['dst_len']}"),
        index=index,
        gateway=ip_address(gateway) if gateway else None,
        source=ip_address(source) if source else None,
        onlink=onlink,
        link_scope=message["scope"] == _SCOPE_LINK and version == 4,
        metric=message.attr("RTA_PRIORITY") or 0,
        mtu=(metrics.get_attr(_RTAX_MTU) or 0) if metrics else 0,
        protocol=message["proto"],
    )


def _route_fields(route: KernelRoute) -> dict[str, object]:
    # IPv6 knows no scopes; IPv4 wants "link" for a route without gateway.
    link_scope = route.link_scope and route.destination.version == 4
    return {
        "family": _FAMILY[route.destination.version],
        "dst_len": route.destination.prefixlen,
        "table": _MAIN_TABLE,
        "type": _RTN_UNICAST,
        "scope": _SCOPE_LINK if link_scope else _SCOPE_UNIVERSE,
        "proto": route.protocol or OUR_ROUTES,
        "flags": _RTNH_F_ONLINK if route.onlink else 0,
    }


def _route_attrs(route: KernelRoute) -> list[tuple[str, object]]:
    attrs: list[tuple[str, object]] = [("RTA_OIF", route.index)]
    if route.destination.prefixlen:
        attrs.append(("RTA_DST", str(route.destination.network_address)))
    if route.gateway is not None:
        attrs.append(("RTA_GATEWAY", str(route.gateway)))
    if route.source is not None:
        attrs.append(("RTA_PREFSRC", str(route.source)))
    if route.metric:
        attrs.append(("RTA_PRIORITY", route.metric))
    if route.mtu:
        attrs.append(("RTA_METRICS", {"attrs": [[_RTAX_MTU, route.mtu]]}))
    return attrs
