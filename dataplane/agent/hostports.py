# SPDX-License-Identifier: Apache-2.0
"""Host ports of this node's pods, as the objects that core makes frontends of.

Each port of the node is a Service of its own with one endpoint, so that it is in the same
map as all other frontends and has one writer. Must not know maps or CNI.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataplane.cni.store import Attachment
from dataplane.model.net import Family, family_of
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    ObjectKey,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

_NAME_MAX = 200  # of a pod's name in a Service's (abi.h, NAME_LENGTH)


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
    namespace, _, pod = one.pod.rpartition("/")
    for number, port in enumerate(one.host_ports):
        # No Service of a user's has a name with "/". The endpoint's id tells an old
        # sandbox of a pod from its next one.
        name = f"pod/{pod[:_NAME_MAX]}/{one.endpoint_id}.{number}"
        families = {family_of(address) for address in one.addresses}
        if port.host_ip is not None:
            families &= {family_of(port.host_ip)}
        here = port.host_ip is not None and not port.host_ip.is_unspecified
        yield Service(
            namespace=namespace or "-",
            name=name,
            type=ServiceType.HOST_PORT,
            ports=(ServicePort("", port.protocol, port.host_port),),
            external_ips=(port.host_ip,) if here and port.host_ip is not None else (),
            families=tuple(sorted(families)),
        )
        for address in one.addresses:
            if family_of(address) in families:
                yield EndpointSlice(
                    namespace=namespace or "-",
                    name=f"{name}-{address.version}",
                    service=name,
                    family=Family(address.version),
                    ports=(SlicePort("", port.protocol, port.container_port),),
                    endpoints=(SliceEndpoint(address, node_name=node, target=one.pod),),
                )
