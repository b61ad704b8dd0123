# SPDX-License-Identifier: Apache-2.0
"""A pod's host ports as the objects that frontends are made of.

Each port of the node is a Service of its own with one endpoint, so that it is in the same
map as all other frontends and has one writer. Must not know maps, CNI or who has the pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dataplane.model.net import Family, IPAddress, family_of
from dataplane.model.objects import (
    ContainerPort,
    EndpointSlice,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

_NAME_MAX = 200  # of a pod's name in a Service's (abi.h, NAME_LENGTH)


def host_port_objects(
    pod: str,
    sandbox: int,
    addresses: Sequence[IPAddress],
    ports: Iterable[ContainerPort],
    node: str,
) -> Iterator[Service | EndpointSlice]:
    """What is to be served for the ports that have a host port; others are left out.

    Args:
        pod: namespace/name, or "" of one that nobody named.
        sandbox: tells an old sandbox of a pod from its next one.
        node: where it runs.
    """
    namespace, _, name = pod.rpartition("/")
    for number, port in enumerate(one for one in ports if one.host_port):
        # No Service of a user's has a name with "/".
        service = f"pod/{name[:_NAME_MAX]}/{sandbox}.{number}"
        families = {family_of(address) for address in addresses}
        if port.host_ip is not None:
            families &= {family_of(port.host_ip)}
        here = port.host_ip is not None and not port.host_ip.is_unspecified
        yield Service(
            namespace=namespace or "-",
            name=service,
            type=ServiceType.HOST_PORT,
            ports=(ServicePort("", port.protocol, port.host_port),),
            external_ips=(port.host_ip,) if here and port.host_ip is not None else (),
            families=tuple(sorted(families)),
        )
        for address in addresses:
            if family_of(address) in families:
                yield EndpointSlice(
                    namespace=namespace or "-",
                    name=f"{service}-{address.version}",
                    service=service,
                    family=Family(address.version),
                    ports=(SlicePort("", port.protocol, port.port),),
                    endpoints=(SliceEndpoint(address, node_name=node, target=pod),),
                )
