# SPDX-License-Identifier: Apache-2.0
"""Kubernetes JSON objects to model objects: pods, what makes pods, nodes, slices.

Every source uses these; Services have a module of their own. Must not know files,
positions or which objects there are beside this one. A part that can't be used (a
port, an endpoint, an address) is noted in `faults` and left out; an object that
can't be used raises its Fault.

Source: Kubernetes API reference, and what kube-proxy's EndpointSlice cache does
with each field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol, family_of
from dataplane.model.objects import (
    ContainerPort,
    EndpointSlice,
    Node,
    ObjectKey,
    Pod,
    ServiceCIDR,
    SliceEndpoint,
    SlicePort,
)
from dataplane.sources.fields import (
    Fault,
    Fields,
    Path,
    is_label,
    is_port_name,
    is_subdomain,
    parse_address,
    parse_network,
)

# Objects with one of these labels are another proxy's: kube-proxy never sees them.
SKIP_LABELS = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
ZONE_LABEL = "topology.kubernetes.io/zone"
MAX_PORT = 65535
FAMILIES = {"IPv4": Family.V4, "IPv6": Family.V6}
PROTOCOLS = {protocol.name: protocol for protocol in Protocol}
_DELETED_BY_AUTOSCALER = "ToBeDeletedByClusterAutoscaler"
_MAX_REPLICAS = 2**31 - 1

Faults = list[Fault]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Meta:
    """What podlane uses of an object's metadata; owner is its controller, if it has one."""

    key: ObjectKey
    labels: dict[str, str] = field(default_factory=dict)
    created: str = ""
    deleting: bool = False
    owner: ObjectKey | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that makes pods: `replicas` (a DaemonSet: one a node) like `template`.

    template has the workload's own name; its labels, ports and hostNetwork are the pods'.
    """

    kind: str
    namespace: str
    name: str
    replicas: int
    template: Pod
    first_ordinal: int = 0

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.kind, self.namespace, self.name)


def parts(
    items: Iterator[tuple[Path, object]], faults: Faults, make: Callable[[Path, object], _T | None]
) -> tuple[_T, ...]:
    """What `make` makes of each item that can be used; the others are noted in `faults`."""
    made: list[_T] = []
    for path, item in items:
        try:
            result = make(path, item)
        except Fault as fault:
            faults.append(fault)
        else:
            if result is not None:
                made.append(result)
    return tuple(made)


def address_at(path: Path, item: object) -> IPAddress:
    """The address that a list holds at `path`."""
    try:
        return parse_address(_text_at(path, item))
    except ValueError as error:
        raise Fault(path, str(error)) from None


def endpoint_address_at(path: Path, item: object) -> IPAddress:
    """An address that can be one host's in a network: as the API server demands of endpoints."""
    address = address_at(path, item)
    for bad, word in (
        (address.is_unspecified, "the unspecified address"),
        (address.is_loopback, "a loopback address"),
        (address.is_link_local, "a link-local address"),
        (address.is_multicast, "a multicast address"),
    ):
        if bad:
            raise Fault(path, f"{address} is {word}")
    return address


def network_at(path: Path, item: object) -> IPNetwork:
    """The range that a list holds at `path`; spaces around it don't count."""
    try:
        return parse_network(_text_at(path, item).strip())
    except ValueError as error:
        raise Fault(path, str(error)) from None


def _text_at(path: Path, item: object) -> str:
    if not isinstance(item, str):
        raise Fault(path, "is not a string")
    return item


def read_meta(kind: str, obj: Fields, *, namespaced: bool = True) -> Meta:
    """The metadata of an object; a namespace that is not given is `default`."""
    meta = obj.fields("metadata")
    name = meta.text("name")
    if not name:
        why = (
            "is missing; generateName needs an API server"
            if "generateName" in meta
            else "is missing"
        )
        raise meta.fault("name", why)
    namespace = (meta.text("namespace") or "default") if namespaced else ""
    if namespaced and not is_label(namespace):
        raise meta.fault("namespace", f"{namespace!r} is not a DNS-1123 label")
    if kind in ("Service", "Namespace"):
        if not is_label(name):
            raise meta.fault("name", f"{name!r} is not a DNS-1123 label")
    elif not is_subdomain(name):
        raise meta.fault("name", f"{name!r} is not a DNS-1123 name")
    return Meta(
        ObjectKey(kind, namespace, name),
        meta.labels("labels"),
        meta.text("creationTimestamp"),
        "deletionTimestamp" in meta,
        _controller(namespace, meta),
    )


