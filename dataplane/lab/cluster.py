# SPDX-License-Identifier: Apache-2.0
"""A lab as a value: what it was asked to be, what it holds, and how both are found again.

What the agents are given is a folder with one file, which is the truth of what the lab
holds; the record beside it says the rest. Must not start or stop anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dataplane.lab import state, topology
from dataplane.lab.controlplane import FAMILIES, MOST_NODES, Assigned
from dataplane.lab.controlplane_objects import to_manifests
from dataplane.lab.question import PROTOCOLS
from dataplane.lab.state import LabFiles
from dataplane.lab.world import World, entries, pod_name
from dataplane.model.errors import BadInput
from dataplane.model.net import IPAddress
from dataplane.model.objects import Node, ObjectKey, Pod, Problem
from dataplane.sources import manifests as sources
from dataplane.sources.documents import folder_files
from dataplane.sources.manifests import Manifests

MODES = ("vxlan", "native")
STDIN = "-"
_DOCUMENT = "objects.json"
_INPUTS = "inputs"


class _HasKey(Protocol):
    @property
    def key(self) -> ObjectKey: ...


_Keyed = TypeVar("_Keyed", bound=_HasKey)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a lab is to be. stdin: what the path `-` stands for."""

    paths: tuple[str, ...]
    nodes: int
    mode: str
    family: str
    strict: bool = False
    stdin: bytes = b""

    def underlay(self) -> list[list[IPAddress]]:
        """The addresses of each node, in order. Raises BadInput for a number that can't be."""
        if not 1 <= self.nodes <= MOST_NODES:
            raise BadInput("--nodes", f"{self.nodes} is not from 1 to {MOST_NODES}")
        return [
            [topology.node_address(number, family) for family in FAMILIES[self.family]]
            for number in range(1, self.nodes + 1)
        ]


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab: where it is kept, what it was asked to be, what it holds."""

    files: LabFiles
    mode: str
    family: str
    assigned: Assigned
    world: World

    def pod(self, words: str) -> Pod:
        """A pod by "namespace/name", by its name, or by what it is a replica of.

        Raises:
            BadInput: there is none, or it could be of several namespaces.
        """
        pods = sorted(self.world.pods, key=pod_name)
        found = [p for p in pods if words in (pod_name(p), p.name)]
        found = found or [
            p for p in pods if any(n.startswith(f"{words}-") for n in (pod_name(p), p.name))
        ]
        if not found:
            some = ", ".join(pod_name(p) for p in pods[:8]) or "it has none"
            raise BadInput(f"pod {words}", f"is not in lab {self.files.name}", f"pods: {some}")
        if len({p.namespace for p in found}) > 1:
            some = ", ".join(pod_name(p) for p in found[:8])
            raise BadInput(f"pod {words}", "is in several namespaces", f"say which: {some}")
        return found[0]

    def node(self, name: str) -> Node:
        """A node by name. Raises BadInput if there is none."""
        for node in self.world.nodes:
            if node.name == name:
                return node
        some = ", ".join(node.name for node in self.world.nodes)
        raise BadInput(f"node {name}", f"is not in lab {self.files.name}", f"nodes: {some}")

    def runnable(self) -> list[Pod]:
        """Pods that can run: placed, and addressed or on their node's network."""
        names = {node.name for node in self.world.nodes}
        return [
            pod
            for pod in self.world.pods
            if pod.node_name in names and (pod.addresses or pod.host_network)
        ]


# ---- what the agents are given ----


def give(files: LabFiles, assigned: Assigned) -> None:
    """Give all agents these objects, in one step."""
    files.manifests.mkdir(exist_ok=True)
    document = {"apiVersion": "v1", "kind": "List", "items": to_manifests(assigned)}
    state.write_whole(files.manifests / _DOCUMENT, json.dumps(document, indent=1))


def _given(files: LabFiles, family: str, words: Mapping[str, Sequence[str]]) -> Assigned:
    """What was given last; notes and problems as text of the record."""
    read = sources.read([files.manifests])
    services = tuple(manifest.service for manifest in read.services)
    problems = tuple(Problem(*problem) for problem in words["problems"])
    return Assigned(
        FAMILIES[family], read.nodes, read.pods, services, read.slices,
        tuple(words["notes"]), problems,
    )  # fmt: skip


