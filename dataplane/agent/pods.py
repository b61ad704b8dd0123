# SPDX-License-Identifier: Apache-2.0
"""Pods of this node: wired and unwired as one unit each, compared and repaired.

Host side of a pod: veth, programs, endpoint rows, name, routes and neighbours. Pod side:
addresses, routes and neighbours inside its namespace. Programs and rows come before the
link is up, so that no packet meets a device without them. What fails half-way is undone.
Must not parse CNI or choose what a row means.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from dataplane.agent import hostports, recovery, settings
from dataplane.agent.facts import GATEWAY_MAC, GATEWAYS, OVERLAY_NAME, Facts
from dataplane.agent.log import log
from dataplane.agent.releases import Releases
from dataplane.agent.tables import Tables
from dataplane.cni import protocol
from dataplane.cni.protocol import CniError, Request, Wiring
from dataplane.cni.store import Attachment, Store
from dataplane.core.addresses import next_free, ranges_of
from dataplane.core.plan import FRONTENDS
from dataplane.kernel.hooks import Hooks, Role
from dataplane.kernel.netlink import KernelRoute, Link, Links, Neighbour, NetlinkError, open_netns
from dataplane.kernel.netns import is_netns
from dataplane.model.constants import FrontendKind, NameKind
from dataplane.model.errors import BadEnvironment, PodlaneError, TableFull
from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol, family_of
from dataplane.model.objects import Batch, Problem
from dataplane.model.rows import (
    EndpointRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    Table,
)

NAMES = Table("names")
COUNTERS = Table("endpoint_counters")
BUDGETS = Table("endpoint_flows")
ENDPOINTS = {family: Table("endpoints", family) for family in Family}


class Pods:
    """Does what the CNI server is asked; the one that knows which pods there are."""

    def __init__(
        self,
        links: Links,
        store: Store,
        hooks: Hooks,
        tables: Tables,
        facts: Facts,
        releases: Releases,
        publish: Callable[[Batch], Sequence[Problem]],
    ) -> None:
        self._links, self._store, self._hooks = links, store, hooks
        self._tables, self._facts = tables, facts
        self._releases, self._publish = releases, publish
        # Unwired, but the store could not be written: taken from it when it can.
        self._to_forget: list[Attachment] = []

    # -- what CNI asks (cni.server.Handler) --------------------------------------

    def add(self, request: Request) -> Wiring:
        """Wire a pod, all or nothing."""
        if request.netns is None:
            raise CniError(protocol.BAD_ENVIRONMENT, "CNI_NETNS", "missing")
        key = request.container_id, request.interface
        if self._releases.taken(*key):
            self.delete(request)  # a DEL that came while no agent was there
            self._releases.done(*key)
        self._forget()
        if self._store.get(*key) is not None:
            raise CniError(
                protocol.BAD_ENVIRONMENT,
                f"pod {request.pod}",
                f"has interface {request.interface} already",
                "DEL it first",
            )
        _refuse_unsupported(request)
        with ExitStack() as undo:
            netns = _open(request, request.netns)
            undo.callback(os.close, netns)
            _refuse_own_netns(netns, request.netns)
            new = self._plan(request)
            with ExitStack() as rollback:
                self._store.add(new)
                rollback.callback(self.remove, new)
                self._wire_all(new, netns)
                self._publish_ports(new)
                self._store.done(new)
                rollback.pop_all()
        return self._wiring(new)

    def delete(self, request: Request) -> None:
        """Unwire a pod; done if there is none."""
        there = self._store.get(request.container_id, request.interface)
        if there is not None:
            self.remove(there)

    def collect(self, request: Request) -> None:
        """Unwire every pod that the runtime does not name.

        Raises:
            CniError: some could not be; all were tried.
        """
        failures = []
        for one in self._store.attachments():
            if request.valid is not None and one.key not in request.valid:
                try:
                    self.remove(one)
                    log("pod_collected", pod=one.pod, container=one.container_id)
                except (PodlaneError, OSError) as failure:
                    failures.append(f"{one.pod}: {failure}")
        if failures:
            raise CniError(protocol.IO_FAILED, "garbage", "; ".join(failures))

    def check(self, request: Request) -> None:
        """Say what of a pod's wiring is not as it was made.

        Raises:
            CniError: with everything that is wrong.
        """
        there = self._store.get(request.container_id, request.interface)
        if there is None:
            raise CniError(
                protocol.UNKNOWN_CONTAINER,
                f"container {request.container_id}",
                f"has no interface {request.interface} of ours",
            )
        wrong = self._wrong(there, _Seen.of(self._links))
        wrong += self._wrong_ports(there)
        wrong += protocol.not_in_previous(request, self._wiring(there))
        if request.netns is not None:
            wrong += self._wrong_inside(there, _open(request, request.netns))
        if wrong:
            raise CniError(protocol.POD_BROKEN, f"pod {there.pod}", "; ".join(wrong))

    def status(self) -> None:
        """Say whether ADD can work, and whether the pods that are there have their network.

        Raises:
            CniError: 50 with what no new pod would get, 51 with what running pods lack.
        """
        try:
            self._free_addresses()
            self._free_number("the next pod")
            self._store.writable()
        except PodlaneError as lacking:
            raise CniError(
                protocol.NOT_AVAILABLE, lacking.what, lacking.why, lacking.next_step
            ) from lacking
        places = [(Role.UPLINK, uplink.index, uplink.name) for uplink in self._facts.uplinks]
        if self._facts.overlay_index:
            places.append((Role.OVERLAY, self._facts.overlay_index, OVERLAY_NAME))
        wrong = [
            f"filter {filter.name} is not on {name}"
            for role, index, name in places
            for filter in self._hooks.wrong(role, index)
        ]
        if wrong:
            raise CniError(
                protocol.PODS_SUFFER, "datapath", "; ".join(wrong), "start the agent anew"
            )

    # -- the node's own care -----------------------------------------------------

    def adopt(self) -> list[str]:
        """Take over what an earlier agent left: finish or undo, repair, forget what is gone.

        Returns past-tense words on each pod that was not as it should be; none if the
        kernel is as the store says.
        """
        done = self._rebuild() if self._store.fresh else []
        seen = _Seen.of(self._links)
        for one in self._store.attachments():
            link = seen.links.get(one.veth)
            if link is None or not one.done:
                self.remove(one)
                done.append(f"removed {one.pod}: its {'interface' if one.done else 'ADD'} was gone")
                continue
            wrong = self._wrong(one, seen)
            if wrong:
                self._wire_host(one, link)
                done.append(f"repaired {one.pod}: {'; '.join(wrong)}")
        done += self._forget_strangers()
        for one in self._store.attachments():
            self._publish(hostports.published(one, self._facts.name))
        return done

    def care(self) -> None:
        """What is to be done now and then: releases that the plugin recorded, rows to forget."""
        for container_id, interface in self._releases.waiting():
            there = self._store.get(container_id, interface)
            if there is not None:
                self.remove(there)
                log("pod_released", pod=there.pod, container=container_id)
            self._releases.done(container_id, interface)
        self._forget()

    def remove(self, one: Attachment) -> None:
        """Unwire a pod and free its addresses.

        With a store that can't be written it is unwired all the same, and its row goes
        later: a pod must not hang for a full disk.
        """
        self._unwire(one)
        self._to_forget.append(one)
        self._forget()

    def _forget(self) -> None:
        while self._to_forget:
            try:
                self._store.remove(self._to_forget[0])
            except BadEnvironment as failure:
                log("row_kept", pod=self._to_forget[0].pod, why=str(failure))
                return
            self._to_forget.pop(0)

    def _rebuild(self) -> list[str]:
        """Take what lives into a store that knows nothing."""
        done = []
        for one in recovery.living(self._links, self._tables):
            self._store.add(one)
            done.append(f"adopted {one.pod} without a record of it")
        return done

    def _wrong(self, one: Attachment, seen: _Seen) -> list[str]:
        """What on the host side is not as it was made, in words."""
        link = seen.links.get(one.veth)
        if link is None:
            return [f"host interface {one.veth} is gone"]
        wrong = []
        if not link.up:
            wrong.append(f"host interface {one.veth} is down")
        wrong += [
            f"filter {place.name} is not on {one.veth}"
            for place in self._hooks.wrong(Role.POD, link.index)
        ]
        for address in one.addresses:
            if self._tables.get(ENDPOINTS[family_of(address)], address) != _row(one, link):
                wrong.append(f"endpoint row of {address} is missing or other")
            route = self._host_route(link, address)
            if not any(route.same_way(other) for other in seen.routes[route.destination]):
                wrong.append(f"route to {address} is missing or other")
            if Neighbour(link.index, address, one.mac) not in seen.neighbours:
                wrong.append(f"neighbour entry of {address} is missing or other")
        if self._tables.get(NAMES, _name_key(one)) != NameRow(one.pod):
            wrong.append("name is missing or other")
        return wrong

    # -- parts -------------------------------------------------------------------

    def _plan(self, request: Request) -> Attachment:
        addresses = request.addresses or self._free_addresses()
        for address in addresses:
            self._refuse_address(address)
        for port in request.runtime.host_ports:
            holder = self._store.port_holder(port)
            if holder is not None:
                raise CniError(
                    protocol.BAD_CONFIG, str(port), f"is held by pod {holder} of this node"
                )
        number = self._free_number(request.pod)
        digest = hashlib.sha256((request.container_id + request.interface).encode())
        return Attachment(
            container_id=request.container_id,
            interface=request.interface,
            veth=f"pl{digest.hexdigest()[:12]}",
            endpoint_id=number,
            # made up ones are locally administered
            mac=request.runtime.mac or b"\x0e" + digest.digest()[6:11],
            netns=str(request.netns),
            pod=request.pod,
            mtu=self._facts.pod_mtu,
            addresses=tuple(sorted(addresses, key=lambda address: address.version)),
            done=False,
            host_ports=request.runtime.host_ports,
        )

    def _free_number(self, pod: str) -> int:
        used = self._store.endpoint_ids()
        size = min(self._tables.size(t) for t in (COUNTERS, BUDGETS, *ENDPOINTS.values()))
        number = next((n for n in range(1, size) if n not in used), None)
        if number is None:
            raise TableFull(
                f"pod {pod}",
                f"all {size - 1} places of map endpoints are taken",
                "raise mapSizes.endpoints, endpoint_counters and endpoint_flows",
            )
        return number

    def _publish_ports(self, one: Attachment) -> None:
        if not one.host_ports:
            return
        problems = self._publish(hostports.published(one, self._facts.name))
        for port, key in zip(one.host_ports, hostports.services(one), strict=True):
            for problem in problems:
                if problem.object == str(key):
                    raise CniError(protocol.BAD_CONFIG, f"pod {one.pod}: {port}", problem.reason)

    def _wrong_ports(self, one: Attachment) -> list[str]:
        """Host ports of which no frontend is in the map."""
        there = {
            (key.port, key.protocol)
            for table in FRONTENDS.values()
            for key, row in (self._tables.items(table) if one.host_ports else ())
            if isinstance(row, FrontendRow) and row.kind == FrontendKind.HOST_PORT
            if isinstance(key, FrontendKey)
        }
        return [
            f"{port} has no frontend"
            for port in one.host_ports
            if (port.host_port, int(port.protocol)) not in there
        ]

    def _free_addresses(self) -> tuple[IPAddress, ...]:
        used = self._store.addresses()
        return tuple(
            next_free(ranges_of(self._facts.pod_cidrs, family), used, self._store.last(family))
            for family in self._facts.routers
        )

    def _refuse_address(self, address: IPAddress) -> None:
        ranges = ranges_of(self._facts.pod_cidrs, family_of(address))
        if not any(address in cidr for cidr in ranges):
            words = ", ".join(map(str, ranges)) or "none of its family"
            why = f"is outside this node's pod ranges ({words})"
        elif address == self._facts.routers[family_of(address)]:
            why = "is the node's own router address"
        elif (holder := self._store.holder(address)) is not None:
            why = f"is given to pod {holder}"
        else:
            return
        raise CniError(protocol.BAD_ENVIRONMENT, f"address {address}", why)

    def _wire_all(self, new: Attachment, netns: int) -> None:
        stale = self._links.link(new.veth)
        if stale is not None:
            self._links.delete_link(stale.index)  # this container's, and the store knows none
        try:
            link = self._links.create_veth(
                new.veth, GATEWAY_MAC, new.interface, new.mac, netns, new.mtu
            )
        except NetlinkError as refusal:
            if refusal.errno != errno.EEXIST:
                raise BadEnvironment(f"pod {new.pod}", f"veth: {refusal.strerror}") from refusal
            raise CniError(
                protocol.BAD_ENVIRONMENT,
                f"pod {new.pod}",
                f"interface {new.interface} exists in {new.netns}",
            ) from refusal
        for counted in (COUNTERS, BUDGETS):
            self._tables.drop(counted, [new.endpoint_id])
        try:
            with Links(netns) as inside:
                _wire_inside(inside, new)
            self._wire_host(new, link)
        except NetlinkError as refusal:
            raise BadEnvironment(f"pod {new.pod}", f"wiring: {refusal.strerror}") from refusal

    def _wire_host(self, one: Attachment, link: Link) -> None:
        """The host side, in the order that keeps packets off half of it; can be repeated."""
        settings.apply_to_ours(self._links.sysctls, one.veth)
        self._hooks.attach(Role.POD, link.index, one.veth)
        row = _row(one, link)
        self._tables.put(NAMES, {_name_key(one): NameRow(one.pod)})
        for address in one.addresses:
            self._tables.put(ENDPOINTS[family_of(address)], {address: row})
        if not link.up:
            self._links.set_up(link.index, recovery.alias_of(one))
        for address in one.addresses:
            self._links.put_neighbour(Neighbour(link.index, address, one.mac))
            self._links.put_route(self._host_route(link, address))

    def _unwire(self, one: Attachment) -> None:
        """Rows first, so that a late packet is dropped by name and not sent into a void."""
        if one.host_ports:
            self._publish(hostports.withdrawn(one, self._facts.name))
        for address in one.addresses:
            table = ENDPOINTS[family_of(address)]
            there = self._tables.get(table, address)
            if isinstance(there, EndpointRow) and there.id == one.endpoint_id:
                self._tables.drop(table, [address])
        self._tables.drop(NAMES, [_name_key(one)])
        link = self._links.link(one.veth)
        if link is not None:
            self._links.delete_link(link.index)

    def _host_route(self, link: Link, address: IPAddress) -> KernelRoute:
        return KernelRoute(
            ip_network(address),
            link.index,
            source=self._facts.routers.get(family_of(address)),
            link_scope=True,
        )

    def _forget_strangers(self) -> list[str]:
        """Devices and rows of pods that the store does not know would send packets astray."""
        stored = self._store.attachments()
        known = {a for one in stored for a in one.addresses}
        ids, veths = {one.endpoint_id for one in stored}, {one.veth for one in stored}
        done = []
        for link in recovery.pod_links(self._links).values():
            if link.name not in veths:
                self._links.delete_link(link.index)
                done.append(f"removed device {link.name}: no pod has it")
        for table in ENDPOINTS.values():
            strange = [a for a, _ in self._tables.items(table) if a not in known]
            if strange:
                self._tables.drop(table, strange)
                done += [f"removed endpoint row of {address}: no pod has it" for address in strange]
        names = [
            key
            for key, _ in self._tables.items(NAMES)
            if isinstance(key, NameKey) and key.kind == NameKind.ENDPOINT and key.id not in ids
        ]
        if names:
            self._tables.drop(NAMES, names)
        return done

    def _wrong_inside(self, one: Attachment, fd: int) -> list[str]:
        try:
            with Links(fd) as inside:
                link = inside.link(one.interface)
                if link is None:
                    return [f"interface {one.interface} is gone"]
                wrong = [] if link.up else [f"interface {one.interface} is down"]
                there = {item.address for item in inside.addresses(link.index)}
                wrong += [f"address {a} is gone" for a in one.addresses if a not in there]
                routes, neighbours = inside.routes(), inside.neighbours()
                for route in _pod_routes(link, one):
                    if not any(route.same_way(other) for other in routes):
                        wrong.append(f"route to {route.destination} in the pod is gone")
                for entry in _pod_neighbours(link, one):
                    if entry not in neighbours:
                        wrong.append(f"neighbour entry of {entry.address} in the pod is gone")
                return wrong
        finally:
            os.close(fd)

    def _wiring(self, one: Attachment) -> Wiring:
        return Wiring(
            host_interface=one.veth,
            host_mac=GATEWAY_MAC.hex(":"),
            interface=one.interface,
            mac=one.mac.hex(":"),
            netns=one.netns,
            mtu=one.mtu,
            addresses=one.addresses,
            gateways=tuple(GATEWAYS[family_of(address)] for address in one.addresses),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """The node's network at one moment, asked once for many pods."""

    links: Mapping[str, Link]
    routes: Mapping[IPNetwork, Sequence[KernelRoute]]
    neighbours: frozenset[Neighbour]

    @classmethod
    def of(cls, links: Links) -> _Seen:
        routes: defaultdict[IPNetwork, list[KernelRoute]] = defaultdict(list)
        for route in links.routes():
            routes[route.destination].append(route)
        return cls(
            {link.name: link for link in links.links()}, routes, frozenset(links.neighbours())
        )