def _controller(namespace: str, meta: Fields) -> ObjectKey | None:
    for path, item in meta.values("ownerReferences"):
        reference = Fields(item, path)
        if reference.flag("controller"):
            return ObjectKey(reference.text("kind"), namespace, reference.text("name"))
    return None


def read_node(obj: Fields, meta: Meta, faults: Faults) -> Node:
    spec, status = obj.fields("spec"), obj.fields("status")
    found: dict[str, list[IPAddress]] = {"InternalIP": [], "ExternalIP": []}

    def address(path: Path, item: object) -> None:
        entry = Fields(item, path)
        if entry.text("type") in found:
            value = address_at((*path, "address"), entry.text("address"))
            found[entry.text("type")].append(value)

    def taint(path: Path, item: object) -> str:
        return Fields(item, path).text("key")

    parts(status.values("addresses"), faults, address)
    cidrs: tuple[IPNetwork, ...] = parts(spec.values("podCIDRs"), faults, network_at)
    if not cidrs and "podCIDR" in spec:
        cidrs = (network_at((*spec.path, "podCIDR"), spec.text("podCIDR")),)
    return Node(
        name=meta.key.name,
        addresses=tuple(found["InternalIP"]),
        external_addresses=tuple(found["ExternalIP"]),
        pod_cidrs=cidrs,
        zone=meta.labels.get(ZONE_LABEL, ""),
        deleting=meta.deleting
        or _DELETED_BY_AUTOSCALER in parts(spec.values("taints"), faults, taint),
    )


def read_service_cidr(obj: Fields, meta: Meta, faults: Faults) -> ServiceCIDR:
    return ServiceCIDR(meta.key.name, parts(obj.fields("spec").values("cidrs"), faults, network_at))


def read_pod(obj: Fields, meta: Meta, faults: Faults) -> Pod:
    """A Pod. One that has finished has no address any more.

    Ready is what its Ready condition says; without any condition it counts as ready.
    """
    spec, status = obj.fields("spec"), obj.fields("status")

    def pod_ip(path: Path, item: object) -> IPAddress:
        return address_at((*path, "ip"), Fields(item, path).text("ip"))

    addresses: tuple[IPAddress, ...] = parts(status.values("podIPs"), faults, pod_ip)
    if not addresses and (single := status.address("podIP")):
        addresses = (single,)
    if status.text("phase") in ("Succeeded", "Failed"):
        addresses = ()
    conditions = {
        condition.text("type"): condition.text("status")
        for condition in (Fields(item, path) for path, item in status.values("conditions"))
    }
    return Pod(
        namespace=meta.key.namespace,
        name=meta.key.name,
        node_name=spec.text("nodeName"),
        addresses=addresses,
        labels=meta.labels,
        ports=_container_ports(spec, faults),
        host_network=spec.flag("hostNetwork"),
        ready=conditions.get("Ready") == "True" if conditions else True,
        terminating=meta.deleting,
    )


def read_workload(obj: Fields, meta: Meta, faults: Faults) -> Workload:
    kind, spec = meta.key.kind_name, obj.fields("spec")
    if "template" not in spec:
        raise spec.fault("template", "is missing")
    template = spec.fields("template")
    labels = template.fields("metadata").labels("labels")
    for name, value in spec.fields("selector").labels("matchLabels").items():
        if labels.get(name) != value:
            raise (
                spec.fields("template")
                .fields("metadata")
                .fault("labels", f"lack {name}={value}, which spec.selector demands")
            )
    pod = template.fields("spec")
    replicas, first = 1, 0
    if kind == "Job":
        replicas = spec.number("parallelism", 0, _MAX_REPLICAS, 1)
        replicas = min(replicas, spec.number("completions", 0, _MAX_REPLICAS, replicas))
        if spec.flag("suspend"):
            replicas = 0
    elif kind != "DaemonSet":
        replicas = spec.number("replicas", 0, _MAX_REPLICAS, 1)
    if kind == "StatefulSet":
        first = spec.fields("ordinals").number("start", 0, _MAX_REPLICAS, 0)
    return Workload(
        kind,
        meta.key.namespace,
        meta.key.name,
        replicas,
        Pod(
            namespace=meta.key.namespace,
            name=meta.key.name,
            node_name=pod.text("nodeName"),
            labels=labels,
            ports=_container_ports(pod, faults),
            host_network=pod.flag("hostNetwork"),
        ),
        first,
    )


