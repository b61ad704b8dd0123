# SPDX-License-Identifier: Apache-2.0
"""The kinds that a node follows: where the API has them and how they are read.

The readers are those of all sources. Must not ask a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dataplane.model.objects import Kind, Object, ObjectKey, Problem, Service
from dataplane.sources.fields import Fault, Fields, show_path
from dataplane.sources.kinds import (
    SERVICE_NAME_LABEL,
    SKIP_LABELS,
    Faults,
    Meta,
    read_meta,
    read_node,
    read_pod,
    read_service_cidr,
    read_slice,
)
from dataplane.sources.services import read_service


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API serves it.

    Args:
        name: as in paths and in RBAC: "endpointslices".
        path: of all objects in all namespaces.
        selectors: query parameters that narrow it down.
        optional: an API server may be too old to have it.
    """

    kind: Kind
    name: str
    path: str
    read: Callable[[Fields, Meta, Faults], Object]
    namespaced: bool = True
    selectors: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was read; value is None if it can't be used, and problems say why."""

    key: ObjectKey
    value: Object | None
    problems: tuple[Problem, ...] = ()


# A slice without the first label is nobody's; the two others are those of kinds.SKIP_LABELS, whose
# endpoints no proxy looks at: the server need not send them.
_OF_SERVICES = ",".join((SERVICE_NAME_LABEL, *(f"!{label}" for label in SKIP_LABELS)))


def resources(node: str, *, service_cidrs: bool) -> tuple[Resource, ...]:
    """What a node follows: all Services, slices and Nodes, and its own Pods.

    Args:
        service_cidrs: whether the ranges of ClusterIPs are of interest.
    """
    found = (
        Resource(Kind.SERVICE, "services", "/api/v1/services", _service),
        Resource(
            Kind.SLICE, "endpointslices", "/apis/discovery.k8s.io/v1/endpointslices", read_slice,
            selectors={"labelSelector": _OF_SERVICES},
        ),
        Resource(Kind.NODE, "nodes", "/api/v1/nodes", read_node, namespaced=False),
        Resource(
            Kind.POD, "pods", "/api/v1/pods", read_pod,
            selectors={"fieldSelector": f"spec.nodeName={node}"},
        ),
        Resource(
            Kind.SERVICE_CIDR, "servicecidrs", "/apis/networking.k8s.io/v1/servicecidrs",
            read_service_cidr, namespaced=False, optional=True,
        ),
    )  # fmt: skip
    return found if service_cidrs else found[:-1]


def read_object(resource: Resource, item: object) -> Seen:
    """One object of a list or of an event.

    Raises:
        Fault: it has no name, so it is not an object at all.
    """
    obj = Fields(item)
    raw = obj.fields("metadata")
    name, namespace = raw.text("name"), raw.text("namespace")
    if not name:
        raise raw.fault("name", "is missing")
    key = ObjectKey(resource.kind.value, namespace if resource.namespaced else "", name)
    faults: Faults = []
    value: Object | None = None
    try:
        meta = read_meta(resource.kind.value, obj, namespaced=resource.namespaced)
        value = resource.read(obj, meta, faults)
    except Fault as fault:
        faults.append(fault)
    problems = tuple(Problem(str(key), show_path(f.path) or "object", f.reason) for f in faults)
    return Seen(key, value, problems)


def _service(obj: Fields, meta: Meta, faults: Faults) -> Service:
    return read_service(obj, meta, faults).service
