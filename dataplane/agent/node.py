# SPDX-License-Identifier: Apache-2.0
"""A node brought up: overlay, router addresses, settings, programs on uplinks, routes.

Every step looks first and changes only what is not as it should be, so that a restart
with nothing to do changes nothing. Must not know pods or Services.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network

from dataplane.agent import settings, uplinks
from dataplane.agent.config import DSR, Config
from dataplane.agent.facts import (
    HOST_VETH,
    IPV6_LEAST_MTU,
    OVERLAY_DEVICE_MAC,
    OVERLAY_NAME,
    OVERLAY_OVERHEAD,
    OVERLAY_PORT,
    VXLAN,
    Facts,
    Uplink,
    check_ranges,
)
from dataplane.cni.store import Store
from dataplane.core.addresses import router_address
from dataplane.core.routes import KernelRoute as RouteOfCore
from dataplane.core.routes import Routes, covers
from dataplane.kernel import netns
from dataplane.kernel.hooks import Hooks, Role, detach
from dataplane.kernel.netlink import OUR_ROUTES, KernelRoute, Link, Links, NetlinkError
from dataplane.model.constants import RouteKind
from dataplane.model.errors import BadEnvironment, BadInput
from dataplane.model.net import Family, IPAddress, IPNetwork, family_of
from dataplane.model.objects import Node, Problem

_ROUTER = "address "  # what the store remembers a router address by

IPInterface = IPv4Interface | IPv6Interface


def find_facts(config: Config, links: Links, own: Node | None) -> Facts:
    """What this node is, from config, its Node object and its devices. Changes nothing.

    Raises:
        BadInput: no pod range, or an MTU that can't be.
        BadEnvironment: an uplink that is missing or unfit.
    """
    owner = "config" if config.pod_cidrs else f"Node {config.node_name}"
    cidrs = config.pod_cidrs or (own.pod_cidrs if own else ())
    check_ranges(cidrs, owner)
    addresses = config.node_addresses or (own.addresses if own else ())
    found = uplinks.discover(links, config.uplinks, addresses)
    if not addresses:
        addresses = tuple(one for uplink in found for one in uplink.addresses.values())
    routers = {
        family: router for family in Family if (router := router_address(cidrs, family)) is not None
    }
    return Facts(
        name=config.node_name,
        mode=config.mode,
        addresses=addresses,
        pod_cidrs=cidrs,
        routers=routers,
        uplinks=found,
        pod_mtu=_pod_mtu(config, addresses, found, Family.V6 in routers),
        overlay_index=0,
        holder_index=0,
        netns_cookie=netns.cookie(),
        direct=config.load_balancer_mode == DSR,
    )


def _pod_mtu(
    config: Config, addresses: Sequence[IPAddress], found: Iterable[Uplink], with_ipv6: bool
) -> int:
    underlay = min((uplink.mtu for uplink in found), default=1500)
    # Tunnels are over IPv4 wherever both ends have it (core.routes).
    outer = Family.V4 if not addresses or any(a.version == 4 for a in addresses) else Family.V6
    overhead = OVERLAY_OVERHEAD[outer] if config.mode == VXLAN else 0
    most = underlay - overhead
    if config.mtu > most:
        raise BadInput(
            "config: mtu",
            f"{config.mtu} is more than the uplink's {underlay} less {overhead} of the overlay",
            f"set at most {most}",
        )
    mtu = config.mtu or most
    if with_ipv6 and mtu < IPV6_LEAST_MTU:
        raise BadInput(
            "pod MTU", f"{mtu} is less than IPv6 needs ({IPV6_LEAST_MTU})", "raise the uplink's MTU"
        )
    return mtu


def make_devices(links: Links, store: Store, facts: Facts, undo: ExitStack) -> Facts:
    """Overlay device (down if new) and router addresses; the facts with their indexes.

    Router addresses of another mode, or of ranges that the node had before, go.

    Raises:
        BadEnvironment: somebody else's device has an address of ours.
    """
    loopback = links.link("lo")
    if loopback is None:
        raise BadEnvironment("device lo", "this node has none")
    if not loopback.up:
        links.set_up(loopback.index)
    overlay = _overlay(links, facts, undo)
    overlay_index = overlay.index if overlay else 0
    holder = overlay_index if facts.mode == VXLAN else loopback.index
    missing = set(facts.routers.values())
    on_loopback = missing | {router.ip for router, _ in remembered_routers(store)}
    for one in links.addresses():
        ours = one.index == overlay_index and not one.address.is_link_local
        ours |= one.index == loopback.index and one.address in on_loopback
        if one.index == holder and one.address in missing:
            missing.discard(one.address)
        elif ours:
            links.delete_address(one.index, one.address, one.prefix)
        elif one.address in missing:
            raise BadEnvironment(
                f"router address {one.address}",
                f"is on device {one.index} already",
                "remove it there",
            )
    for address in missing:
        if holder == loopback.index:
            store.remember(_ROUTER + str(ip_interface(address)), "absent", loopback.name)
        links.add_address(holder, address, address.max_prefixlen, link_scope=address.version == 4)
        undo.callback(links.delete_address, holder, address, address.max_prefixlen)
    return replace(facts, overlay_index=overlay_index, holder_index=holder)


def remembered_routers(store: Store) -> Iterator[tuple[IPInterface, str]]:
    """Router addresses that podlane put on devices that are not its own, with the device."""
    for what, _, device in store.remembered():
        if what.startswith(_ROUTER):
            yield ip_interface(what.removeprefix(_ROUTER)), device


def _overlay(links: Links, facts: Facts, undo: ExitStack) -> Link | None:
    link = links.link(OVERLAY_NAME)
    if link is not None and not (link.vxlan_metadata and link.vxlan_port == OVERLAY_PORT):
        raise BadEnvironment(
            f"device {OVERLAY_NAME}",
            f"exists and is no VXLAN device of ours ({link.kind or 'physical'})",
            f"remove it: `ip link delete {OVERLAY_NAME}`",
        )
    if facts.mode != VXLAN and not facts.direct:
        if link is not None:
            links.delete_link(link.index)  # the mode was another one
        return None
    if link is None:
        made = links.create_vxlan(OVERLAY_NAME, OVERLAY_DEVICE_MAC, OVERLAY_PORT, facts.pod_mtu)
        undo.callback(links.delete_link, made.index)
        settings.apply_to_ours(links.sysctls, OVERLAY_NAME)
        return made
    if link.mtu != facts.pod_mtu:
        links.set_mtu(link.index, facts.pod_mtu)
    return link


def attach(links: Links, store: Store, hooks: Hooks, facts: Facts, undo: ExitStack) -> list[str]:
    """Programs on uplinks and overlay, then the overlay up; words on what moved."""
    moved = []
    for uplink in facts.uplinks:
        if not links.tc.has_clsact(uplink.index):
            store.remember(f"clsact {uplink.name}", "absent", "present")
            undo.callback(links.tc.remove_clsact_if_empty, uplink.index)
            undo.callback(detach, links.tc, Role.UPLINK, uplink.index)
        names = hooks.attach(Role.UPLINK, uplink.index, uplink.name)
        moved += [f"{name} on {uplink.name}" for name in names]
    if facts.overlay_index:
        names = hooks.attach(Role.OVERLAY, facts.overlay_index, OVERLAY_NAME)
        moved += [f"{name} on {OVERLAY_NAME}" for name in names]
        overlay = links.link(facts.overlay_index)
        if overlay is not None and not overlay.up:
            _open(links, overlay)
    return moved


def detached(links: Links, hooks: Hooks, facts: Facts) -> Iterator[Problem]:
    """What somebody took off uplinks or overlay since `attach`, or the overlay: one a device.

    An uplink that is gone is none of it: who follows uplinks finds out by itself.
    """
    devices = [(Role.UPLINK, uplink.index, uplink.name) for uplink in facts.uplinks]
    if facts.overlay_index:
        devices.append((Role.OVERLAY, facts.overlay_index, OVERLAY_NAME))
    for role, index, name in devices:
        wrong = hooks.wrong(role, index)
        if wrong and links.link(index) is None:  # looked for last: it may go in between
            if role is Role.OVERLAY:
                why = "is gone; a restart of the agent makes it again"
                yield Problem(f"device {name}", "device", why)
        elif wrong:
            names = ", ".join(place.name for place in wrong)
            why = f"{names}: missing, or another's program; a restart of the agent puts them back"
            yield Problem(f"device {name}", "tc filters", why)


def _open(links: Links, overlay: Link) -> None:
    """Bring the overlay up, which takes its UDP port."""
    try:
        links.set_up(overlay.index)
    except NetlinkError as refusal:
        if refusal.errno != errno.EADDRINUSE:
            raise
        raise BadEnvironment(
            f"device {overlay.name}",
            f"UDP port {OVERLAY_PORT} is taken by a process of this node",
            f"`ss -ulnp sport = :{OVERLAY_PORT}` names it: end it, or give it another port",
        ) from refusal


def apply_settings(links: Links, store: Store, facts: Facts, undo: ExitStack) -> list[str]:
    """Kernel settings; the names of those that changed."""
    return settings.apply(links.sysctls, store, [uplink.name for uplink in facts.uplinks], undo)


def own_addresses(links: Links, facts: Facts) -> tuple[IPAddress, ...]:
    """Every address on this node that others may reach it by, the Node's own first."""
    routers = set(facts.routers.values())
    here = {
        one.address
        for one in links.addresses()
        if one.usable and not one.link_scope and not one.address.is_loopback
    }
    others = sorted(here - routers - set(facts.addresses), key=lambda a: (a.version, a))
    return (*facts.addresses, *others)