def _container_ports(spec: Fields, faults: Faults) -> tuple[ContainerPort, ...]:
    """Ports of containers, and of init containers that go on running beside them."""
    host_network = spec.flag("hostNetwork")

    def port(path: Path, item: object) -> ContainerPort:
        entry = Fields(item, path)
        name = entry.text("name")
        if name and not is_port_name(name):
            raise entry.fault("name", f"{name!r} is not a port name (15 of a-z, 0-9 and -)")
        return ContainerPort(
            port=entry.number("containerPort", 1, MAX_PORT),
            protocol=PROTOCOLS[entry.choice("protocol", tuple(PROTOCOLS), "TCP")],
            name=name,
            # On the node's own network the container port is the host port: nothing to translate.
            host_port=0 if host_network else entry.number("hostPort", 0, MAX_PORT, 0),
            host_ip=entry.address("hostIP"),
        )

    found: tuple[ContainerPort, ...] = ()
    for group in ("containers", "initContainers"):
        for path, item in spec.values(group):
            container = Fields(item, path)
            if group == "containers" or container.text("restartPolicy") == "Always":
                found += parts(container.values("ports"), faults, port)
    return found


def read_slice(obj: Fields, meta: Meta, faults: Faults) -> EndpointSlice:
    """An EndpointSlice. One with a label of another proxy has no endpoints for us."""
    service = meta.labels.get(SERVICE_NAME_LABEL, "")
    if not service:
        labels = obj.fields("metadata").fields("labels")
        raise labels.fault(SERVICE_NAME_LABEL, "is missing: it belongs to no Service")
    family_name = obj.choice("addressType", tuple(FAMILIES), "")
    if not family_name:
        raise obj.fault("addressType", "is missing")
    family = FAMILIES[family_name]

    def port(path: Path, item: object) -> SlicePort | None:
        entry = Fields(item, path)
        protocol = PROTOCOLS[entry.choice("protocol", tuple(PROTOCOLS), "TCP")]
        if "port" not in entry:
            return None  # "all ports": kube-proxy leaves it out too
        return SlicePort(entry.text("name"), protocol, entry.number("port", 1, MAX_PORT))

    def endpoint(path: Path, item: object) -> SliceEndpoint:
        return _slice_endpoint(Fields(item, path), family)

    skipped = any(label in meta.labels for label in SKIP_LABELS)
    return EndpointSlice(
        namespace=meta.key.namespace,
        name=meta.key.name,
        service=service,
        family=family,
        ports=parts(obj.values("ports"), faults, port),
        endpoints=() if skipped else parts(obj.values("endpoints"), faults, endpoint),
    )


def _slice_endpoint(entry: Fields, family: Family) -> SliceEndpoint:
    first = next(entry.texts("addresses"), None)
    if first is None:
        raise entry.fault("addresses", "is empty")
    address = endpoint_address_at(*first)
    if family_of(address) is not family:
        raise Fault(first[0], f"{address} is not of the slice's addressType")
    conditions, hints = entry.fields("conditions"), entry.fields("hints")
    target = entry.fields("targetRef")
    return SliceEndpoint(
        address=address,
        ready=conditions.flag("ready", True),
        serving=conditions.flag("serving", True),
        terminating=conditions.flag("terminating"),
        node_name=entry.text("nodeName"),
        zone=entry.text("zone"),
        zone_hints=_names(hints, "forZones"),
        node_hints=_names(hints, "forNodes"),
        target=_pod_name(target) if target.text("kind") == "Pod" else "",
    )


def _pod_name(target: Fields) -> str:
    """Whom targetRef names; empty for what no pod is called, which the API server lets through.

    It is for people to read and decides nothing, so the endpoint is served all the same.
    """
    namespace, name = target.text("namespace"), target.text("name")
    return f"{namespace}/{name}" if is_label(namespace) and is_subdomain(name) else ""


def _names(hints: Fields, name: str) -> tuple[str, ...]:
    return tuple(Fields(item, path).text("name") for path, item in hints.values(name))
