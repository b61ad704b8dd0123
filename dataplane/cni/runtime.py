# SPDX-License-Identifier: Apache-2.0
"""CNI's capability arguments: `runtimeConfig`, read without regard to letter case.

go-cni writes its fields capitalised (`HostPort`), others as the conventions have them.
Unknown capabilities are not looked at. Must not know what is done with a value.
Source: CNI conventions, "Capabilities".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from typing import Any

from dataplane.model.errors import BadInput
from dataplane.model.net import IPAddress, Protocol

_PLACE = "runtimeConfig"


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A port of the node that leads to one of the pod. host_ip None: all the node's addresses."""

    protocol: Protocol
    host_port: int
    container_port: int
    host_ip: IPAddress | None = None

    def __str__(self) -> str:
        place = f"{self.host_ip or '*'}:{self.host_port}"
        return f"hostPort {place}/{self.protocol.name}"

    def clashes(self, other: HostPort) -> bool:
        """Whether some packet would be for both."""
        if (self.protocol, self.host_port) != (other.protocol, other.host_port):
            return False
        mine, theirs = self.host_ip, other.host_ip
        if mine is None or theirs is None or mine == theirs:
            return True
        same = mine.version == theirs.version
        return same and (mine.is_unspecified or theirs.is_unspecified)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A pod's limits, in bits a second and bits; a rate of 0 is none. Ingress is to the pod."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the runtime asks for this pod."""

    host_ports: tuple[HostPort, ...] = ()
    addresses: tuple[IPAddress, ...] = ()
    mac: bytes = b""
    bandwidth: Bandwidth | None = None


def read_runtime(config: Mapping[str, Any]) -> Runtime:
    """`runtimeConfig` of a network configuration.

    Raises:
        BadInput: a field of a wrong type or out of range, by name.
    """
    given = config.get(_PLACE)
    if given is None:
        return Runtime()
    values = _lower(given, _PLACE)
    bandwidth = values.get("bandwidth")
    return Runtime(
        tuple(
            port
            for item in _list(values, "portMappings")
            if (port := _host_port(_lower(item, f"{_PLACE}.portMappings"))) is not None
        ),
        tuple(_address(item) for item in _list(values, "ips")),
        _mac(values.get("mac")),
        None if bandwidth is None else _bandwidth(_lower(bandwidth, f"{_PLACE}.bandwidth")),
    )


def _lower(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(place, f"must be an object, not {value!r}")
    return {str(key).lower(): item for key, item in value.items()}


def _list(values: Mapping[str, Any], name: str) -> list[Any]:
    value = values.get(name.lower())
    if value is not None and not isinstance(value, list):
        raise BadInput(f"{_PLACE}.{name}", f"must be a list, not {value!r}")
    return value or []


def _number(values: Mapping[str, Any], name: str, place: str, most: int) -> int:
    value = values.get(name.lower(), 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise BadInput(f"{place}.{name}", f"must be a number of 0 to {most}, not {value!r}")
    return value


def _host_port(values: Mapping[str, Any]) -> HostPort | None:
    place = f"{_PLACE}.portMappings"
    name = values.get("protocol") or "tcp"
    if not isinstance(name, str) or name.upper() not in Protocol.__members__:
        raise BadInput(f"{place}.protocol", f"{name!r} is no protocol of ports")
    host, container = (_number(values, n, place, 65535) for n in ("hostPort", "containerPort"))
    if not host:
        return None  # a port of the pod that is on no port of the node
    if not container:
        raise BadInput(f"{place}.containerPort", "missing")
    text = values.get("hostip") or ""
    try:
        return HostPort(Protocol[name.upper()], host, container, ip_address(text) if text else None)
    except ValueError as failure:
        raise BadInput(f"{place}.hostIP", str(failure)) from failure


def _address(value: object) -> IPAddress:
    try:
        return ip_interface(value).ip  # type: ignore[arg-type] # it refuses other types itself
    except (ValueError, TypeError) as failure:
        raise BadInput(f"{_PLACE}.ips", f"{value!r} is no address") from failure


def _mac(value: object) -> bytes:
    if value is None or value == "":
        return b""
    try:
        mac = bytes.fromhex(str(value).replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise BadInput(f"{_PLACE}.mac", f"{value!r} is no MAC address that a pod may have")
    return mac


def _bandwidth(values: Mapping[str, Any]) -> Bandwidth | None:
    place = f"{_PLACE}.bandwidth"
    names = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
    found = Bandwidth(*(_number(values, name, place, (1 << 63) - 1) for name in names))
    return found if found.ingress_rate or found.egress_rate else None
