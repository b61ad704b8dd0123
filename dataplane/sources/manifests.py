# SPDX-License-Identifier: Apache-2.0
"""Plain manifests as a source: files and folders to typed objects, and to batches.

Must not allocate what a control plane allocates (the lab does), nor know tables.
Defaults of the API server are applied on the way; kinds that podlane does not use
are counted by name; what can't be served is named as a Problem and left out.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Node,
    Object,
    ObjectKey,
    Pod,
    Problem,
    Service,
    ServiceCIDR,
    ServiceType,
)
from dataplane.sources.documents import decode, folder_files, read_text
from dataplane.sources.kinds import Workload
from dataplane.sources.parsing import Entry, Parsed, parse_text
from dataplane.sources.selection import PodIndex, slices_for
from dataplane.sources.services import ServiceManifest

STDIN = "-"
_WITHOUT_ADDRESS = (ServiceType.HEADLESS, ServiceType.EXTERNAL_NAME)


@dataclass(frozen=True, slots=True)
class Manifests:
    """Everything that was read, in order. No object is in it twice.

    owners maps an object to its controller (a Pod to its ReplicaSet), where that is said.
    ignored counts the kinds that podlane does not use.
    """

    services: tuple[ServiceManifest, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    service_cidrs: tuple[ServiceCIDR, ...] = ()
    workloads: tuple[Workload, ...] = ()
    namespaces: tuple[str, ...] = ()
    owners: Mapping[ObjectKey, ObjectKey] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read(paths: Iterable[str | Path], stdin: bytes | None = None) -> Manifests:
    """Read files, folders and `-`.

    Args:
        stdin: what `-` stands for; the process's own standard input if not given.

    Raises:
        BadInput: a path can't be read, or its text does not parse.
    """
    parsed: list[Parsed] = []
    seen: set[str] = set()
    for path in paths:
        if str(path) == STDIN:
            raw = sys.stdin.buffer.read() if stdin is None else stdin
            parsed.append(parse_text("<stdin>", decode("<stdin>", raw)))
            continue
        files, refused = folder_files(Path(path)) if Path(path).is_dir() else ([Path(path)], [])
        parsed.append(refused_links(refused))
        for file in files:
            if (real := os.path.realpath(file)) not in seen:
                seen.add(real)
                parsed.append(parse_text(str(file), read_text(file)))
    return merge(parsed)


def refused_links(links: Sequence[Path]) -> Parsed:
    """What a folder's links out of it amount to: a problem each."""
    why = "is a link out of the folder; not read"
    return Parsed(problems=[Problem(str(link), "file", why) for link in links])


def merge(parsed: Iterable[Parsed]) -> Manifests:
    """The objects of several files as one; the later of two with one name is a Problem."""
    first: dict[ObjectKey, Entry] = {}
    ignored: Counter[str] = Counter()
    problems: list[Problem] = []
    for part in parsed:
        ignored.update(part.ignored)
        problems += part.problems
        for entry in part.entries:
            known = first.setdefault(entry.meta.key, entry)
            if known is not entry:
                why = f"is given twice: {known.where} and {entry.where}; the first one counts"
                problems.append(Problem(str(entry.meta.key), "metadata.name", why))
    values = [entry.value for entry in first.values()]
    return Manifests(
        services=tuple(v for v in values if isinstance(v, ServiceManifest)),
        slices=tuple(v for v in values if isinstance(v, EndpointSlice)),
        nodes=tuple(v for v in values if isinstance(v, Node)),
        pods=tuple(v for v in values if isinstance(v, Pod)),
        service_cidrs=tuple(v for v in values if isinstance(v, ServiceCIDR)),
        workloads=tuple(v for v in values if isinstance(v, Workload)),
        namespaces=tuple(v.name for v in values if isinstance(v, ObjectKey)),
        owners=MappingProxyType(
            {key: entry.meta.owner for key, entry in first.items() if entry.meta.owner}
        ),
        ignored=MappingProxyType(dict(sorted(ignored.items()))),
        problems=tuple(problems),
    )


def to_batch(manifests: Manifests, previous: Manifests | None = None) -> Batch:
    """What an agent is told: all objects, or the difference to `previous`.

    A Service with a selector and no EndpointSlice of its own gets its endpoints from the
    Pods that were read; one with slices uses those alone.
    """
    now, problems = objects(manifests)
    before = objects(previous)[0] if previous is not None else {}
    return difference(now, before, problems)


def difference(
    now: Mapping[ObjectKey, Object],
    before: Mapping[ObjectKey, Object],
    problems: tuple[Problem, ...],
) -> Batch:
    """The batch that turns the objects `before` into those of `now`."""
    return Batch(
        upserts=tuple(value for key, value in now.items() if before.get(key) != value),
        deletes=tuple(key for key in before if key not in now),
        synced=True,
        problems=problems,
    )


def objects(manifests: Manifests) -> tuple[dict[ObjectKey, Object], tuple[Problem, ...]]:
    """All that an agent is told, slices made from Pods included, and all problems."""
    problems = list(manifests.problems)
    found: list[Object] = [*manifests.nodes, *manifests.service_cidrs]
    with_slices = {(s.namespace, s.service) for s in manifests.slices}
    taken = {(s.namespace, s.name) for s in manifests.slices}
    zones = {node.name: node.zone for node in manifests.nodes if node.zone}
    pods = PodIndex(manifests.pods)
    for manifest in manifests.services:
        service = manifest.service
        if not service.cluster_ips and service.type not in _WITHOUT_ADDRESS:
            problems.append(_no_cluster_ip(service))
            continue
        found.append(service)
        if service.selector and (service.namespace, service.name) not in with_slices:
            slices, missing = slices_for(service, service.families, pods, zones, taken)
            found += slices
            problems += missing
    found += manifests.slices
    found += manifests.pods
    return {value.key: value for value in found}, tuple(problems)


def _no_cluster_ip(service: Service) -> Problem:
    why = "is not given, and nothing here allocates one (podlane lab does)"
    return Problem(str(service.key), "spec.clusterIP", why)