def _wire_inside(inside: Links, new: Attachment) -> None:
    """The pod's side, while the host side is still down."""
    link = inside.link(new.interface)
    if link is None:
        raise BadEnvironment(f"pod {new.pod}", f"interface {new.interface} went as it was made")
    disabled = f"net/ipv6/conf/{new.interface}/disable_ipv6"
    if any(a.version == 6 for a in new.addresses) and inside.sysctls.read(disabled) == "1":
        inside.sysctls.write(disabled, "0")
    inside.set_up(link.index)
    for address in new.addresses:
        inside.add_address(link.index, address, address.max_prefixlen)
    for entry in _pod_neighbours(link, new):
        inside.put_neighbour(entry)
    for route in _pod_routes(link, new):
        inside.put_route(route)


def _pod_routes(link: Link, one: Attachment) -> list[KernelRoute]:
    routes = []
    for address in one.addresses:
        gateway = GATEWAYS[family_of(address)]
        if gateway.version == 4:
            routes.append(KernelRoute(ip_network(gateway), link.index, link_scope=True))
        everywhere = ip_network("0.0.0.0/0" if gateway.version == 4 else "::/0")
        routes.append(KernelRoute(everywhere, link.index, gateway=gateway))
    return routes


def _pod_neighbours(link: Link, one: Attachment) -> list[Neighbour]:
    return [
        Neighbour(link.index, GATEWAYS[family_of(address)], GATEWAY_MAC)
        for address in one.addresses
    ]


