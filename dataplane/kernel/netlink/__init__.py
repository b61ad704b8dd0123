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

from dataplane.kernel.netlink import requests
from dataplane.kernel.netlink.events import Events
from dataplane.kernel.netlink.requests import (
    FAMILY,
    IFF_NOARP,
    IFF_UP,
    MAIN_TABLE,
    NUD_PERMANENT,
    ONLINK,
    RTN_UNICAST,
    SCOPE_LINK,
    Request,
)
from dataplane.kernel.netlink.sysctl import Sysctls
from dataplane.kernel.netlink.tc import Tc
from dataplane.kernel.netlink.unlist import unlist
from dataplane.kernel.netlink.values import (
    OUR_ROUTES,
    Address,
    Direction,
    Filter,
    KernelRoute,
    Link,
    Neighbour,
    Shaper,
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
    "Request",
    "Shaper",
    "Sysctls",
    "Tc",
    "open_netns",
    "requests",
]

_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x40, 0x08
_RTAX_MTU = "RTAX_MTU"


class Links:
    """The network of one namespace (None: the caller's own)."""

    def __init__(self, netns: Netns | None = None, sysctl_root: Path | None = None) -> None:
        self._netns = netns
        self._wire = Wire(netns)
        self.tc = Tc(self._wire)
        self.sysctls = Sysctls(netns, sysctl_root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    def do(self, *wanted: Request) -> None:
        """Have several requests done, in their order and at once.

        Each is tried, also after one that was refused.

        Raises:
            NetlinkError: the first refusal; `place` is the request's.
        """
        self._wire.do(*wanted)

    # -- devices ---------------------------------------------------------------

    def links(self) -> list[Link]:
        """All devices, by index."""
        return sorted(_link(message) for message in self._wire.dump(requests.devices()))

    def link(self, which: str | int) -> Link | None:
        """One device by name or index; None if there is none."""
        try:
            return _link(self._wire.do(requests.device(which))[0])
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
        new = requests.new_veth(name, mac, peer, peer_mac, peer_netns, mtu)
        return _link(self._wire.do(new, requests.device(name))[0])

    def create_vxlan(self, name: str, mac: bytes, port: int, mtu: int) -> Link:
        """Make a VXLAN device whose tunnel key comes with each packet; down, no ARP.

        Raises:
            BadEnvironment: another VXLAN device has the port; it is named.
        """
        for other in self.links():
            if other.vxlan_port == port and other.name != name:
                raise BadEnvironment(
                    f"device {name}",
                    f"UDP port {port} is taken by VXLAN device {other.name}",
                    f"remove {other.name}, or let it use another port",
                )
        try:
            self._wire.do(requests.new_vxlan(name, mac, port, mtu))
        except NetlinkError as refusal:
            if refusal.errno != errno.EEXIST or self.link(name) is not None:
                raise
            raise BadEnvironment(
                f"device {name}", f"UDP port {port} is taken by another tunnel device"
            ) from refusal
        made = _link(self._wire.do(requests.device(name))[0])
        self._wire.do(requests.set_no_arp(made.index))
        return made

    def set_up(self, index: int, alias: str = "") -> None:
        """Bring a device up; `alias` is a remark that `links` shows, at most 255 bytes."""
        self._wire.do(requests.set_up(index, alias))

    def set_mtu(self, index: int, mtu: int) -> None:
        self._wire.do(requests.set_mtu(index, mtu))

    def delete_link(self, which: str | int) -> None:
        """Delete a device, by name or index; nothing to do if it is gone."""
        self._wire.do(requests.delete_device(which))

    def unlist_link(self, name: str) -> None:
        """Delete a device, back as soon as the namespace has it no more (the kernel frees it later)."""
        there = self.link(name)
        if there is not None:
            unlist(self._netns, there.index)

    # -- addresses -------------------------------------------------------------

    def addresses(self, index: int = 0) -> list[Address]:
        """Addresses of one device, or of all; in the kernel's order (the first is primary)."""
        found = []
        for message in self._wire.dump(requests.addresses(index)):
            if message["index"] != index and index != 0:
                continue
            local = message.attr("IFA_LOCAL") or message.attr("IFA_ADDRESS")
            flags = message.attr("IFA_FLAGS") or message["flags"]
            found.append(
                Address(
                    index=message["index"],
                    address=ip_address(local),
                    prefix=message["prefixlen"],
                    link_scope=message["scope"] >= SCOPE_LINK,
                    usable=not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED),
                )
            )
        return found

    def add_address(
        self, index: int, address: IPAddress, prefix: int, *, link_scope: bool = False
    ) -> bool:
        """Add an address, without duplicate detection; False if it is there already."""
        try:
            self._wire.do(
                requests.put_address(Address(index, address, prefix, link_scope), new=True)
            )
        except NetlinkError as refusal:
            if refusal.errno != errno.EEXIST:
                raise
            return False
        return True

    def delete_address(self, index: int, address: IPAddress, prefix: int) -> None:
        """Remove an address; nothing to do if it is gone."""
        self._wire.do(requests.delete_address(Address(index, address, prefix)))

    # -- routes ----------------------------------------------------------------

    def routes(self) -> list[KernelRoute]:
        """Unicast routes of the main table, both families, multipath ones by first hop."""
        found = []
        for version in FAMILY:
            for message in self._wire.dump(requests.routes(version)):
                if message["type"] == RTN_UNICAST and _table(message) == MAIN_TABLE:
                    route = _route(message)
                    if route is not None:
                        found.append(route)
        return found

    def put_route(self, route: KernelRoute) -> None:
        """Add a route, or replace the one with its destination and metric."""
        self._wire.do(requests.put_route(route))

    def delete_route(self, route: KernelRoute) -> None:
        """Remove a route; nothing to do if it is gone."""
        self._wire.do(requests.delete_route(route))

    # -- neighbours ------------------------------------------------------------

    def neighbours(self) -> list[Neighbour]:
        """Permanent neighbour entries."""
        return [
            Neighbour(
                message["ifindex"],
                ip_address(message.attr("NDA_DST")),
                _mac(message.attr("NDA_LLADDR")),
            )
            for version in FAMILY
            for message in self._wire.dump(requests.neighbours(version))
            if message["state"] & NUD_PERMANENT and message.attr("NDA_LLADDR")
        ]

    def put_neighbour(self, entry: Neighbour) -> None:
        """Add or replace a permanent neighbour entry."""
        self._wire.do(requests.put_neighbour(entry))