# ---- what the user gave ----


def save_inputs(files: LabFiles, paths: Iterable[str], stdin: bytes) -> None:
    """Keep a copy of what was given, for `lab apply` to add to."""
    folder = files.folder / _INPUTS
    number = len(list(folder.iterdir())) if folder.is_dir() else 0
    for path in paths:
        target = folder / f"{number:04}"
        target.mkdir(parents=True)
        number += 1
        if path == STDIN:
            (target / "stdin.yaml").write_bytes(stdin)
            continue
        source = Path(path)
        for file in folder_files(source)[0] if source.is_dir() else [source]:
            # The path below the source stays, so that one name in two folders stays two files.
            name = file.relative_to(source) if source.is_dir() else Path(file.name)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)


def saved_inputs(files: LabFiles) -> list[Path]:
    """The copies, in the order given."""
    folder = files.folder / _INPUTS
    return sorted(folder.iterdir()) if folder.is_dir() else []


def forget_inputs(files: LabFiles) -> None:
    """Remove the copies."""
    shutil.rmtree(files.folder / _INPUTS, ignore_errors=True)


def overlay(below: Manifests, above: Manifests) -> Manifests:
    """The objects of both; of two with one key, the one above."""

    def merge(lower: Sequence[_Keyed], upper: Sequence[_Keyed]) -> tuple[_Keyed, ...]:
        return tuple({value.key: value for value in (*lower, *upper)}.values())

    return Manifests(
        services=merge(below.services, above.services),
        slices=merge(below.slices, above.slices),
        nodes=merge(below.nodes, above.nodes),
        pods=merge(below.pods, above.pods),
        workloads=merge(below.workloads, above.workloads),
        namespaces=tuple(dict.fromkeys((*below.namespaces, *above.namespaces))),
        owners={**below.owners, **above.owners},
        ignored={
            kind: below.ignored.get(kind, 0) + above.ignored.get(kind, 0)
            for kind in sorted({*below.ignored, *above.ignored})
        },
        problems=tuple(dict.fromkeys((*below.problems, *above.problems))),
    )


# ---- the whole ----


def make(files: LabFiles, mode: str, family: str, assigned: Assigned) -> Lab:
    """The lab that holds what was assigned."""
    world = World(
        families=assigned.families,
        native=mode == "native",
        nodes=assigned.nodes,
        services=assigned.services,
        slices=assigned.slices,
        pods=assigned.pods,
        guests={},
        stand_ins={
            pod_name(pod): tuple(
                port for port in assigned.stand_in_ports(pod) if port[0] in PROTOCOLS
            )
            for pod in assigned.pods
        },
        entries=entries(assigned.families, assigned.nodes, assigned.services, assigned.slices),
    )
    return Lab(files, mode, family, assigned, world)


def write_record(lab: Lab) -> None:
    """Say that the lab is whole, and what no object says."""
    record = {
        "mode": lab.mode,
        "family": lab.family,
        "nodes": [node.name for node in lab.world.nodes],
        "notes": list(lab.assigned.notes),
        "problems": [[p.object, p.field, p.reason] for p in lab.assigned.problems],
    }
    state.write_whole(lab.files.record, json.dumps(record, indent=1))


def load(files: LabFiles) -> Lab:
    """The lab that is up under this name.

    Raises:
        BadInput: there is none, or it was never finished.
    """
    record = read_record(files)
    if record is None:
        there = ", ".join(name for name in state.names() if name != files.name)
        if files.exists:
            raise BadInput(
                f"lab {files.name}", "is half made or half gone", "`lab down` or `lab up` clears it"
            )
        raise BadInput(
            f"lab {files.name}",
            "is not up",
            f"labs that are up: {there}" if there else "`lab up` makes it",
        )
    assigned = _given(files, record["family"], record)
    return make(files, record["mode"], record["family"], assigned)


def read_record(files: LabFiles) -> dict[str, Any] | None:
    """What `write_record` wrote; None if the lab is not there or only half made."""
    try:
        return dict(json.loads(files.record.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
