# SPDX-License-Identifier: Apache-2.0
"""From config, facts and objects to the rows and settings of one node. Pure.

The agent and `podlane explain` fill maps from what is made here, so that both see the
same node. Must not look at the machine or write maps.
"""

from __future__ import annotations

from collections.abc import Collection

from dataplane.agent.config import Config
from dataplane.agent.facts import (
    GATEWAY_MAC,
    GATEWAYS,
    MASQUERADE_PORTS,
    OVERLAY_MAC,
    OVERLAY_PORT,
    OVERLAY_VNI,
    VXLAN,
    Facts,
)
from dataplane.core.frontends import Settings
from dataplane.core.plan import Key, Row
from dataplane.core.routes import KernelRoute, RouteFacts
from dataplane.model.constants import NodeFlag
from dataplane.model.net import Family, IPAddress, IPNetwork
from dataplane.model.objects import Node
from dataplane.model.rows import NodeRow, UplinkRow

NOTHING: dict[Family, IPAddress] = {
    family: type(gateway)(0) for family, gateway in GATEWAYS.items()
}


def node_row(config: Config, facts: Facts, family: Family, seed: int) -> NodeRow:
    """The node's own record; seed chooses among backends and must stay while flows live."""
    flags = NodeFlag.VXLAN if facts.mode == VXLAN else NodeFlag(0)
    if facts.direct:
        flags |= NodeFlag.DIRECT
    if config.masquerade_all:
        flags |= NodeFlag.MASQUERADE_ALL
    low, high = MASQUERADE_PORTS
    return NodeRow(
        router=facts.routers.get(family, NOTHING[family]),
        gateway=GATEWAYS[family],
        flags=int(flags),
        overlay_ifindex=facts.overlay_index,
        vni=OVERLAY_VNI,
        hash_seed=seed,
        masquerade_min=low,
        masquerade_max=high,
        vxlan_port=OVERLAY_PORT,
        pod_mtu=facts.pod_mtu,
        overlay_mac=OVERLAY_MAC,
        gateway_mac=GATEWAY_MAC,
        # Half of the table, in flows of two entries each.
        flows_per_pod=config.map_sizes["flows"] // 4,
        closed_flows=config.map_sizes["closed_flows"],
        primary=next((a for a in facts.addresses if a.version == family), NOTHING[family]),
        netns_cookie=facts.netns_cookie,
    )


def uplink_rows(facts: Facts, family: Family) -> dict[Key, Row]:
    """One row a device that leads out."""
    return {
        uplink.index: UplinkRow(
            uplink.addresses.get(family, NOTHING[family]), uplink.mtu, uplink.mac
        )
        for uplink in facts.uplinks
    }


def cluster_cidrs(config: Config, facts: Facts, nodes: Collection[Node]) -> tuple[IPNetwork, ...]:
    """Sources in these are inside the cluster: as configured, else all Nodes' pod ranges."""
    found = {cidr for one in nodes for cidr in one.pod_cidrs} | set(facts.pod_cidrs)
    return config.cluster_cidrs or tuple(
        sorted(found, key=lambda cidr: (cidr.version, cidr.network_address, cidr.prefixlen))
    )


def route_facts(
    config: Config,
    facts: Facts,
    nodes: Collection[Node],
    addresses: tuple[IPAddress, ...],
    kernel: tuple[KernelRoute, ...],
    left_alone: tuple[IPAddress, ...],
) -> RouteFacts:
    """What the routes depend on.

    Args:
        addresses: every address of the node that others may reach it by.
        kernel: its main table, without what podlane put there.
        left_alone: ClusterIPs that another proxy serves.
    """
    return RouteFacts(
        node=facts.name,
        vxlan=facts.mode == VXLAN,
        direct=facts.direct,
        addresses=addresses,
        routers=tuple(facts.routers.values()),
        pod_cidrs=facts.pod_cidrs,
        cluster_cidrs=cluster_cidrs(config, facts, nodes),
        service_cidrs=config.service_cidrs,
        non_masquerade_cidrs=config.non_masquerade_cidrs,
        left_alone=left_alone,
        uplinks=frozenset(uplink.index for uplink in facts.uplinks),
        kernel=kernel,
    )


def settings(
    config: Config, facts: Facts, own: Node | None, addresses: tuple[IPAddress, ...]
) -> Settings:
    """What the Service tables depend on besides objects; own is the Node object."""
    return Settings(
        node=facts.name,
        families=tuple(facts.routers),
        addresses=addresses,
        zone=own.zone if own else "",
        node_port_ranges=config.node_port_addresses,
        localhost_node_ports=config.localhost_node_ports,
        service_cidrs=config.service_cidrs,
        direct_return=facts.direct,
    )
