# SPDX-License-Identifier: Apache-2.0
"""What is wrong in a lab before anything is sent: programs, map entries, servers. Reads only.

Also finds the places of the counters that rows grow. Must not repair anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dataplane.kernel import bpf
from dataplane.kernel.hooks import Hooks, Role, places
from dataplane.kernel.maps import Maps
from dataplane.kernel.netlink import Links
from dataplane.lab import held, settle, wire
from dataplane.lab.cluster import Lab
from dataplane.lab.question import Row
from dataplane.lab.world import World, pod_name
from dataplane.model.names import ServiceName
from dataplane.model.net import IPAddress
from dataplane.model.objects import Node, Pod
from dataplane.model.rows import Table

_UPLINK, _OVERLAY = "eth0", "podlane0"


@dataclass(frozen=True, slots=True)
class Rest:
    """What is wrong at rest, by what it touches; ids of what counters are kept by."""

    nodes: Mapping[str, Sequence[str]]
    pods: Mapping[str, Sequence[str]]
    ports: Mapping[str, Mapping[ServiceName, Sequence[str]]]
    services: Mapping[str, Mapping[ServiceName, int]]
    endpoints: Mapping[str, tuple[str, int]]
    """Pod to its node and the place of its counters there."""

    def touching(self, row: Row) -> list[str]:
        """What is wrong on this row's way."""
        found = [word for name in sorted(row.nodes) for word in self.nodes.get(name, ())]
        found += [word for name in sorted(row.pods) for word in self.pods.get(name, ())]
        if row.counted is not None:
            found += self.ports.get(row.entry, {}).get(row.counted, ())
        return list(dict.fromkeys(found))

    def all(self) -> tuple[str, ...]:
        words = [w for found in (*self.nodes.values(), *self.pods.values()) for w in found]
        words += [w for ports in self.ports.values() for found in ports.values() for w in found]
        return tuple(dict.fromkeys(words))


def look(lab: Lab, world: World, maps: Mapping[str, Maps]) -> Rest:
    """Look at everything once.

    Args:
        world: the lab's, with its guests.
        maps: each node's.
    """
    nodes: dict[str, list[str]] = {}
    pods: dict[str, list[str]] = {}
    ports: dict[str, dict[ServiceName, list[str]]] = {}
    services: dict[str, dict[ServiceName, int]] = {}
    endpoints: dict[str, tuple[str, int]] = {}
    everyone = [*lab.runnable(), *world.guests.values()]
    for node in world.nodes:
        own = [p for p in everyone if p.node_name == node.name and not p.host_network]
        nodes[node.name] = _devices(lab, node, own, pods)
        tables = settle.tables(lab, maps[node.name])
        ports[node.name] = held.differences(world, node, tables)
        services[node.name] = {name: one.id for name, one in held.follow(tables).items()}
        known: dict[IPAddress, int] = {}
        for family in world.families:
            for address, row in maps[node.name].items(Table("endpoints", family)):
                known[address] = row.id
        for pod in own:
            place = next((known[a] for a in pod.addresses if a in known), None)
            if place is None:
                words = f"{node.name}: the kernel has no endpoint for {pod_name(pod)}"
                pods.setdefault(pod_name(pod), []).append(words)
            else:
                endpoints[pod_name(pod)] = node.name, place
    running = wire.stand_ins(lab.files)
    for pod in lab.runnable():
        if lab.world.stand_ins[pod_name(pod)] and pod_name(pod) not in running:
            words = f"{pod_name(pod)}: its server does not run"
            pods.setdefault(pod_name(pod), []).append(words)
    return Rest(nodes, pods, ports, services, endpoints)


def _devices(lab: Lab, node: Node, own: Sequence[Pod], pods: dict[str, list[str]]) -> list[str]:
    """Missing or strange programs: on the node's devices returned, on pods' into `pods`."""
    found: list[str] = []
    with Links(lab.files.node_netns(node.name)) as links, _programs(lab, node.name) as programs:
        hooks = Hooks(links.tc, programs)
        names = {link.index: link.name for link in links.links()}
        roles = [(_UPLINK, Role.UPLINK)]
        roles += [(_OVERLAY, Role.OVERLAY)] if not lab.world.native else []
        for name, role in roles:
            index = next((i for i, n in names.items() if n == name), 0)
            found += _missing(node.name, hooks, role, index, name, "")
        for pod in own:
            with Links(lab.files.pod_netns(pod.namespace, pod.name)) as inner:
                end = inner.link(wire.INTERFACE)
            index = end.peer_index if end else 0
            words = _missing(node.name, hooks, Role.POD, index, names.get(index, ""), pod_name(pod))
            if words:
                pods.setdefault(pod_name(pod), []).extend(words)
    return found


def _missing(node: str, hooks: Hooks, role: Role, index: int, name: str, owner: str) -> list[str]:
    of = f" of {owner}" if owner else ""
    if not name:
        return [f"{node}: the {role.value} device{of} is missing"]
    return [
        f"{node}: tc filter {place.name} is missing at {place.direction.name.lower()} of {name}{of}"
        for place in hooks.wrong(role, index)
    ]


@contextlib.contextmanager
def _programs(lab: Lab, node: str) -> Iterator[dict[str, int]]:
    """A node's pinned programs by name."""
    names = {place.name for role in Role for place in places(role, 0)}
    folder = lab.files.node(node).bpffs_dir / "v1" / "prog"
    with ExitStack() as closing:
        found = {}
        for name in sorted(names):
            with contextlib.suppress(OSError):
                found[name] = bpf.obj_get(folder / name)
                closing.callback(os.close, found[name])
        yield found
