# SPDX-License-Identifier: Apache-2.0
"""The numbered Services that tests and benches fill an API server with, as Kubernetes' JSON.

Each has one port and one slice. Pure; must not know who writes or reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import Any

from dataplane.model.net import IPAddress

NAMESPACE = "bench"
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
NODE = "node-1"
PORT = 7070
FIRST_CLUSTER_IP = IPv4Address("10.96.100.0")


def cluster_ip(number: int) -> IPv4Address:
    """The address of the number-th Service."""
    return FIRST_CLUSTER_IP + number


def services(numbers: range, backend: IPAddress) -> Iterator[tuple[str, dict[str, Any]]]:
    """ClusterIP Services of one TCP port, each with a slice of one endpoint."""
    for number in numbers:
        yield service(number, "TCP")
        yield SLICES, endpoint_slice(number, "TCP", PORT, [(backend, NODE)])


def service(number: int, protocol: str) -> tuple[str, dict[str, Any]]:
    """The number-th Service, of one port."""
    ports = [{"name": "a", "port": PORT, "protocol": protocol}]
    return (
        SERVICES,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"service-{number}"},
            "spec": {"clusterIP": str(cluster_ip(number)), "ports": ports},
        },
    )


def endpoint_slice(
    number: int, protocol: str, port: int, ends: Iterable[tuple[IPAddress, str]]
) -> dict[str, Any]:
    """The slice of the number-th Service: ready endpoints, by address and node."""
    name = f"service-{number}"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "a", "port": port, "protocol": protocol}],
        "endpoints": [
            {"addresses": [str(address)], "nodeName": at, "conditions": {"ready": True}}
            for address, at in ends
        ],
    }


def node(address: str, pod_cidr: str) -> tuple[str, dict[str, Any]]:
    """The Node that all who watch take themselves for."""
    return (
        "/api/v1/nodes",
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NODE},
            "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        },
    )