def _row(one: Attachment, link: Link) -> EndpointRow:
    return EndpointRow(ifindex=link.index, id=one.endpoint_id, mac=one.mac)


def _name_key(one: Attachment) -> NameKey:
    return NameKey(NameKind.ENDPOINT, one.endpoint_id)


def _refuse_unsupported(request: Request) -> None:
    """What is asked for and can't be had, by name."""
    runtime = request.runtime
    for port in runtime.host_ports:
        if port.protocol is Protocol.SCTP:
            raise CniError(protocol.UNSUPPORTED_FIELD, str(port), "SCTP is not served")
        if port.host_ip is not None and port.host_ip.is_loopback:
            raise CniError(
                protocol.UNSUPPORTED_FIELD, str(port), "a loopback address is not served"
            )
    for place, one in enumerate(runtime.host_ports):
        if any(one.clashes(other) for other in runtime.host_ports[:place]):
            raise CniError(protocol.BAD_CONFIG, str(one), "is asked for twice")
    if runtime.bandwidth is not None:
        raise CniError(
            protocol.UNSUPPORTED_FIELD, "runtimeConfig.bandwidth", "podlane shapes no pod"
        )


def _open(request: Request, path: Path) -> int:
    """The pod's namespace, as it came along or by its path; the caller closes it."""
    fd = open_netns(path) if request.netns_fd is None else os.dup(request.netns_fd)
    if not is_netns(fd):
        os.close(fd)
        raise BadEnvironment(f"CNI_NETNS {path}", "is no network namespace")
    return fd


def _refuse_own_netns(netns: int, path: Path) -> None:
    mine, theirs = os.stat("/proc/self/ns/net"), os.fstat(netns)
    if (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino):
        raise CniError(protocol.BAD_ENVIRONMENT, f"CNI_NETNS {path}", "is the node's own namespace")