def others_routes(links: Links) -> tuple[RouteOfCore, ...]:
    """The main table without what podlane put there."""
    return tuple(
        RouteOfCore(route.destination, route.index, route.gateway, route.metric)
        for route in links.routes()
        if route.protocol != OUR_ROUTES
    )


def kernel_routes(facts: Facts, routes: Routes) -> list[KernelRoute]:
    """The way of the node's own packets to other nodes' pods: the datapath's, in kernel's terms."""
    found = []
    for family, rows in routes.rows.items():
        for key, row in rows.items():
            prefix = ip_network((key.address, key.prefix))
            source = facts.routers.get(family)
            if row.kind == RouteKind.TUNNEL:
                found.append(
                    KernelRoute(
                        prefix, facts.overlay_index, source=source, link_scope=True,
                        mtu=_stack_mtu(facts, family, row.hop),
                    )
                )  # fmt: skip
            elif row.kind == RouteKind.NATIVE:
                found.append(KernelRoute(prefix, row.ifindex, gateway=row.hop, source=source))
    return found


def _stack_mtu(facts: Facts, family: Family, hop: IPAddress | None) -> int:
    """What the node's own packets into a tunnel may be; 0: as much as the overlay takes.

    Nobody would tell them that a path of IPv6 takes less, as pods are told by the programs:
    their tunnel key has taken the place of the route that a socket would look into. So they
    are as small as every path takes, or for IPv6 itself as small as may be.
    """
    if hop is None or hop.version == 4:
        return 0
    least = IPV6_LEAST_MTU - OVERLAY_OVERHEAD[Family.V6] if family is Family.V4 else IPV6_LEAST_MTU
    return min(least, facts.pod_mtu)


