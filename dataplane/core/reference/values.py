# SPDX-License-Identifier: Apache-2.0
"""What is asked of the reference model, and what it answers.

A `World` is all that an answer depends on; a `FlowQuestion` is the first packet of a flow;
an `Answer` is what becomes of it. Must not decide anything.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from dataplane.core.reference.rules import Rule
from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol
from dataplane.model.objects import EndpointSlice, Node, Service

Place = tuple[IPAddress, int]
"""An address and a port."""


class Verdict(enum.Enum):
    """What becomes of a new flow (the command `explain` says these words)."""

    FORWARD = "forward"  # to one of the backends
    REJECT = "reject"  # refused actively
    DROP = "drop"  # silently
    PASS = "pass"  # no Service's: on to the host, the pod or the network


class Entry(enum.Enum):
    """Where a flow enters the node."""

    POD = "pod"  # a pod of this node sends
    OUTSIDE = "outside"  # comes by an uplink
    NODE = "node"  # the node itself sends


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """One node and the objects that it knows. Compared by identity.

    Args:
        node: its name, as slices and Nodes say it.
        services, slices, nodes: all of the cluster.
        addresses: the node's own, the first of a family is its primary one.
        routers: by family, the address by which the node speaks to pods.
        families: those that the node has; others are ignored.
        zone: of the node; empty is none.
        pod_cidrs: the node's own.
        pods: addresses of this node's pods; its endpoints in slices are pods anyway.
        cluster_cidrs: where all pods are.
        service_cidrs: where ClusterIPs come from; a family without a range takes any.
        node_port_ranges: nodePortAddresses; a family without a range means its primary address.
        localhost_node_ports: NodePorts on IPv4 loopback too, if a range covers it.
        masquerade_all: hide every client of a ClusterIP.
        non_masquerade_cidrs: ranges outside the cluster that see pods' own addresses.
        vxlan: mode vxlan, else native.
        direct_return: the node that has the pod answers clients outside itself.
        masquerade_ports: first and last port under which clients are hidden.
        vxlan_port: UDP port of the overlay.
    """

    node: str
    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    addresses: tuple[IPAddress, ...]
    nodes: tuple[Node, ...] = ()
    routers: Mapping[Family, IPAddress] = field(default_factory=dict)
    families: tuple[Family, ...] = (Family.V4, Family.V6)
    zone: str = ""
    pod_cidrs: tuple[IPNetwork, ...] = ()
    pods: frozenset[IPAddress] = frozenset()
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    node_port_ranges: tuple[IPNetwork, ...] = ()
    localhost_node_ports: bool = False
    masquerade_all: bool = False
    non_masquerade_cidrs: tuple[IPNetwork, ...] = ()
    vxlan: bool = True
    direct_return: bool = False
    masquerade_ports: tuple[int, int] = (61000, 64999)
    vxlan_port: int = 8472

    def primary(self, family: Family) -> IPAddress | None:
        """The node's first address of a family."""
        return next((a for a in self.addresses if a.version == family), None)

    def own(self) -> frozenset[IPAddress]:
        """Every address that the node itself answers on, but for loopback."""
        return frozenset((*self.addresses, *self.routers.values()))

    def entry_of(self, source: IPAddress) -> Entry:
        """Who sends from this address: the node, a pod of it, or an outside client."""
        if source.is_loopback or source in self.own():
            return Entry.NODE
        if source in self.pods or any(source in r for r in self.cluster_cidrs):
            return Entry.POD
        return Entry.OUTSIDE


@dataclass(frozen=True, slots=True)
class FlowQuestion:
    """The first packet of a flow that nobody knows yet.

    source_port only shapes the packet. remembered: the backend that this client's last flow to
    this Service port went to, within the affinity's time; None if there was none. opens: False
    for a TCP segment that is in the middle of a connection.
    """

    source: IPAddress
    destination: IPAddress
    port: int
    protocol: Protocol
    entry: Entry
    source_port: int = 0
    remembered: Place | None = None
    opens: bool = True

    @property
    def family(self) -> Family:
        return Family(self.destination.version)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The packet as it goes on. source_port None: a free port of the masquerade range."""

    source: IPAddress
    source_port: int | None
    destination: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a flow.

    backends: all that may be picked; empty unless it is forwarded.
    masquerade: the rules have the source rewritten to an address of this node.
    hidden: the backends towards which it does; a pod that may pick itself is hidden from
        itself alone, and then `masquerade` is false unless there is no other.
    service: "namespace/name:port" of the Service port that was asked, or "".
    rule: the rule that decided.
    packets: the packet as it may go on, one for each backend; of what passes the one.
    """

    verdict: Verdict
    rule: Rule
    service: str = ""
    backends: frozenset[Place] = frozenset()
    masquerade: bool = False
    hidden: frozenset[Place] = frozenset()
    packets: tuple[Rewritten, ...] = ()

    @property
    def reason(self) -> str:
        """The rule in words."""
        return self.rule.words
