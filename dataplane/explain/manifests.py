# SPDX-License-Identifier: Apache-2.0
"""A scene from manifests and a config: the node as its agent would fill it, without a machine.

Slice endpoints of this node get an endpoint row; all others, and the pods of other nodes,
are reachable elsewhere whatever the podCIDRs say. Must not look at this machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dataplane.agent import derive
from dataplane.agent.config import DSR, Config, load, parse
from dataplane.agent.facts import (
    MASQUERADE_PORTS,
    OVERLAY_OVERHEAD,
    OVERLAY_PORT,
    VXLAN,
    Facts,
    Uplink,
)
from dataplane.core.addresses import router_address
from dataplane.core.desired import Desired, Limits, Settings
from dataplane.core.frontends import left_alone
from dataplane.core.hostports import host_port_objects
from dataplane.core.plan import PEERS, ROUTES, Key, Row
from dataplane.core.reference import World
from dataplane.core.routes import CLUSTER, DEFAULTS, MASQUERADE, KernelRoute, make_routes
from dataplane.explain.scene import (
    DEVICE,
    NODE,
    OVERLAY,
    UPLINK_MAC,
    UPLINKS,
    Scene,
    host_key,
)
from dataplane.model.constants import RouteKind
from dataplane.model.errors import BadInput
from dataplane.model.net import Family, IPAddress, family_of
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Node,
    Object,
    ObjectKey,
    Pod,
    Problem,
    Service,
)
from dataplane.model.rows import PeerRow, RouteRow
from dataplane.sources.manifests import Manifests, objects, read

# The same each time, so that one question has one answer.
_SEED = 0x706F646C
_MTU = 1500
# The copy's maps are made as large as their content, so nothing is left out for want of room.
_ROOM = Limits(frontends=1 << 24, services=1 << 20, slots=1 << 24, backends=1 << 20)


@dataclass(frozen=True, slots=True)
class Staged:
    """A node as rows and as the reference model's world; what of the objects is not served.

    settings are core's; own is the Node object, if there is one. What it was made from
    makes the other nodes, too.
    """

    scene: Scene
    world: World
    problems: tuple[Problem, ...]
    settings: Settings
    own: Node | None
    manifests: Manifests
    config: Config

    def elsewhere(self, node: str) -> Scene:
        """Another node of the same cluster: this one's settings, but for what is its own.

        Raises:
            BadInput: there is no such Node.
        """
        config = replace(self.config, node_name=node, node_addresses=(), pod_cidrs=(), uplinks=())
        return make_scene(self.manifests, config).scene


def read_scene(folder: Path, node: str, config: Path | None) -> Staged:
    """The node of manifests in a folder or file. Raises BadInput."""
    settings = load(config, node_name=node) if config else parse({}, "", node_name=node)
    return make_scene(read([folder]), settings)


def make_scene(manifests: Manifests, config: Config) -> Staged:
    """The node that config names, as rows and as the reference model's world.

    Raises:
        BadInput: there is no such Node and the config gives no addresses either.
    """
    if not config.service_cidrs:  # as the agent takes the API's objects
        found = {cidr for one in manifests.service_cidrs for cidr in one.cidrs}
        ranges = tuple(sorted(found, key=lambda cidr: (cidr.version, cidr)))
        config = replace(config, service_cidrs=ranges)
    nodes = {node.name: node for node in manifests.nodes}
    own = nodes.get(config.node_name)
    if own is None and not config.node_addresses:
        known = f"Nodes there: {', '.join(sorted(nodes)) or 'none'}"
        raise BadInput(f"--node {config.node_name}", "the manifests have no such Node", known)
    # No interface says which of a Node's addresses it has, so the object's are all taken.
    named = (*own.addresses, *own.external_addresses) if own else ()
    addresses = config.node_addresses or tuple(dict.fromkeys(named))
    everything, problems = objects(manifests)
    everything |= _host_ports(everything.values(), config.node_name)
    facts = _facts(config, own, addresses, set(_pod_addresses(everything.values())))
    settings = derive.settings(config, facts, own, facts.addresses)
    desired = Desired(settings, _ROOM, {})
    desired.apply(Batch(upserts=tuple(everything.values()), synced=True))
    desired.plan(0.0)
    scene = Scene(
        node=config.node_name,
        addresses=frozenset({*addresses, *facts.routers.values()}),
        cluster=derive.cluster_cidrs(config, facts, nodes.values()),
        tables={table: dict(rows) for table, rows in desired.tables().items()},
        vxlan=facts.mode == VXLAN,
        nodes={address: node.name for node in nodes.values() for address in node.addresses},
    )
    others = left_alone(one for one in everything.values() if isinstance(one, Service))
    route_problems = _fill_node(scene, config, facts, nodes, others)
    _place_endpoints(scene, nodes, everything.values())
    world = _world(config, facts, settings, everything.values(), scene)
    unserved = tuple(sorted({*problems, *desired.problems(), *route_problems}))
    return Staged(scene, world, unserved, settings, own, manifests, config)


def _world(
    config: Config, facts: Facts, settings: Settings, everything: Collection[object], scene: Scene
) -> World:
    return World(
        node=scene.node,
        services=tuple(one for one in everything if isinstance(one, Service)),
        slices=tuple(one for one in everything if isinstance(one, EndpointSlice)),
        addresses=facts.addresses,
        nodes=tuple(one for one in everything if isinstance(one, Node)),
        routers=facts.routers,
        families=settings.families,
        zone=settings.zone,
        pod_cidrs=facts.pod_cidrs,
        pods=frozenset(
            address
            for one in everything
            if isinstance(one, Pod) and one.node_name == scene.node and not one.host_network
            for address in one.addresses
        ),
        cluster_cidrs=scene.cluster,
        service_cidrs=config.service_cidrs,
        node_port_ranges=config.node_port_addresses,
        localhost_node_ports=config.localhost_node_ports,
        masquerade_all=config.masquerade_all,
        non_masquerade_cidrs=config.non_masquerade_cidrs,
        vxlan=scene.vxlan,
        direct_return=facts.direct,
        masquerade_ports=MASQUERADE_PORTS,
        vxlan_port=OVERLAY_PORT,
    )


def _host_ports(everything: Collection[object], node: str) -> dict[ObjectKey, Object]:
    """What the agent is told by the runtime: the host ports of the pods that run here."""
    pods = (one for one in everything if isinstance(one, Pod) and one.node_name == node)
    return {
        made.key: made
        for number, pod in enumerate(pods, start=1)
        for made in host_port_objects(
            f"{pod.namespace}/{pod.name}", number, pod.addresses, pod.ports, node
        )
    }


def _pod_addresses(everything: Iterable[object]) -> Iterator[IPAddress]:
    """Addresses that pods and endpoints have, wherever they are."""
    for one in everything:
        if isinstance(one, Pod):
            yield from one.addresses
        elif isinstance(one, EndpointSlice):
            yield from (endpoint.address for endpoint in one.endpoints)


def _facts(
    config: Config, own: Node | None, addresses: tuple[IPAddress, ...], pods: set[IPAddress]
) -> Facts:
    """What the agent would find, of a node with one uplink that has all its addresses.

    pods: addresses that the node's router can't have, since whoever made the manifests gave
    them to pods.
    """
    cidrs = config.pod_cidrs or (own.pod_cidrs if own else ())
    primary: dict[Family, IPAddress] = {}
    for address in addresses:
        primary.setdefault(family_of(address), address)
    routers = dict(primary)  # of a family without pods of this node, its own address
    for family in Family:
        if (router := router_address(cidrs, family, pods)) is not None:
            routers[family] = router
    overhead = OVERLAY_OVERHEAD[Family.V4 if Family.V4 in primary else Family.V6]
    vxlan, direct = config.mode == VXLAN, config.load_balancer_mode == DSR
    return Facts(
        name=config.node_name,
        mode=config.mode,
        addresses=addresses,
        pod_cidrs=cidrs,
        routers={family: routers[family] for family in Family if family in routers},
        # With an address of each family, so that endpoints out there are reachable in either.
        uplinks=(Uplink(DEVICE, "uplink", UPLINK_MAC, _MTU, routers | primary),),
        pod_mtu=config.mtu or _MTU - (overhead if vxlan else 0),
        overlay_index=OVERLAY if vxlan or direct else 0,
        holder_index=0,
        direct=direct,
    )


def _fill_node(
    scene: Scene,
    config: Config,
    facts: Facts,
    nodes: Mapping[str, Node],
    others: tuple[IPAddress, ...],
) -> list[Problem]:
    """The rows that agents write besides those of Services; what is wrong with Nodes."""
    primary = {family_of(address) for address in facts.addresses}
    # A way to the world in each family that the node has an address of.
    kernel = tuple(KernelRoute(d, DEVICE) for d in DEFAULTS if family_of(d) in primary)
    found = derive.route_facts(config, facts, nodes.values(), facts.addresses, kernel, others)
    routes = make_routes(found, nodes.values())
    for family in Family:
        # A copy's flows are all new, so no bound of the node's is ever near.
        row = replace(derive.node_row(config, facts, family, _SEED), flows_per_pod=0)
        scene.put(NODE[family], 0, row)
        scene.tables[UPLINKS[family]] = derive.uplink_rows(facts, family)
        scene.tables[ROUTES[family]] = dict(routes.rows[family].items())
    numbers = {name: n for n, name in enumerate(sorted(set(routes.peers.values())), start=1)}
    peers: dict[Key, Row] = {a: PeerRow(numbers[name]) for a, name in routes.peers.items()}
    scene.tables[PEERS] = peers
    return routes.problems


def _place_endpoints(
    scene: Scene, nodes: Mapping[str, Node], everything: Collection[object]
) -> None:
    """Where each endpoint and pod is: on this node, or elsewhere."""
    here: set[IPAddress] = set()
    elsewhere: dict[IPAddress, str] = {}
    for one in everything:
        if isinstance(one, Pod) and not one.host_network:
            for address in one.addresses:
                scene.pods[address] = f"{one.namespace}/{one.name}"
                if one.node_name == scene.node:
                    here.add(address)
                elif one.node_name:
                    elsewhere[address] = one.node_name
        elif isinstance(one, EndpointSlice):
            for endpoint in one.endpoints:
                if endpoint.target:
                    scene.pods.setdefault(endpoint.address, endpoint.target)
                if endpoint.node_name == scene.node:
                    here.add(endpoint.address)
                else:
                    elsewhere.setdefault(endpoint.address, endpoint.node_name)
    for address in sorted(here - scene.addresses, key=_order):
        scene.add_pod(address)
    for address in sorted(elsewhere.keys() - here - scene.addresses, key=_order):
        _place_elsewhere(scene, address, nodes.get(elsewhere[address]))


def _place_elsewhere(scene: Scene, address: IPAddress, node: Node | None) -> None:
    """A route to one endpoint of another node, unless that node's own route leads there."""
    family = family_of(address)
    found = scene.route(address)
    kind = found[1].kind if found else RouteKind.STACK
    inside = scene.in_cluster(address)
    if inside and address not in scene.nodes:
        at_home = node is not None and any(address in cidr for cidr in node.pod_cidrs)
        if not (at_home and kind in (RouteKind.TUNNEL, RouteKind.NATIVE)):
            scene.put(ROUTES[family], host_key(address), scene.way(address, node, CLUSTER))
        return
    if found and found[1].flags & MASQUERADE:
        scene.unmasked.add(address)
    row = RouteRow(RouteKind.WORLD, CLUSTER if inside else 0, DEVICE)
    scene.put(ROUTES[family], host_key(address), row)


def _order(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)
