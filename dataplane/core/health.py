# SPDX-License-Identifier: Apache-2.0
"""What a node answers when it is asked about its health: status, headers and body, as kube-proxy's.

A load balancer asks a Service's healthCheckNodePort whether this node has endpoints of it;
whoever manages nodes asks /healthz and /livez of the proxy's own port. Pure: whether the
datapath is up to date comes in as a flag, time as an argument. Must not open sockets.

Source: Kubernetes 1.34 pkg/proxy/healthcheck and pkg/proxy/endpoints.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address

from dataplane.core.frontends import Settings, is_served
from dataplane.model.net import Family, IPAddress, family_of
from dataplane.model.objects import EndpointSlice, Service

OK, UNAVAILABLE = 200, 503
HEADERS = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}
_ALL = {Family.V4: ip_address("0.0.0.0"), Family.V6: ip_address("::")}
_LOOPBACK = {Family.V4: ip_address("127.0.0.1"), Family.V6: ip_address("::1")}


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; body is a JSON object. `lines`: sent with line breaks and tabs."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, object]
    lines: bool = False

    @property
    def text(self) -> str:
        """The body as it is sent."""
        if self.lines:
            return json.dumps(self.body, indent="\t")
        return json.dumps(self.body, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Liveness:
    """What is known of the datapath of a node.

    Args:
        healthy: it is what the objects say.
        updated: when it was made so for the last time.
        families: those that it serves; they are written together, and so are equally healthy.
    """

    healthy: bool
    updated: datetime
    families: tuple[Family, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """Where a Service's health is asked for. An unspecified address is every one of its family
    (a socket for `::` takes IPv6 only)."""

    address: IPAddress
    port: int

    @property
    def family(self) -> Family:
        return family_of(self.address)

    @property
    def text(self) -> str:
        """As kube-proxy calls it: all addresses are 0.0.0.0 to it, whatever the family."""
        if self.address.is_unspecified:
            return f"0.0.0.0:{self.port}"
        host = f"[{self.address}]" if self.family is Family.V6 else str(self.address)
        return f"{host}:{self.port}"


def health_families(service: Service, settings: Settings) -> tuple[Family, ...]:
    """Families in which the Service's health is answered, its first one first; none if it is not
    asked for at all."""
    if not service.health_check_node_port or not is_served(service):
        return ()
    own = dict.fromkeys(map(family_of, service.cluster_ips))
    return tuple(family for family in own if family in settings.families)


def health_listeners(service: Service, settings: Settings) -> tuple[Listener, ...]:
    """Where this node answers for the Service: on the addresses of its NodePorts."""
    port, found = service.health_check_node_port, set()
    for family in health_families(service, settings):
        ranges = [r for r in settings.node_port_ranges if r.version == family]
        if any(r.prefixlen == 0 for r in ranges):
            found.add(Listener(_ALL[family], port))
            continue
        found |= {Listener(address, port) for address in settings.node_port_addresses(family)}
        if any(_LOOPBACK[family] in r for r in ranges):
            found.add(Listener(_LOOPBACK[family], port))
    return tuple(sorted(found, key=lambda one: (one.family, one)))


def local_endpoints(slices: Iterable[EndpointSlice], family: Family, node: str) -> int:
    """How many addresses of one family are ready on this node, whatever their ports.

    Args:
        slices: those of one Service. Endpoints that terminate are not ready.
    """  # fmt: skip
    return len(
        {
            endpoint.address
            for piece in slices
            if piece.family is family and piece.ports
            for endpoint in piece.endpoints
            if endpoint.ready and endpoint.node_name == node
        }
    )


def service_health(namespace: str, name: str, endpoints: int, healthy: bool) -> Answer:
    """The answer of a healthCheckNodePort.

    Args:
        endpoints: as of `local_endpoints`, of the family in which it was asked.
        healthy: whether the datapath is up to date.
    """  # fmt: skip
    return Answer(
        OK if endpoints and healthy else UNAVAILABLE,
        # The weight is for balancers that send each node as much as it has endpoints.
        {**HEADERS, "X-Load-Balancing-Endpoint-Weight": str(endpoints)},
        {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": endpoints,
            "serviceProxyHealthy": healthy,
        },
        lines=True,
    )


def node_healthz(live: Liveness, deleting: bool, now: datetime) -> Answer:
    """The answer of /healthz: is this node to get traffic from outside?

    Args:
        deleting: the Node is being deleted, or the autoscaler says that it will be.
    """  # fmt: skip
    return _of_node(live, live.healthy and not deleting, now, {"nodeEligible": not deleting})


def node_livez(live: Liveness, now: datetime) -> Answer:
    """The answer of /livez: is the proxy at work? A node that is being deleted still is."""
    return _of_node(live, live.healthy, now, {})


def _of_node(live: Liveness, good: bool, now: datetime, more: Mapping[str, object]) -> Answer:
    """While all is well the last update is now: nothing waits for one."""
    status = {
        f"IPv{family.value}": {"lastUpdated": _go_time(live.updated), "healthy": live.healthy}
        for family in sorted(live.families)
    }
    body = {
        "lastUpdated": _go_time(now if good else live.updated),
        "currentTime": _go_time(now),
        **more,
        "healthy": live.healthy,
        "status": status,
    }
    return Answer(OK if good else UNAVAILABLE, HEADERS, body)


def _go_time(when: datetime) -> str:
    """RFC 3339, as Go writes a time into JSON."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
