# SPDX-License-Identifier: Apache-2.0
"""The datapath of one node: loaded, filled from objects and facts, attached.

What packets ask is there before what makes packets ask: maps are filled, then programs
go on devices. A failure on the way takes away what this start made, and nothing else.
Must not decide rows (core) or talk to users.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from dataplane.agent import derive, node, pins, uplinks
from dataplane.agent.chains import Chains
from dataplane.agent.config import Config
from dataplane.agent.facts import Facts, Uplink
from dataplane.agent.health import Vitals
from dataplane.agent.known import Known
from dataplane.agent.log import log
from dataplane.agent.nodesockets import NodeSockets
from dataplane.agent.pods import Pods
from dataplane.agent.releases import Releases
from dataplane.agent.sweeps import FLOWS, Sweeps
from dataplane.agent.tables import Tables
from dataplane.cni.store import Store
from dataplane.core import plan as tables_of
from dataplane.core.desired import Desired, Limits, Settings
from dataplane.core.plan import Key, Row
from dataplane.core.routes import RouteFacts, Routes, make_routes
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.compiler import compile_bundle
from dataplane.kernel.hooks import Hooks
from dataplane.kernel.loader import Datapath, load
from dataplane.kernel.maps import Writer
from dataplane.kernel.netlink import Links, NetlinkError
from dataplane.kernel.source import bundle_path
from dataplane.model.constants import NameKind
from dataplane.model.errors import BadEnvironment, NoMemory, TableFull
from dataplane.model.net import Family
from dataplane.model.objects import Batch, Node, Problem
from dataplane.model.rows import NameKey, NameRow, NodeRow, PeerRow, Table

NODE = {family: Table("node", family) for family in Family}
UPLINKS = {family: Table("uplinks", family) for family in Family}
SERVICE_TABLES = (
    tables_of.SERVICES,
    tables_of.SLOTS,
    tables_of.NAMES,
    *tables_of.FRONTENDS.values(),
    *tables_of.BACKENDS.values(),
    *tables_of.SOURCE_RANGES.values(),
)


class NodeDatapath:
    """One node's maps, programs and pods, kept as objects and facts say."""

    def __init__(
        self, config: Config, facts: Facts, own: Node | None, links: Links, datapath: Datapath,
        store: Store, bundle: Bundle, undo: ExitStack,
    ) -> None:  # fmt: skip
        self._known = Known(config)
        self._facts, self._links, self._store = facts, links, store
        self._undo = undo
        self._datapath = datapath
        self._writer = Writer(datapath)
        self._tables = Tables(datapath, self._writer)
        self._hooks = Hooks(links.tc, datapath.programs)
        self.sockets = NodeSockets(config, bundle, datapath, self._tables)
        self.sweeps = Sweeps({f: datapath.maps[table] for f, table in FLOWS.items()}, self._tables)
        self.pods = Pods(
            links, store, self._hooks, self._tables, facts, Releases(config.state_dir),
            Chains(config.cni_conf_dir),
            self._publish, self._detached,
        )  # fmt: skip
        self._nodes_changed = True
        self._source_problems: tuple[Problem, ...] = ()
        self._route_problems: tuple[Problem, ...] = ()
        self._lost: tuple[Problem, ...] = ()
        self._not_followed: tuple[Problem, ...] = ()
        self._uplink_problems: tuple[Problem, ...] = ()
        self._kernel_problems: tuple[Problem, ...] = ()
        self._routes = Routes()
        self._synced = False
        self._up = False
        adopted = {table: dict(self._tables.items(table)) for table in SERVICE_TABLES}
        self._desired = Desired(self._settings(own), self._limits(), adopted)
        self.vitals = Vitals(self._desired)
        self.vitals.seen(own)

    @classmethod
    @contextmanager
    def bring_up(
        cls, config: Config, facts: Facts, own: Node | None, links: Links, store: Store
    ) -> Iterator[NodeDatapath]:
        """Load, make devices, take over pods; `apply` and `finish` complete it.

        Until `finish`, a failure undoes what was made here. Afterwards all stays.
        """
        began = time.monotonic()
        bundle = compile_bundle(bundle_path())
        with ExitStack() as undo:
            made = node.make_devices(links, store, facts, undo)
            if not pins.folders(config.bpffs_dir):
                undo.callback(lambda: list(pins.remove(config.bpffs_dir)))
            with load(bundle, config.bpffs_dir, config.map_sizes) as datapath:
                log(
                    "programs_loaded" if datapath.loaded else "programs_found",
                    seconds=round(time.monotonic() - began, 3),
                )
                self = cls(config, made, own, links, datapath, store, bundle, undo)
                self._put_node()
                if store.damaged is not None:
                    log("STATE_DAMAGED", moved_to=store.damaged, rebuilt_from="what lives")
                for words in self.pods.adopt():
                    log("pod_adopted", change=words)
                self.pods.care()
                yield self

    def finish(self) -> None:
        """Programs on devices, settings, kernel routes, and the end of undoing: the node is up."""
        for words in node.attach(self._links, self._store, self._hooks, self._facts, self._undo):
            log("program_attached", place=words)
        for name in node.apply_settings(self._links, self._store, self._facts, self._undo):
            log("setting_changed", name=name)
        self._put_kernel_routes()
        for words in self.sockets.attach(self._undo):
            log("program_attached", place=words)
        self._up = True
        self._datapath.settle()
        self._undo.pop_all()

    # What nobody tells about; each is looked after now and then, and no other waits for it.

    def care_for_devices(self) -> tuple[Problem, ...]:
        """Devices that are not as the agent left them, which health follows."""
        if self._not_followed:  # nobody tells when what stood in the way has gone
            self.look_again()
        found = tuple(self._detached())
        self.vitals.attached = not found
        return found

    def care_for_pods(self) -> tuple[Problem, ...]:
        """Let go of pods that ended while no agent answered."""
        self.pods.care()
        return ()

    def care_for_sockets(self) -> tuple[Problem, ...]:
        """Programs at the node's own system calls are put back."""
        for words in self.sockets.care():
            log("program_attached", place=words)
        return ()

    def _detached(self) -> Iterator[Problem]:
        yield from self._not_followed
        yield from node.detached(self._links, self._hooks, self._facts)

    # -- objects -----------------------------------------------------------------

    def apply(self, batch: Batch) -> tuple[Problem, ...]:
        """Take in a batch, write what changed; what is not served."""
        self._synced |= batch.synced
        self._source_problems = batch.problems if batch.synced else self._source_problems
        if self._known.take(batch):
            self._nodes_changed = True
            self._follow_own_node()
        if self._synced and self._nodes_changed:
            self._put_routes()
            self._nodes_changed = False
        self._desired.apply(batch)
        plan = self._desired.plan(time.monotonic())
        refused: tuple[TableFull, ...] = ()
        if plan:
            refused = self._writer.execute(plan)
            self.sockets.written(plan)
            log("tables_written", entries=plan.entries)
        self.vitals.seen(self._known.nodes.get(self._facts.name))
        self.vitals.written(self._synced, refused)
        problems = {
            *self._source_problems,
            *self._lost,
            *(self._known.problems(self._facts) if self._synced else ()),
            *self._uplink_problems,
            *self._route_problems,
            *self._kernel_problems,
            *self.sockets.problems,
            *self._desired.problems(),
        }
        problems.update(map(_no_room, refused))
        return tuple(problems)

    def _publish(self, batch: Batch) -> tuple[Problem, ...]:
        """Take in what pods have on this node's ports; what is not served.

        Raises:
            TableFull: a map has no room for it.
        """
        if batch.upserts or batch.deletes:
            self._desired.apply(batch)
            plan = self._desired.plan(time.monotonic()) if self._up else None
            if plan:
                refused = self._writer.execute(plan)
                self.sockets.written(plan)
                if refused:
                    raise refused[0]
        return self._desired.problems()

    def wake(self) -> float | None:
        """When `apply` wants to be called though nothing changed (time.monotonic)."""
        return self._desired.wake()

    def watched(self) -> frozenset[int]:
        """Devices whose changes matter here."""
        return frozenset(uplink.index for uplink in self._facts.uplinks)

    def look_again(self) -> None:
        """Addresses, routes or uplinks of the node may be others: find out, and follow.

        Writes rows of uplinks; routes and Services follow with the next `apply`.
        """
        # One that was lost may be back as it was, but for the programs on it.
        troubled = bool(self._lost or self._not_followed)
        self._lost, self._not_followed = (), ()
        found = self._facts.uplinks
        try:
            found = uplinks.discover(self._links, self._known.config.uplinks, self._facts.addresses)
        except BadEnvironment as lost:
            self._lost, troubled = (Problem(lost.what, "uplinks", lost.why),), False
        if troubled or found != self._facts.uplinks:
            before = self._facts
            try:
                self._follow_uplinks(found)
            except (BadEnvironment, NetlinkError) as refused:
                self._facts = before
                self._not_followed = (Problem("uplinks", "uplinks", str(refused)),)
        self._nodes_changed = True
        self._desired.configure(self._settings(self._known.nodes.get(self._facts.name)))

    def _follow_own_node(self) -> None:
        """Pod ranges, addresses, zone or Service ranges may be others."""
        self.pods.give_up(self._known.abandoned(self._facts))
        addresses = self._known.addresses(self._facts)
        if addresses != self._facts.addresses:
            log("node_addresses_changed", addresses=[str(one) for one in addresses])
            self._facts = replace(self._facts, addresses=addresses)
            self.look_again()
        self._desired.configure(self._settings(self._known.nodes.get(self._facts.name)))

    def _follow_uplinks(self, found: tuple[Uplink, ...]) -> None:
        """Rows and programs of other uplinks than before."""
        self._facts = replace(self._facts, uplinks=found)
        self._put_uplinks()
        with ExitStack() as kept:
            for words in node.attach(self._links, self._store, self._hooks, self._facts, kept):
                log("program_attached", place=words)
            for name in node.apply_settings(self._links, self._store, self._facts, kept):
                log("setting_changed", name=name)
            kept.pop_all()
        log("uplinks_changed", uplinks=[uplink.name for uplink in found])

    # -- rows ----------------------------------------------------------------------

    def _put_node(self) -> None:
        for family, table in NODE.items():
            before = self._tables.get(table, 0)
            # The seed stays: the other half of a flow is found again by it.
            seed = before.hash_seed if isinstance(before, NodeRow) else 0
            seed = seed or secrets.randbits(32) | 1
            self._tables.put(
                table, {0: derive.node_row(self._known.config, self._facts, family, seed)}
            )
        self._put_uplinks()

    def _put_uplinks(self) -> None:
        refused: list[TableFull] = []
        for family, table in UPLINKS.items():
            refused += self._tables.settle(table, derive.uplink_rows(self._facts, family))
        self._uplink_problems = tuple(map(_no_room, refused))

    def _put_routes(self) -> None:
        routes = make_routes(self._route_facts(), self._known.nodes.values())
        problems = list(routes.problems)
        for family, table in tables_of.ROUTES.items():
            rows: dict[Key, Row] = dict(routes.rows[family].items())
            problems += map(_no_room, self._tables.settle(table, rows))
        problems += map(_no_room, self._put_peers(routes))
        self._route_problems = tuple(problems)
        self._routes = routes
        if self._up:
            self._put_kernel_routes()

    def _put_kernel_routes(self) -> None:
        wanted = node.kernel_routes(self._facts, self._routes)
        wanted += node.service_routes(self._links, self._facts, self._known.config.service_cidrs)
        changed, self._kernel_problems = node.settle_routes(self._links, wanted)
        for words in changed:
            log("kernel_route_changed", change=words)

    def _put_peers(self, routes: Routes) -> tuple[TableFull, ...]:
        """Peers and their names; a node keeps its id as long as it is known."""
        known = {
            row.text: key.id
            for key, row in self._tables.items(tables_of.NAMES)
            if isinstance(key, NameKey) and isinstance(row, NameRow) and key.kind == NameKind.NODE
        }
        wanted = set(routes.peers.values())
        ids = {name: number for name, number in known.items() if name in wanted}
        number = max(known.values(), default=0)
        for name in sorted(wanted - ids.keys()):
            number += 1
            ids[name] = number
        refused: list[TableFull] = []
        try:
            self._tables.put(
                tables_of.NAMES,
                {NameKey(NameKind.NODE, number): NameRow(name) for name, number in ids.items()},
            )
        except TableFull as full:  # a name is for people: the peer is served without
            refused.append(full)
        peers: dict[Key, Row] = {
            address: PeerRow(ids[name]) for address, name in routes.peers.items()
        }
        refused += self._tables.settle(tables_of.PEERS, peers)
        gone: list[Key] = [
            NameKey(NameKind.NODE, number) for name, number in known.items() if name not in ids
        ]
        self._tables.drop(tables_of.NAMES, gone)
        return tuple(refused)

    def _route_facts(self) -> RouteFacts:
        return derive.route_facts(
            self._known.config,
            self._facts,
            self._known.nodes.values(),
            node.own_addresses(self._links, self._facts),
            node.others_routes(self._links),
            self._known.left_alone,
        )

    # -- settings of core ------------------------------------------------------------

    def _settings(self, own: Node | None) -> Settings:
        addresses = node.own_addresses(self._links, self._facts)
        return derive.settings(self._known.config, self._facts, own, addresses)

    def _limits(self) -> Limits:
        size = self._tables.size
        return Limits(
            frontends=min(size(table) for table in tables_of.FRONTENDS.values()),
            services=size(tables_of.SERVICES),
            slots=size(tables_of.SLOTS),
            backends=min(size(table) for table in tables_of.BACKENDS.values()),
            source_ranges=min(size(table) for table in tables_of.SOURCE_RANGES.values()),
        )


def _no_room(full: TableFull) -> Problem:
    field = "kernel" if isinstance(full, NoMemory) else "mapSizes"
    return Problem(full.what, field, f"{full.why}; {full.next_step}")
