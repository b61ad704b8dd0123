# SPDX-License-Identifier: Apache-2.0
"""What a lab assigned, as Kubernetes' own JSON objects: what its agents read.

Pure. Reading them through sources gives the same values back. Must not decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataplane.lab.controlplane import Assigned
from dataplane.model.net import IPAddress
from dataplane.model.objects import (
    EndpointSlice,
    Node,
    Pod,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
)
from dataplane.sources.kinds import SERVICE_NAME_LABEL, ZONE_LABEL

Json = dict[str, Any]


def to_manifests(assigned: Assigned) -> list[Json]:
    """Node, Service, EndpointSlice and Pod objects, in this order."""
    return [
        *(node_object(node) for node in assigned.nodes),
        *(service_object(service) for service in assigned.services),
        *(slice_object(piece) for piece in assigned.slices),
        *(pod_object(pod) for pod in assigned.pods),
    ]


def node_object(node: Node) -> Json:
    addresses = [{"type": "InternalIP", "address": str(a)} for a in node.addresses]
    addresses += [{"type": "ExternalIP", "address": str(a)} for a in node.external_addresses]
    labels = {"kubernetes.io/hostname": node.name}
    if node.zone:
        labels[ZONE_LABEL] = node.zone
    cidrs = [str(cidr) for cidr in node.pod_cidrs]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {},
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service_object(service: Service) -> Json:
    spec: Json = {
        "type": service.type.value,
        "ports": [_service_port(port) for port in service.ports],
        "internalTrafficPolicy": "Local" if service.internal_local else "Cluster",
        "publishNotReadyAddresses": service.publish_not_ready,
    }
    if service.type is ServiceType.HEADLESS:
        spec |= {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}
    elif service.cluster_ips:
        spec |= {
            "clusterIP": str(service.cluster_ips[0]),
            "clusterIPs": _texts(service.cluster_ips),
        }
    if service.families:
        spec["ipFamilies"] = [f"IPv{int(family)}" for family in service.families]
        dual = len(service.families) > 1
        spec["ipFamilyPolicy"] = "PreferDualStack" if dual else "SingleStack"
    if service.selector:
        spec["selector"] = dict(service.selector)
    if service.external_ips:
        spec["externalIPs"] = _texts(service.external_ips)
    if service.source_ranges:
        spec["loadBalancerSourceRanges"] = [str(network) for network in service.source_ranges]
    if service.external_local:
        spec["externalTrafficPolicy"] = "Local"
    if service.health_check_node_port:
        spec["healthCheckNodePort"] = service.health_check_node_port
    if service.affinity_seconds:
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": service.affinity_seconds}}
    ingress = [{"ip": str(address), "ipMode": "VIP"} for address in service.load_balancer_ips]
    metadata: Json = {"namespace": service.namespace, "name": service.name}
    if service.created:
        metadata["creationTimestamp"] = service.created
    if service.skipped:
        metadata["labels"] = {service.skipped: ""}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress} if ingress else {}},
    }


def _service_port(port: ServicePort) -> Json:
    made: Json = {
        "protocol": port.protocol.name,
        "port": port.port,
        "targetPort": port.target_port,
    }
    if port.name:
        made["name"] = port.name
    if port.node_port:
        made["nodePort"] = port.node_port
    return made


def slice_object(piece: EndpointSlice) -> Json:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": piece.namespace,
            "name": piece.name,
            "labels": {SERVICE_NAME_LABEL: piece.service},
        },
        "addressType": f"IPv{int(piece.family)}",
        "ports": [
            {"name": port.name, "protocol": port.protocol.name, "port": port.port}
            for port in piece.ports
        ],
        "endpoints": [_endpoint(endpoint) for endpoint in piece.endpoints],
    }


def _endpoint(endpoint: SliceEndpoint) -> Json:
    made: Json = {
        "addresses": [str(endpoint.address)],
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
    }
    if endpoint.node_name:
        made["nodeName"] = endpoint.node_name
    if endpoint.zone:
        made["zone"] = endpoint.zone
    hints: Json = {}
    if endpoint.zone_hints:
        hints["forZones"] = [{"name": name} for name in endpoint.zone_hints]
    if endpoint.node_hints:
        hints["forNodes"] = [{"name": name} for name in endpoint.node_hints]
    if hints:
        made["hints"] = hints
    if endpoint.target:
        namespace, _, name = endpoint.target.partition("/")
        made["targetRef"] = {"kind": "Pod", "namespace": namespace, "name": name}
    return made


def pod_object(pod: Pod) -> Json:
    ports: list[Json] = []
    for port in pod.ports:
        made: Json = {"containerPort": port.port, "protocol": port.protocol.name}
        if port.name:
            made["name"] = port.name
        if port.host_port:
            made["hostPort"] = port.host_port
        if port.host_ip is not None:
            made["hostIP"] = str(port.host_ip)
        ports.append(made)
    metadata: Json = {"namespace": pod.namespace, "name": pod.name, "labels": dict(pod.labels)}
    if pod.terminating:
        metadata["deletionTimestamp"] = "1970-01-01T00:00:00Z"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": pod.node_name,
            "hostNetwork": pod.host_network,
            "containers": [{"name": "stand-in", "ports": ports}],
        },
        "status": {
            "phase": "Running",
            "podIP": str(pod.addresses[0]) if pod.addresses else "",
            "podIPs": [{"ip": str(address)} for address in pod.addresses],
            "conditions": [{"type": "Ready", "status": "True" if pod.ready else "False"}],
        },
    }


def _texts(addresses: Sequence[IPAddress]) -> list[str]:
    return [str(address) for address in addresses]