def service_routes(links: Links, facts: Facts, ranges: Iterable[IPNetwork]) -> list[KernelRoute]:
    """Ways to Service ranges, where the node has no route that covers them (no default route).

    A process of the node may look for a route before the socket programs have given its
    socket a backend; no packet takes this one.
    """
    there = [route.destination for route in others_routes(links)]
    return [
        KernelRoute(one, facts.holder_index, source=source, link_scope=True)
        for one in ranges
        if (source := facts.routers.get(family_of(one))) is not None
        and not any(covers(route, one) for route in there)
    ]


def settle_routes(
    links: Links, wanted: Iterable[KernelRoute]
) -> tuple[list[str], tuple[Problem, ...]]:
    """Make our routes to other nodes be these; words on what changed, and what was refused.

    The kernel refuses a route while its device goes down, for one: no reason to end.
    """
    changed: list[str] = []
    refused: list[Problem] = []
    there = {route.destination: route for route in links.routes() if route.protocol == OUR_ROUTES}
    desired = {route.destination: route for route in wanted}
    for destination, route in desired.items():
        old = there.get(destination)
        if old is None or not route.same_way(old):
            try:
                links.put_route(route)
                changed.append(f"route to {destination} set")
            except NetlinkError as refusal:
                why = f"the kernel refused it: {refusal.strerror}"
                refused.append(Problem(f"route to {destination}", "kernel", why))
    pods = {link.index for link in links.links() if HOST_VETH.fullmatch(link.name)}
    for destination, route in there.items():
        if destination not in desired and route.index not in pods:
            links.delete_route(route)
            changed.append(f"route to {destination} removed")
    return changed, tuple(refused)
