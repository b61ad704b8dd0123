# SPDX-License-Identifier: Apache-2.0
"""A Service's JSON to a model Service, and what it asks of a control plane.

Must not allocate anything or know other objects. What makes a proxy leave a
Service alone is kept as its type (Headless, ExternalName) or in `skipped`.

Source: core/v1 Service, its validation in the API server, and kube-proxy's
service cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.model.net import Family, IPAddress, IPNetwork, family_of
from dataplane.model.objects import ObjectKey, Service, ServicePort, ServiceType
from dataplane.sources.fields import Fault, Fields, Path, is_label, is_port_name, parse_network
from dataplane.sources.kinds import (
    FAMILIES,
    MAX_PORT,
    PROTOCOLS,
    SKIP_LABELS,
    Faults,
    Meta,
    address_at,
    endpoint_address_at,
    network_at,
    parts,
)

POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
_TYPES = {t.value: t for t in ServiceType if t not in (ServiceType.HEADLESS, ServiceType.HOST_PORT)}
_AFFINITY_SECONDS = 10_800
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class ServiceManifest:
    """A Service and what only a control plane looks at.

    In `service`, what was not given is empty (cluster_ips, families) or 0 (node ports,
    health_check_node_port): a control plane assigns it. family_policy is one of POLICIES
    or empty. load_balancer_ip is spec.loadBalancerIP.
    """

    service: Service
    family_policy: str = ""
    load_balancer_ip: IPAddress | None = None
    allocate_node_ports: bool = True

    @property
    def key(self) -> ObjectKey:
        return self.service.key


def read_service(obj: Fields, meta: Meta, faults: Faults) -> ServiceManifest:
    spec = obj.fields("spec")
    given = _TYPES[spec.choice("type", tuple(_TYPES), "ClusterIP")]
    addresses, headless = _cluster_ips(spec, given)
    kind = ServiceType.HEADLESS if headless else given
    exposed = kind in (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER)
    external_ips: tuple[IPAddress, ...] = parts(
        spec.values("externalIPs"), faults, endpoint_address_at
    )
    external_policy = spec.choice("externalTrafficPolicy", ("Cluster", "Local"), "Cluster")
    external_local = external_policy == "Local" and (exposed or bool(external_ips))
    health_port = spec.number("healthCheckNodePort", 0, MAX_PORT, 0)
    service = Service(
        namespace=meta.key.namespace,
        name=meta.key.name,
        type=kind,
        cluster_ips=addresses,
        ports=_ports(spec, kind, exposed, faults),
        external_ips=external_ips,
        load_balancer_ips=_load_balancer_ips(obj.fields("status"), kind, faults),
        source_ranges=_source_ranges(spec, faults),
        internal_local=spec.choice("internalTrafficPolicy", ("Cluster", "Local"), "Cluster")
        == "Local",
        external_local=external_local,
        affinity_seconds=_affinity(spec),
        health_check_node_port=(
            health_port if kind is ServiceType.LOAD_BALANCER and external_local else 0
        ),
        publish_not_ready=spec.flag("publishNotReadyAddresses"),
        selector=spec.labels("selector") or None,
        created=meta.created,
        skipped=next((label for label in SKIP_LABELS if label in meta.labels), ""),
        families=_families(spec, addresses),
    )
    return ServiceManifest(
        service,
        spec.choice("ipFamilyPolicy", POLICIES, ""),
        spec.address("loadBalancerIP"),
        spec.flag("allocateLoadBalancerNodePorts", True),
    )


def _cluster_ips(spec: Fields, kind: ServiceType) -> tuple[tuple[IPAddress, ...], bool]:
    """The ClusterIPs that are given, and whether the Service is headless."""
    given = list(spec.texts("clusterIPs"))
    first = spec.text("clusterIP")
    if given and first and given[0][1] != first:
        raise Fault(given[0][0], f"{given[0][1]!r} differs from spec.clusterIP {first!r}")
    if not given and first:
        given = [((*spec.path, "clusterIP"), first)]
    if kind is ServiceType.EXTERNAL_NAME:
        return (), False
    if given and given[0][1] == "None":
        if kind is not ServiceType.CLUSTER_IP:
            raise Fault(given[0][0], f"None does not go with type {kind.value}")
        return (), True
    addresses = tuple(address_at(path, text) for path, text in given if text)
    if len({family_of(address) for address in addresses}) < len(addresses):
        raise spec.fault("clusterIPs", "has more than one address of a family")
    return addresses, False


def _families(spec: Fields, addresses: tuple[IPAddress, ...]) -> tuple[Family, ...]:
    found: list[Family] = []
    for path, text in spec.texts("ipFamilies"):
        if text not in FAMILIES:
            raise Fault(path, f"{text!r} is none of {', '.join(FAMILIES)}")
        if FAMILIES[text] in found:
            raise Fault(path, f"{text} is given twice")
        found.append(FAMILIES[text])
    own = [family_of(address) for address in addresses]
    for index, (wanted, have) in enumerate(zip(found, own, strict=False)):
        if wanted is not have:
            path = (*spec.path, "clusterIPs" if "clusterIPs" in spec else "clusterIP")
            raise Fault(path, f"{addresses[index]} is not of spec.ipFamilies[{index}]")
    return tuple(found or own)


def _ports(
    spec: Fields, kind: ServiceType, exposed: bool, faults: Faults
) -> tuple[ServicePort, ...]:
    entries = list(spec.values("ports"))
    if not entries and kind not in (ServiceType.HEADLESS, ServiceType.EXTERNAL_NAME):
        raise spec.fault("ports", "is missing: a Service needs a port")
    names: set[str] = set()
    taken: set[tuple[object, int]] = set()

    def port(path: Path, item: object) -> ServicePort:
        entry = Fields(item, path)
        name = entry.text("name")
        made = ServicePort(
            name,
            PROTOCOLS[entry.choice("protocol", tuple(PROTOCOLS), "TCP")],
            entry.number("port", 1, MAX_PORT),
            entry.number("nodePort", 0, MAX_PORT, 0),
            _target_port(entry),
        )
        if name and not is_label(name):
            raise entry.fault("name", f"{name!r} is not a DNS-1123 label")
        if not name and len(entries) > 1:
            raise entry.fault("name", "is missing: each of several ports needs one")
        if name in names:
            raise entry.fault("name", f"{name!r} is given twice")
        if (made.protocol, made.port) in taken:
            raise entry.fault("port", f"{made.port}/{made.protocol.name} is given twice")
        if made.node_port and not exposed:
            raise entry.fault("nodePort", f"does not go with type {kind.value}")
        names.add(name)
        taken.add((made.protocol, made.port))
        return made

    return parts(iter(entries), faults, port)


def _target_port(entry: Fields) -> int | str:
    """The target port: a number, a container port's name, or `port` if not given."""
    value = entry.data.get("targetPort")
    if isinstance(value, str) and value:
        if not is_port_name(value):
            raise entry.fault("targetPort", f"{value!r} is neither a number nor a port name")
        return value
    # The API server takes 0 and "" for absent.
    if value in (None, "", 0) and not isinstance(value, bool):
        return entry.number("port", 1, MAX_PORT)
    return entry.number("targetPort", 1, MAX_PORT)


