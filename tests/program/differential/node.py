# SPDX-License-Identifier: Apache-2.0
"""The node under test: the real programs, the tables as the real core makes them.

Must not make objects or packets, and judges nothing. All is to be called in the sandbox's
thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path

from dataplane.core.desired import Desired, Limits, Settings
from dataplane.core.frontends import left_alone
from dataplane.core.plan import Grace, Plan
from dataplane.core.reference import Entry, World
from dataplane.core.routes import KernelRoute, RouteFacts, Routes, make_routes
from dataplane.kernel import bpf, loader
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.loader import Datapath
from dataplane.kernel.maps import Writer
from dataplane.kernel.prelude import Setup
from dataplane.model import rows
from dataplane.model.constants import NodeFlag
from dataplane.model.net import Family, IPAddress
from dataplane.model.objects import Batch, EndpointSlice, ObjectKey, Service
from dataplane.model.rows import Table
from tests.program.differential import cluster
from tests.program.quick import Quick, Seen, Way
from tests.program.sandbox import Sandbox
from tests.program.state import Tables, nothing

SIZES = {
    "frontends": 512,
    "services": 256,
    "slots": 2048,
    "backends": 512,
    "names": 512,
    "routes": 128,
    "endpoints": 16,
    "endpoint_flows": 8,
    "endpoint_counters": 8,
    "service_counters": 256,
    "backend_counters": 512,
    "flows": 32768,
    "fragments": 16,
    "exhausted": 16,
}
LIMITS = Limits(
    SIZES["frontends"], SIZES["services"], SIZES["slots"], SIZES["backends"]
)  # fmt: skip
# A freed id rests for less than that.
STEP_SECONDS = 10.0

Objects = dict[ObjectKey, Service | EndpointSlice]


class Stage:
    """The node: `begin` with a world, `change` to others; `run` packets."""

    def __init__(self, datapath: Datapath) -> None:
        self._tables, self._writer = Tables(cluster.HERE, datapath), Writer(datapath)
        self._quick = Quick(datapath)
        self._ways: dict[tuple[object, ...], Way] = {}
        self._desired = Desired(Settings("", (), ()), LIMITS, {})
        self._objects: Objects = {}
        self._routes, self._left_alone = Routes(), left_alone(())
        self._now = 0.0
        # so that no budget of answers runs out in the midst of a test
        self._budgets = [datapath.maps[Table("answer_budget", family)] for family in Family]
        self._unspent = nothing(bpf.map_info(self._budgets[0]))

    def begin(self, world: World) -> None:
        """Fresh tables, filled for a world."""
        self._tables.clear()
        self._fill_node(world)
        self._desired = Desired(settings_of(world), LIMITS, {})
        self._objects = {}
        self.change(world)

    def change(self, world: World) -> None:
        """The objects of another world, as one batch, on the same node."""
        objects: Objects = {service.key: service for service in world.services}
        objects.update((piece.key, piece) for piece in world.slices)
        upserts = tuple(o for key, o in objects.items() if self._objects.get(key) != o)
        deletes = tuple(key for key in self._objects if key not in objects)
        self._objects = objects
        self._desired.apply(Batch(upserts, deletes, synced=True))
        self._settle_routes(world)
        self._now += STEP_SECONDS
        plan = self._desired.plan(self._now)
        # nothing runs meanwhile, so there is nothing to wait for
        steps = tuple(step for step in plan.steps if not isinstance(step, Grace))
        left_out = self._writer.execute(Plan(steps))
        assert not left_out, f"the test's maps are too small: {left_out[0]}"
        for fd in self._budgets:
            bpf.map_update_batch(fd, *self._unspent)

    def run(self, hook: str, family: Family, device: int, frame: bytes | bytearray) -> Seen:
        """One packet through one hook of a device."""
        way = self._ways.get((hook, family, device, None))
        return self._quick.run(way or self.way(hook, family, device), frame)

    def way(self, hook: str, family: Family, device: int, setup: Setup | None = None) -> Way:
        """What `quick` needs to run packets of one kind."""
        key = hook, family, device, setup
        if key not in self._ways:
            self._ways[key] = self._quick.way(f"{hook}_{int(family)}", device, setup)
        return self._ways[key]

    def quick(self, way: Way, frame: bytes | bytearray) -> Seen:
        """One packet, by what `way` gave."""
        return self._quick.run(way, frame)

    def _fill_node(self, world: World) -> None:
        """What the agent writes itself: the node, uplinks, pods, routes."""
        tables = self._tables
        flags = NodeFlag.VXLAN if world.vxlan else NodeFlag(0)
        if world.masquerade_all:
            flags |= NodeFlag.MASQUERADE_ALL
        self._routes = make_routes(route_facts(world), world.nodes)
        self._left_alone = left_alone(world.services)
        for family in world.families:
            tables.family = family
            row = rows.NodeRow(
                router=world.routers[family],
                primary=world.primary(family) or world.routers[family],
                gateway=cluster.GATEWAYS[family],
                flags=int(flags),
                overlay_ifindex=cluster.OVERLAY if world.vxlan else 0,
                vni=cluster.VNI,
                hash_seed=cluster.HASH_SEED,
                masquerade_min=world.masquerade_ports[0],
                masquerade_max=world.masquerade_ports[1],
                vxlan_port=world.vxlan_port,
                pod_mtu=cluster.POD_MTU,
                overlay_mac=cluster.OVERLAY_MAC,
                gateway_mac=cluster.GATEWAY_MAC,
            )
            tables.put("node", 0, row)
            uplink = world.primary(family)
            assert uplink is not None
            tables.put("uplinks", cluster.UPLINK, rows.UplinkRow(uplink, 1500, cluster.UPLINK_MAC))
            for number, device in enumerate(cluster.POD_DEVICES, 1):
                address = cluster.PODS[number - 1][family]
                tables.put("endpoints", address, rows.EndpointRow(device, number, cluster.POD_MAC))
            for key, route in self._routes.rows[family].items():
                tables.put("routes", key, route)
        for peer in self._routes.peers:
            tables.put("peers", peer, rows.PeerRow(1))

    def _settle_routes(self, world: World) -> None:
        """Other proxies' Services are all of a world's objects that routes hang on."""
        if left_alone(world.services) == self._left_alone:
            return
        before, self._left_alone = self._routes, left_alone(world.services)
        self._routes = make_routes(route_facts(world), world.nodes)
        for family in world.families:
            self._tables.family = family
            rows_now = self._routes.rows[family]
            for key in before.rows[family].keys() - rows_now.keys():
                self._tables.delete("routes", key)
            for key in rows_now.keys() - before.rows[family].keys():
                self._tables.put("routes", key, rows_now[key])


def settings_of(world: World) -> Settings:
    """What core is told of the node."""
    return Settings(
        node=world.node,
        families=world.families,
        addresses=world.addresses,
        zone=world.zone,
        node_port_ranges=world.node_port_ranges,
        service_cidrs=world.service_cidrs,
        localhost_node_ports=world.localhost_node_ports,
    )


def route_facts(world: World) -> RouteFacts:
    """What the routes depend on; the kernel has a default route by the uplink, and one to a
    network behind the node."""
    defaults = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    return RouteFacts(
        node=world.node,
        vxlan=world.vxlan,
        addresses=world.addresses,
        routers=tuple(world.routers.values()),
        pod_cidrs=world.pod_cidrs,
        cluster_cidrs=world.cluster_cidrs,
        service_cidrs=world.service_cidrs,
        non_masquerade_cidrs=world.non_masquerade_cidrs,
        left_alone=left_alone(world.services),
        uplinks=frozenset({cluster.UPLINK}),
        kernel=(
            *(KernelRoute(default, cluster.UPLINK) for default in defaults),
            *(KernelRoute(behind, cluster.BRIDGE) for behind in cluster.BEHIND_CIDRS),
        ),
    )


def device_of(entry: Entry, source: IPAddress) -> int:
    """The device by which a sender's packets come."""
    if entry is Entry.OUTSIDE:
        return cluster.UPLINK
    at = next(n for n, pod in enumerate(cluster.PODS) if source in pod.values())
    return cluster.POD_DEVICES[at]


@contextmanager
def opened(bundle: Bundle, folder: Path) -> Iterator[tuple[Sandbox, Stage]]:
    """A stage in a sandbox of its own; folder: where to mount."""
    sandbox = Sandbox(folder, cluster.DEVICE_MACS)
    try:
        datapath = sandbox.do(partial(loader.load, bundle, sandbox.bpffs / "podlane", SIZES))
        try:
            yield sandbox, sandbox.do(lambda: Stage(datapath))
        finally:
            datapath.close()
    finally:
        sandbox.close()
