# SPDX-License-Identifier: Apache-2.0
"""Which devices lead out of this node.

Named by the config, else those with the Node's addresses, else those of the default
routes; a node without any of these has none. Must not change a device.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.agent.facts import OVERLAY_NAME, Uplink
from dataplane.kernel.netlink import Address, Link, Links
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, IPAddress, family_of


def discover(
    links: Links, named: Sequence[str], node_addresses: Sequence[IPAddress]
) -> tuple[Uplink, ...]:
    """The uplinks, by index.

    Raises:
        BadEnvironment: a device that the config names is missing, or one has no Ethernet header.
    """
    devices = {link.index: link for link in links.links()}
    addresses = links.addresses()
    if named:
        by_name = {link.name: link for link in devices.values()}
        for name in named:
            if name not in by_name:
                raise BadEnvironment(
                    f"uplink {name}", "this node has no such device", "correct `uplinks`"
                )
        chosen = [by_name[name] for name in named]
    else:
        chosen = [devices[i] for i in _found(links, devices, addresses, node_addresses)]
    for link in chosen:
        if not link.ethernet:
            raise BadEnvironment(
                f"uplink {link.name}",
                "has no Ethernet header, which podlane does not support",
                "name other devices in `uplinks`",
            )
    return tuple(_uplink(link, addresses, node_addresses) for link in sorted(chosen))


def _found(
    links: Links,
    devices: dict[int, Link],
    addresses: Sequence[Address],
    node_addresses: Sequence[IPAddress],
) -> set[int]:
    ours = {
        link.index
        for link in devices.values()
        if link.name == OVERLAY_NAME or link.kind == "loopback"
    }
    holders = {one.index for one in addresses if one.address in node_addresses} - ours
    if holders:
        return holders
    return {
        route.index
        for route in links.routes()
        if route.destination.prefixlen == 0 and route.index in devices
    } - ours


def _uplink(
    link: Link, addresses: Sequence[Address], node_addresses: Sequence[IPAddress]
) -> Uplink:
    """With the Node's own address of each family if it is here, else the device's primary one."""
    chosen: dict[Family, IPAddress] = {}
    for one in addresses:
        if one.index != link.index or one.link_scope or not one.usable:
            continue
        family = family_of(one.address)
        if family not in chosen or (
            one.address in node_addresses and chosen[family] not in node_addresses
        ):
            chosen[family] = one.address
    return Uplink(link.index, link.name, link.mac, link.mtu, chosen)