def _affinity(spec: Fields) -> int:
    if spec.choice("sessionAffinity", ("None", "ClientIP"), "None") == "None":
        return 0
    config = spec.fields("sessionAffinityConfig").fields("clientIP")
    return config.number("timeoutSeconds", 1, _DAY, _AFFINITY_SECONDS)


def _load_balancer_ips(status: Fields, kind: ServiceType, faults: Faults) -> tuple[IPAddress, ...]:
    """Addresses that a proxy is to answer on: those with an `ip` and mode VIP (or none said)."""

    def ingress(path: Path, item: object) -> IPAddress | None:
        entry = Fields(item, path)
        mode = entry.choice("ipMode", ("VIP", "Proxy"), "VIP")
        if not entry.text("ip") or mode == "Proxy":
            return None
        return address_at((*path, "ip"), entry.text("ip"))

    if kind is not ServiceType.LOAD_BALANCER:
        return ()
    found: tuple[IPAddress, ...] = parts(
        status.fields("loadBalancer").values("ingress"), faults, ingress
    )
    return tuple(dict.fromkeys(found))


def _source_ranges(spec: Fields, faults: Faults) -> tuple[IPNetwork, ...]:
    """loadBalancerSourceRanges. One that can't be read becomes one that admits nobody.

    A family without a range is open to all, so leaving a misspelt one out could open it.
    """
    ranges: list[IPNetwork] = []
    for path, text in spec.texts("loadBalancerSourceRanges"):
        try:
            ranges.append(network_at(path, text))
        except Fault as fault:
            faults.append(fault)
            ranges.append(parse_network("::/128" if ":" in text else "0.0.0.0/32"))
    return tuple(ranges)
