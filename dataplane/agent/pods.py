# SPDX-License-Identifier: Apache-2.0
"""Pods of this node: what CNI asks and what a start finds, each pod as one unit with undo.

A pod is written into the store before the kernel is touched, and marked done afterwards;
what fails half-way is undone. `agent.grants` decides what it gets, `agent.podnet` wires
it. Must not parse CNI or know a netlink message.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from dataplane.agent import hostports, recovery
from dataplane.agent.chains import Chains
from dataplane.agent.facts import GATEWAY_MAC, GATEWAYS, Facts
from dataplane.agent.grants import Grants
from dataplane.agent.log import log
from dataplane.agent.podnet import ENDPOINTS, NAMES, PodNet, Seen, wrong_inside
from dataplane.agent.releases import Releases
from dataplane.agent.tables import Tables
from dataplane.cni import protocol
from dataplane.cni.protocol import CniError, Request, Wiring
from dataplane.cni.store import Attachment, Store
from dataplane.core.plan import FRONTENDS
from dataplane.kernel.hooks import Hooks
from dataplane.kernel.netlink import Links, open_netns
from dataplane.kernel.netns import is_netns
from dataplane.model.constants import FrontendKind, NameKind
from dataplane.model.errors import BadEnvironment, PodlaneError
from dataplane.model.net import IPNetwork, family_of
from dataplane.model.objects import Batch, Problem
from dataplane.model.rows import FrontendKey, FrontendRow, NameKey


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
        chains: Chains,
        publish: Callable[[Batch], Sequence[Problem]],
        detached: Callable[[], Iterable[Problem]],
    ) -> None:
        """publish: takes in what pods have on the node's ports. detached: see `node.detached`."""
        self._links, self._store = links, store
        self._tables, self._facts = tables, facts
        self._releases, self._chains = releases, chains
        self._publish, self._detached = publish, detached
        self._grants = Grants(store, tables, facts)
        self._net = PodNet(links, hooks, tables, facts)
        # Unwired, but the store could not be written: taken from it when it can.
        self._to_forget: list[Attachment] = []

    def give_up(self, ranges: tuple[IPNetwork, ...]) -> None:
        """From now on no new pod gets an address of these; pods that have one keep it."""
        self._grants.abandoned = ranges

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
        self._chains.refuse(request.network, limits=request.runtime.bandwidth is not None)
        with ExitStack() as undo:
            netns = _open(request, request.netns)
            undo.callback(os.close, netns)
            _refuse_own_netns(netns, request.netns)
            new = self._grants.grant(request)
            with ExitStack() as rollback:
                self._store.add(new)
                rollback.callback(self.remove, new)
                self._net.wire(new, netns)
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
        wrong = self._net.wrong(there, Seen.of(self._links))
        wrong += self._wrong_ports(there)
        wrong += protocol.not_in_previous(request, self._wiring(there))
        if request.netns is not None:
            fd = _open(request, request.netns)
            try:
                with Links(fd) as inside:
                    wrong += wrong_inside(inside, there)
            finally:
                os.close(fd)
        if wrong:
            raise CniError(protocol.POD_BROKEN, f"pod {there.pod}", "; ".join(wrong))

    def status(self) -> None:
        """Say whether ADD can work, and whether the pods that are there have their network.

        Raises:
            CniError: 50 with what no new pod would get, 51 with what running pods lack.
        """
        try:
            self._grants.addresses()
            self._grants.number("the next pod")
            self._store.writable()
        except PodlaneError as lacking:
            raise CniError(
                protocol.NOT_AVAILABLE, lacking.what, lacking.why, lacking.next_step
            ) from lacking
        if wrong := "; ".join(map(str, self._detached())):
            raise CniError(protocol.PODS_SUFFER, "datapath", wrong, "start the agent anew")

    # -- the node's own care -----------------------------------------------------

    def adopt(self) -> list[str]:
        """Take over what an earlier agent left: finish or undo, repair, forget what is gone.

        Returns past-tense words on each pod that was not as it should be; none if the
        kernel is as the store says.
        """
        done = self._rebuild() if self._store.fresh else []
        seen = Seen.of(self._links)
        for one in self._store.attachments():
            link = seen.links.get(one.veth)
            if link is None or not one.done:
                self.remove(one)
                done.append(f"removed {one.pod}: its {'interface' if one.done else 'ADD'} was gone")
                continue
            wrong = self._net.wrong(one, seen)
            if wrong:
                self._net.wire_host(one, link)
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
                try:
                    self.remove(there)
                except (PodlaneError, OSError) as failure:  # the others are not to wait for it
                    log("pod_not_released", pod=there.pod, why=str(failure))
                    continue
                log("pod_released", pod=there.pod, container=container_id)
            self._releases.done(container_id, interface)
        self._forget()

    def remove(self, one: Attachment) -> None:
        """Unwire a pod and free its addresses.

        With a store that can't be written it is unwired all the same, and its row goes
        later: a pod must not hang for a full disk.
        """
        if one.host_ports:
            self._publish(hostports.withdrawn(one, self._facts.name))
        self._net.unwire(one)
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

    # -- parts -------------------------------------------------------------------

    def _publish_ports(self, one: Attachment) -> None:
        if not one.host_ports:
            return
        problems = self._publish(hostports.published(one, self._facts.name))
        for port, key in zip(one.host_ports, hostports.services(one), strict=True):
            for problem in problems:
                if problem.object != str(key):
                    continue
                if (
                    problem.field == "hostIP"
                ):  # it may come to this node yet, as a floating one does
                    log("host_port_not_served", pod=one.pod, port=str(port), why=problem.reason)
                else:
                    code = protocol.TRY_LATER if problem.no_room else protocol.BAD_CONFIG
                    raise CniError(code, f"pod {one.pod}: {port}", problem.reason)

    def _wrong_ports(self, one: Attachment) -> list[str]:
        """Host ports of which no frontend is in the map."""
        there = {
            (key.port, key.protocol)
            for table in FRONTENDS.values()
            for key, row in (self._tables.items(table) if one.host_ports else ())
            if isinstance(row, FrontendRow) and row.kind == FrontendKind.HOST_PORT
            if isinstance(key, FrontendKey)
        }
        here = {held.address for held in self._links.addresses()} if one.host_ports else set()
        return [
            f"{port} has no frontend"
            for port in one.host_ports
            if (port.host_port, int(port.protocol)) not in there
            if port.host_ip is None or port.host_ip.is_unspecified or port.host_ip in here
        ]

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


def _open(request: Request, path: str) -> int:
    """The pod's namespace, as it came along or by its path; the caller closes it."""
    fd = open_netns(path) if request.netns_fd is None else os.dup(request.netns_fd)
    if not is_netns(fd):
        os.close(fd)
        raise BadEnvironment(f"CNI_NETNS {path}", "is no network namespace")
    return fd


def _refuse_own_netns(netns: int, path: str) -> None:
    mine, theirs = os.stat("/proc/self/ns/net"), os.fstat(netns)
    if (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino):
        raise CniError(protocol.BAD_ENVIRONMENT, f"CNI_NETNS {path}", "is the node's own namespace")
