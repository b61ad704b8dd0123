# SPDX-License-Identifier: Apache-2.0
"""What a control plane makes of workloads: pods with names, nodes and addresses.

Pure. Pods that were there stay where they were; new ones go to the node with the fewest
of their workload, then the fewest at all, which on an empty lab is round robin. Must not
know Services.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dataplane.core.addresses import capacity, next_free, ranges_of
from dataplane.model.net import Family, IPAddress, Protocol, family_of
from dataplane.model.objects import Node, ObjectKey, Pod, Problem
from dataplane.sources.kinds import Workload
from dataplane.sources.manifests import Manifests

MOST_PODS = 253
"""Pods with addresses of their own a node: as many as a /24 has room for beside the router."""

_LONGEST_BASE = 230
_SHOWN = 3
_FIELDS = {"Job": "spec.parallelism", "DaemonSet": "spec.template"}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A pod to be placed; node_name in it is where it must go, if anywhere."""

    pod: Pod
    owner: ObjectKey
    field: str
    tied: bool


@dataclass(slots=True)
class _Room:
    """What is left on one node."""

    node: Node
    used: set[IPAddress] = field(default_factory=set)
    last: dict[Family, IPAddress] = field(default_factory=dict)
    ports: dict[tuple[Protocol, int], ObjectKey] = field(default_factory=dict)
    owners: Counter[ObjectKey] = field(default_factory=Counter)
    total: int = 0
    addressed: int = 0

    def obstacle(self, pod: Pod) -> str:
        """Why the pod can't go here; empty if it can."""
        for protocol, port in _host_ports(pod):
            if (protocol, port) in self.ports:
                holder = self.ports[protocol, port]
                return f"{self.node.name}'s port {port}/{protocol.name} is {holder}'s"
        if pod.host_network:
            full = self.total - self.addressed >= MOST_PODS
            return f"{self.node.name} has {MOST_PODS} pods on its own network" if full else ""
        for family in {family_of(cidr) for cidr in self.node.pod_cidrs}:
            ranges = ranges_of(self.node.pod_cidrs, family)
            room = min(capacity(ranges), MOST_PODS)
            if self.addressed >= room:
                words = ", ".join(map(str, ranges))
                return f"all {room} places of {self.node.name}'s pod range {words} are taken"
        return ""

    def take(self, pod: Pod, owner: ObjectKey, families: Sequence[Family], kept: Pod | None) -> Pod:
        """The pod, placed here with addresses: those it had, or new ones."""
        if pod.host_network:
            addresses = tuple(a for a in self.node.addresses if family_of(a) in families)
        elif kept is not None:
            addresses = kept.addresses
        else:
            addresses = tuple(self._new_address(family) for family in families)
        if not pod.host_network:
            self.used.update(addresses)
            self.addressed += 1
        for port in _host_ports(pod):
            self.ports[port] = pod.key
        self.owners[owner] += 1
        self.total += 1
        return replace(pod, node_name=self.node.name, addresses=addresses)

    def _new_address(self, family: Family) -> IPAddress:
        ranges = ranges_of(self.node.pod_cidrs, family)
        address = next_free(ranges, self.used, self.last.get(family))
        self.last[family] = address
        return address


def place(
    manifests: Manifests, nodes: Sequence[Node], families: Sequence[Family], previous: Sequence[Pod]
) -> tuple[tuple[Pod, ...], tuple[str, ...], tuple[Problem, ...]]:
    """All pods with node and addresses; notes; workloads of which some pods have no place."""
    rooms = {node.name: _Room(node) for node in nodes}
    before = {pod.key: pod for pod in previous if pod.node_name in rooms}
    for pod in before.values():
        for address in () if pod.host_network else pod.addresses:
            last = rooms[pod.node_name].last
            family = family_of(address)
            last[family] = max((address, last.get(family, address)), key=int)
    wanted, surplus, notes = _wanted(manifests, nodes)
    placed: dict[ObjectKey, Pod] = {}
    for want in wanted:
        kept = before.get(want.pod.key)
        if kept is not None and _stays(want.pod, kept, families):
            room = rooms[kept.node_name]
            if not room.obstacle(want.pod):
                placed[want.pod.key] = room.take(want.pod, want.owner, families, kept)
    failed: Counter[tuple[ObjectKey, str]] = Counter()
    reasons: dict[tuple[ObjectKey, str], str] = {}
    for want in wanted:
        what = (want.owner, want.field)
        if want.pod.key in placed:
            continue
        # What one pod of a workload can't have, its equals can't either, unless tied to a node.
        choice = _choose(want.pod, want.owner, rooms) if want.tied or what not in reasons else None
        if isinstance(choice, _Room):
            placed[want.pod.key] = choice.take(want.pod, want.owner, families, None)
        else:
            failed[what] += 1 if what in failed else 1 + surplus.get(want.owner, 0)
            reasons.setdefault(what, choice or "")
    problems = tuple(
        Problem(str(owner), where, f"{count} pods have no place: {reasons[owner, where]}")
        for (owner, where), count in failed.items()
    )
    return tuple(placed[w.pod.key] for w in wanted if w.pod.key in placed), notes, problems


