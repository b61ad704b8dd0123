# SPDX-License-Identifier: Apache-2.0
"""One file's text to the objects in it, each named and placed.

Must not read files or compare objects of several files. What can't be used is a
Problem that says object, field and position; text that does not parse is BadInput.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from dataplane.model.objects import EndpointSlice, Node, ObjectKey, Pod, Problem, ServiceCIDR
from dataplane.sources.documents import Document, parse
from dataplane.sources.fields import Fault, Fields, Path, show_path
from dataplane.sources.kinds import (
    Faults,
    Meta,
    Workload,
    read_meta,
    read_node,
    read_pod,
    read_service_cidr,
    read_slice,
    read_workload,
)
from dataplane.sources.services import ServiceManifest, read_service

Value = ServiceManifest | EndpointSlice | Node | Pod | ServiceCIDR | Workload | ObjectKey

_DEEPEST_LIST = 4
_WORKLOADS = {
    "Deployment": ("apps", "extensions"),
    "StatefulSet": ("apps",),
    "DaemonSet": ("apps", "extensions"),
    "ReplicaSet": ("apps", "extensions"),
    "Job": ("batch",),
}
_READERS: dict[str, tuple[tuple[str, ...], Callable[[Fields, Meta, Faults], Value]]] = {
    "Service": (("",), read_service),
    "EndpointSlice": (("discovery.k8s.io",), read_slice),
    "Node": (("",), read_node),
    "Pod": (("",), read_pod),
    "ServiceCIDR": (("networking.k8s.io",), read_service_cidr),
    "Namespace": (("",), lambda obj, meta, faults: meta.key),
    **{kind: (groups, read_workload) for kind, groups in _WORKLOADS.items()},
}
_CLUSTER_WIDE = ("Node", "Namespace", "ServiceCIDR")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a file; a Namespace is its key. `where` is file and, in YAML, line."""

    meta: Meta
    value: Value
    where: str


@dataclass(slots=True)
class Parsed:
    """What a file holds, in its order. ignored counts kinds that podlane does not use."""

    entries: list[Entry] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


def parse_text(file: str, text: str) -> Parsed:
    """The objects of one file.

    Raises:
        BadInput: the text does not parse.
    """
    parsed = Parsed()
    for document in parse(file, text):
        _read_any(parsed, document, (), document.data, ("", ""), 0)
    return parsed


def _read_any(
    parsed: Parsed,
    document: Document,
    place: Path,
    data: object,
    default: tuple[str, str],
    depth: int,
) -> None:
    """Read the object at `place` of a document; default is (apiVersion, kind) of a typed List."""
    kind = name = ""
    try:
        obj = Fields(data)
        version = obj.text("apiVersion") or default[0]
        kind = obj.text("kind") or default[1]
        if not kind:
            raise obj.fault("kind", "is missing: not a Kubernetes object")
        if kind.endswith("List") and "items" in obj:
            if depth == _DEEPEST_LIST:
                raise obj.fault("items", "Lists are nested too deep")
            inner = (version, kind.removesuffix("List"))
            for path, item in obj.values("items"):
                _read_any(parsed, document, place + path, item, inner, depth + 1)
            return
        if not version:
            raise obj.fault("apiVersion", "is missing")
        group = version.rpartition("/")[0]
        groups, reader = _READERS.get(kind, ((), None))
        if reader is None or group not in groups:
            parsed.ignored[f"{kind}.{group}" if reader and group else kind] += 1
            return
        name = _raw_name(kind, obj)
        meta = read_meta(kind, obj, namespaced=kind not in _CLUSTER_WIDE)
        name = str(meta.key)
        faults: Faults = []
        value = reader(obj, meta, faults)
    except Fault as fault:
        parsed.problems.append(_problem(document, place, name or kind, fault))
    else:
        where = document.locate(place) if document.node else document.file
        parsed.entries.append(Entry(meta, value, where))
        parsed.problems += [_problem(document, place, name, fault) for fault in faults]


def _raw_name(kind: str, obj: Fields) -> str:
    """What to call an object before its name is known to be one; printable and short."""
    meta = obj.fields("metadata")
    return f"{kind} {ascii(meta.data.get('name', ''))[:80]}"


def _problem(document: Document, place: Path, name: str, fault: Fault) -> Problem:
    where = document.locate(place + fault.path)
    return Problem(name or "object", show_path(fault.path) or "object", f"{fault.reason} ({where})")
