# SPDX-License-Identifier: Apache-2.0
"""Host ports of this node's pods, as the runtime asked for them, as objects for core.

Must not know maps.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataplane.cni.store import Attachment
from dataplane.core.hostports import host_port_objects
from dataplane.model.objects import Batch, ContainerPort, EndpointSlice, ObjectKey, Service


def published(one: Attachment, node: str) -> Batch:
    """What is to be served for a pod's host ports; nothing if it has none."""
    return Batch(upserts=tuple(_objects(one, node)))


def withdrawn(one: Attachment, node: str) -> Batch:
    """The end of what `published` says."""
    return Batch(deletes=tuple(made.key for made in _objects(one, node)))


def services(one: Attachment) -> list[ObjectKey]:
    """The Services that a pod's host ports are, in their order."""
    return [made.key for made in _objects(one, "") if isinstance(made, Service)]


def _objects(one: Attachment, node: str) -> Iterator[Service | EndpointSlice]:
    ports = (
        ContainerPort(port.container_port, port.protocol, "", port.host_port, port.host_ip)
        for port in one.host_ports
    )
    return host_port_objects(one.pod, one.endpoint_id, one.addresses, ports, node)
