# SPDX-License-Identifier: Apache-2.0
"""Pods to EndpointSlices, as Kubernetes' EndpointSlice controller makes them.

Pure. Must not know where pods come from or how they got their addresses.

Source: k8s.io/endpointslice; a pod takes part in a port only if it has the
port's name, and pods that disagree on a number are in slices of their own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from dataplane.model.net import Family, IPAddress, family_of
from dataplane.model.objects import (
    EndpointSlice,
    Pod,
    Problem,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)


class PodIndex:
    """Pods by label, so that many Services can select quickly."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._by_label: dict[tuple[str, str, str], list[Pod]] = {}
        for pod in pods:
            for name, value in pod.labels.items():
                self._by_label.setdefault((pod.namespace, name, value), []).append(pod)

    def select(self, service: Service) -> Sequence[Pod]:
        """The pods that the Service's selector names, in the order given."""
        wanted = [(service.namespace, *label) for label in (service.selector or {}).items()]
        if not wanted:
            return ()
        fewest = min((self._by_label.get(label, []) for label in wanted), key=len)
        return [pod for pod in fewest if selects(service, pod)]


def selects(service: Service, pod: Pod) -> bool:
    """Whether the selector names the pod's labels; the namespace is the caller's business."""
    wanted = (service.selector or {}).items()
    return bool(wanted) and all(pod.labels.get(name) == value for name, value in wanted)


def target_number(port: ServicePort, pod: Pod) -> int:
    """The number that `port` has on `pod`; 0 if the pod has no port of that name."""
    if isinstance(port.target_port, int):
        return port.target_port
    for own in pod.ports:
        if own.name == port.target_port and own.protocol is port.protocol:
            return own.port
    return 0


def slices_for(
    service: Service,
    families: Sequence[Family],
    pods: PodIndex,
    zones: Mapping[str, str],
    taken: Container[tuple[str, str]] = (),
) -> tuple[tuple[EndpointSlice, ...], tuple[Problem, ...]]:
    """The slices of a Service with a selector, and its named ports that no pod has.

    A family without endpoints gets an empty slice, as in Kubernetes.

    Args:
        zones: zone of each node that has one.
        taken: namespace and name of slices that exist; those made are named otherwise.
    """
    selected = pods.select(service)
    made: list[EndpointSlice] = []
    for family in families:
        groups: dict[tuple[SlicePort, ...], list[SliceEndpoint]] = {}
        for pod in selected:
            address = next((a for a in pod.addresses if family_of(a) is family), None)
            if address is not None:
                endpoint = _endpoint(service, pod, address, zones)
                groups.setdefault(_ports(service, pod), []).append(endpoint)
        names = _names(service, family, taken)
        for ports, endpoints in (groups or {(): []}).items():
            made.append(
                EndpointSlice(
                    service.namespace, next(names), service.name, family, ports, tuple(endpoints)
                )
            )
    return tuple(made), tuple(_missing_ports(service, selected))


def _ports(service: Service, pod: Pod) -> tuple[SlicePort, ...]:
    numbers = ((port, target_number(port, pod)) for port in service.ports)
    return tuple(SlicePort(port.name, port.protocol, number) for port, number in numbers if number)


def _endpoint(
    service: Service, pod: Pod, address: IPAddress, zones: Mapping[str, str]
) -> SliceEndpoint:
    return SliceEndpoint(
        address=address,
        ready=service.publish_not_ready or (pod.ready and not pod.terminating),
        serving=pod.ready,
        terminating=pod.terminating,
        node_name=pod.node_name,
        zone=zones.get(pod.node_name, ""),
        target=f"{pod.namespace}/{pod.name}",
    )


def _names(service: Service, family: Family, taken: Container[tuple[str, str]]) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        name = f"{service.name}-ipv{int(family)}" + (f"-{number}" if number > 1 else "")
        if (service.namespace, name) not in taken:
            yield name


def _missing_ports(service: Service, selected: Sequence[Pod]) -> Iterator[Problem]:
    for index, port in enumerate(service.ports):
        if selected and not any(target_number(port, pod) for pod in selected):
            have = sorted(
                {
                    o.name
                    for p in selected
                    for o in p.ports
                    if o.name and o.protocol is port.protocol
                }
            )
            known = f"they have {', '.join(have)}" if have else "they name none"
            what = f"{port.protocol.name} port named {port.target_port!r}"
            yield Problem(
                str(service.key),
                f"spec.ports[{index}].targetPort",
                f"no selected pod has a {what}; {known}",
            )