def open_netns(path: str) -> int:
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
        up=bool(message["flags"] & IFF_UP),
        kind="loopback" if message["ifi_type"] == _ARPHRD_LOOPBACK else kind,
        ethernet=ethernet,
        no_arp=bool(message["flags"] & IFF_NOARP),
        alias=message.attr("IFLA_IFALIAS") or "",
        peer_index=(message.attr("IFLA_LINK") or 0) if kind == "veth" else 0,
        vxlan_port=(data.get_attr("IFLA_VXLAN_PORT") or 0) if data else 0,
        vxlan_metadata=bool(data and data.get_attr("IFLA_VXLAN_COLLECT_METADATA")),
    )


def _table(message: Message) -> int:
    return int(message.attr("RTA_TABLE") or message["table"])


def _route(message: Message) -> KernelRoute | None:
    version = 4 if message["family"] == socket.AF_INET else 6
    index, gateway = message.attr("RTA_OIF"), message.attr("RTA_GATEWAY")
    hops = message.attr("RTA_MULTIPATH")
    onlink = bool(message["flags"] & ONLINK)
    if hops:
        index, gateway = hops[0]["oif"], hops[0].get_attr("RTA_GATEWAY")
        onlink = bool(hops[0]["flags"] & ONLINK)
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
        link_scope=message["scope"] == SCOPE_LINK and version == 4,
        metric=message.attr("RTA_PRIORITY") or 0,
        mtu=(metrics.get_attr(_RTAX_MTU) or 0) if metrics else 0,
        protocol=message["proto"],
    )
