# SPDX-License-Identifier: Apache-2.0
"""What the source says of nodes, Service ranges and others' Services, and whether it still fits this node.

A node's pod ranges are those that it was brought up with, whatever its Node object says
later: pods live in them. Must not read the kernel or write maps.
"""

from __future__ import annotations

from dataclasses import replace

from dataplane.agent.config import Config
from dataplane.agent.facts import Facts
from dataplane.core.frontends import left_alone
from dataplane.model.net import IPAddress, IPNetwork
from dataplane.model.objects import Batch, Kind, Node, ObjectKey, Problem, Service, ServiceCIDR


class Known:
    """Nodes by name, the Service ranges and others' Services, as of the last batch."""

    def __init__(self, given: Config) -> None:
        self._given = given
        self.config = given
        self.nodes: dict[str, Node] = {}
        self._ranges: dict[str, ServiceCIDR] = {}
        self._skipped: dict[ObjectKey, Service] = {}

    def take(self, batch: Batch) -> bool:
        """Take in a batch; whether it changed anything here. `config` has the ranges then."""
        changed = False
        for key in batch.deletes:
            if key.kind_name == Kind.NODE.value:
                changed |= self.nodes.pop(key.name, None) is not None
            elif key.kind_name == Kind.SERVICE_CIDR.value:
                changed |= self._ranges.pop(key.name, None) is not None
            else:
                changed |= self._skipped.pop(key, None) is not None
        for one in batch.upserts:
            if isinstance(one, Node):
                changed |= self.nodes.get(one.name) != one
                self.nodes[one.name] = one
            elif isinstance(one, ServiceCIDR):
                changed |= self._ranges.get(one.name) != one
                self._ranges[one.name] = one
            elif isinstance(one, Service):
                changed |= self._take_skipped(one)
        if changed and not self._given.service_cidrs:
            found = {cidr for one in self._ranges.values() for cidr in one.cidrs}
            self.config = replace(self._given, service_cidrs=_sorted(found))
        return changed

    def _take_skipped(self, one: Service) -> bool:
        before = self._skipped.pop(one.key, None)
        if one.skipped:
            self._skipped[one.key] = one
        return (before.cluster_ips if before else ()) != (one.cluster_ips if one.skipped else ())

    @property
    def left_alone(self) -> tuple[IPAddress, ...]:
        """ClusterIPs of Services that another proxy serves."""
        return left_alone(self._skipped.values())

    def addresses(self, facts: Facts) -> tuple[IPAddress, ...]:
        """The node's own: the config's, else its Node's, else those that it was brought up with."""
        own = self.nodes.get(facts.name)
        return self._given.node_addresses or (own.addresses if own else ()) or facts.addresses

    def abandoned(self, facts: Facts) -> tuple[IPNetwork, ...]:
        """Ranges that this node was brought up with and its Node has other ones instead of.

        No other node sends to them any more, or one has them as its own.
        """
        own = self.nodes.get(facts.name)
        if self._given.pod_cidrs or own is None or not own.pod_cidrs:
            return ()
        return tuple(cidr for cidr in facts.pod_cidrs if cidr not in own.pod_cidrs)

    def problems(self, facts: Facts) -> tuple[Problem, ...]:
        """What the source says now that this node can't follow."""
        key = str(ObjectKey(Kind.NODE.value, "", facts.name))
        own = self.nodes.get(facts.name)
        if self._given.pod_cidrs:
            return ()
        if own is None:
            why = "is gone; this node goes on as it was"
            return (Problem(key, "metadata.name", why),)
        if own.pod_cidrs == facts.pod_cidrs:
            return ()
        before, now = _words(facts.pod_cidrs), _words(own.pod_cidrs)
        why = (
            f"was {before} and is {now} now; this node goes on with {before}, where its pods"
            " are. Drain it and start its agent anew"
        )
        return (Problem(key, "spec.podCIDRs", why),)


def _sorted(cidrs: set[IPNetwork]) -> tuple[IPNetwork, ...]:
    return tuple(sorted(cidrs, key=lambda c: (c.version, c.network_address, c.prefixlen)))


def _words(cidrs: tuple[IPNetwork, ...]) -> str:
    return ", ".join(map(str, cidrs)) or "empty"
