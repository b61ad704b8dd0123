# SPDX-License-Identifier: Apache-2.0
"""What users mean: the Kubernetes objects that podlane reads, as frozen values.

Only fields that something uses are kept. Sources make these from JSON or YAML
and validate on the way; core turns them into tables. Must not know files, API
servers, maps or defaults of the API server (sources apply those).

Source of the semantics: Kubernetes API reference, core/v1 Service, Pod, Node and
discovery.k8s.io/v1 EndpointSlice, networking.k8s.io/v1 ServiceCIDR.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from dataplane.model.net import Family, IPAddress, IPNetwork, Protocol


class Kind(enum.Enum):
    """The kinds that core consumes."""

    SERVICE = "Service"
    SLICE = "EndpointSlice"
    NODE = "Node"
    POD = "Pod"
    SERVICE_CIDR = "ServiceCIDR"


class ServiceType(enum.Enum):
    """`spec.type`; Headless is a ClusterIP Service with clusterIP None.

    HostPort is no Kubernetes type: one port of the node that leads to one pod on it. Its
    external_ips are what its hostIP asks for; none means all of the node's addresses.
    """

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"
    HEADLESS = "Headless"
    HOST_PORT = "HostPort"


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Identity of an object within its kind; namespace is empty for what belongs to none."""

    kind_name: str
    namespace: str
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind_name} {place}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service. node_port is 0 if there is none.

    target_port is a number or a container port's name; only sources that select
    pods themselves look at it.
    """

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0
    target_port: int | str = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A Service as kube-proxy sees it, plus what is needed to select its pods.

    families is ipFamilies, or the families of cluster_ips where that is not given.
    load_balancer_ips holds only ingress entries with an `ip` and ipMode VIP or unset.
    affinity_seconds is 0 without sessionAffinity ClientIP. skipped says why a proxy
    must leave this Service alone (a label's key); empty otherwise.
    """

    namespace: str
    name: str
    type: ServiceType
    cluster_ips: tuple[IPAddress, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    external_ips: tuple[IPAddress, ...] = ()
    load_balancer_ips: tuple[IPAddress, ...] = ()
    source_ranges: tuple[IPNetwork, ...] = ()
    internal_local: bool = False
    external_local: bool = False
    affinity_seconds: int = 0
    health_check_node_port: int = 0
    publish_not_ready: bool = False
    selector: Mapping[str, str] | None = None
    created: str = ""
    skipped: str = ""
    families: tuple[Family, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(Kind.SERVICE.value, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class SlicePort:
    """A port of an EndpointSlice, joined to a ServicePort by name and protocol."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint: `addresses[0]` and its conditions (absent means ready and serving).

    node_name empty: remote. Hints are the names that topology may route from.
    target is "namespace/pod" or empty.
    """

    address: IPAddress
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: str = ""
    zone: str = ""
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """An EndpointSlice; `service` is the value of label kubernetes.io/service-name."""

    namespace: str
    name: str
    service: str
    family: Family
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(Kind.SLICE.value, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Node:
    """A Node: `addresses` are its InternalIPs in order, the first of a family primary."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    external_addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    zone: str = ""
    deleting: bool = False

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(Kind.NODE.value, "", self.name)


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A named or plain port of one of a pod's containers; host_port 0 if none."""

    port: int
    protocol: Protocol = Protocol.TCP
    name: str = ""
    host_port: int = 0
    host_ip: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """A Pod: placed if node_name is set, addressed if addresses are."""

    namespace: str
    name: str
    node_name: str = ""
    addresses: tuple[IPAddress, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[ContainerPort, ...] = ()
    host_network: bool = False
    ready: bool = True
    terminating: bool = False

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(Kind.POD.value, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class ServiceCIDR:
    """Ranges that the API server gives ClusterIPs from, at most one a family."""

    name: str
    cidrs: tuple[IPNetwork, ...] = ()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(Kind.SERVICE_CIDR.value, "", self.name)


Object = Service | EndpointSlice | Node | Pod | ServiceCIDR


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """An object, or a part of it, that is not served: its name, field and reason.

    no_room: for want of room in a map, so that it can be served when another goes.
    """

    object: str
    field: str
    reason: str
    no_room: bool = False

    def __str__(self) -> str:
        return f"{self.object}: {self.field}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a source saw since its last batch; `synced` once every kind is complete.

    problems is the whole list as of now, not what was added to it.
    """

    upserts: tuple[Object, ...] = ()
    deletes: tuple[ObjectKey, ...] = ()
    synced: bool = False
    problems: tuple[Problem, ...] = ()