def _stays(pod: Pod, kept: Pod, families: Sequence[Family]) -> bool:
    return (
        pod.host_network == kept.host_network
        and pod.node_name in ("", kept.node_name)
        and {family_of(address) for address in kept.addresses} == set(families)
    )


def _host_ports(pod: Pod) -> Iterator[tuple[Protocol, int]]:
    """What a pod takes of its node's ports."""
    for port in pod.ports:
        if pod.host_network or port.host_port:
            yield port.protocol, port.port if pod.host_network else port.host_port


def _choose(pod: Pod, owner: ObjectKey, rooms: Mapping[str, _Room]) -> _Room | str:
    """Where a pod goes; or why it can go nowhere."""
    if pod.node_name:
        if pod.node_name not in rooms:
            return f"node {pod.node_name!r} is none of {', '.join(rooms)}"
        room = rooms[pod.node_name]
        return room.obstacle(pod) or room
    obstacles = [room.obstacle(pod) for room in rooms.values()]
    free = [room for room, obstacle in zip(rooms.values(), obstacles, strict=True) if not obstacle]
    if free:
        return min(free, key=lambda room: (room.owners[owner], room.total))
    shown = "; ".join(obstacles[:_SHOWN])
    return shown + (f"; and so on for {len(rooms)} nodes" if len(rooms) > _SHOWN else "")


def _wanted(
    manifests: Manifests, nodes: Sequence[Node]
) -> tuple[list[_Wanted], dict[ObjectKey, int], tuple[str, ...]]:
    """Pods that should be; how many more a workload asks for than any lab holds; notes."""
    known = {w.key for w in manifests.workloads}
    wanted: list[_Wanted] = []
    surplus: dict[ObjectKey, int] = {}
    notes: list[str] = []
    # What a controller in the input makes anew is not taken over from a dump of a cluster.
    made = {key for key, owner in manifests.owners.items() if owner in known}
    if made:
        notes.append(f"{len(made)} objects are left to their controllers, which are given too")
    for pod in manifests.pods:
        if pod.key not in made:
            fresh = replace(pod, addresses=(), ready=True, terminating=False)
            wanted.append(_Wanted(fresh, pod.key, "spec", bool(pod.node_name)))
    taken = {want.pod.key for want in wanted}
    for workload in manifests.workloads:
        if workload.key in made:
            continue
        daemon = workload.kind == "DaemonSet"
        most = len(nodes) if daemon else MOST_PODS * len(nodes) + 1
        count = most if daemon else min(workload.replicas, most)
        surplus[workload.key] = 0 if daemon else workload.replicas - count
        pods = _pods_of(workload, count, workload.name[:_LONGEST_BASE])
        while any(pod.key in taken for pod in pods):
            pods = _pods_of(
                workload, count, f"{pods[0].name.rpartition('-')[0]}-{workload.kind.lower()}"
            )
        where = _FIELDS.get(workload.kind, "spec.replicas")
        for index, pod in enumerate(pods):
            if daemon and not pod.node_name:
                pod = replace(pod, node_name=nodes[index].name)
            taken.add(pod.key)
            wanted.append(_Wanted(pod, workload.key, where, bool(pod.node_name)))
    return wanted, surplus, tuple(notes)


def _pods_of(workload: Workload, count: int, base: str) -> list[Pod]:
    pods = []
    for number in range(workload.first_ordinal, workload.first_ordinal + count):
        name = f"{base}-{number}"
        labels = dict(workload.template.labels)
        if workload.kind == "StatefulSet":
            labels["statefulset.kubernetes.io/pod-name"] = name
            labels["apps.kubernetes.io/pod-index"] = str(number)
        elif workload.kind == "Job":
            labels["batch.kubernetes.io/job-name"] = labels["job-name"] = workload.name
        pods.append(replace(workload.template, name=name, labels=labels))
    return pods
