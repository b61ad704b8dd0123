# SPDX-License-Identifier: Apache-2.0
"""CNI, pure: what a runtime asks, checked; what it is answered.

A request is the plugin's environment and the network configuration that it read from
stdin. Must not do I/O or know how a pod is wired. Source: CNI specification 1.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from dataplane.model.errors import BadEnvironment, BadInput, PodlaneError
from dataplane.model.net import IPAddress, family_of

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The first version that knows a command.
_SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0"}
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "VERSION")

UNSUPPORTED_VERSION, UNKNOWN_CONTAINER, BAD_ENVIRONMENT, IO_FAILED, DECODE_FAILED = 1, 3, 4, 5, 6
BAD_CONFIG, TRY_LATER, NOT_AVAILABLE, POD_BROKEN, INTERNAL = 7, 11, 50, 101, 100

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_INTERFACE = re.compile(r"[^\s/:]+")


class CniError(PodlaneError):
    """A request can't be done; `code` is what the runtime is told."""

    def __init__(self, code: int, what: str, why: str, next_step: str = "") -> None:
        super().__init__(what, why, next_step)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """One CNI call. netns is None if the runtime named none (DEL may)."""

    command: str
    version: str
    container_id: str = ""
    interface: str = ""
    netns: Path | None = None
    pod: str = ""
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Wiring:
    """What ADD made: both ends of the pod's interface, its addresses and gateways."""

    host_interface: str
    host_mac: str
    interface: str
    mac: str
    netns: str
    mtu: int
    addresses: tuple[IPAddress, ...]
    gateways: tuple[IPAddress, ...]


def parse(env: Mapping[str, object], config: object) -> Request:
    """Check one call.

    Raises:
        CniError: with the code that the specification has for it.
    """
    values = {name: value for name, value in env.items() if isinstance(value, str)}
    command = values.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(BAD_ENVIRONMENT, "CNI_COMMAND", f"{command!r} is none of {COMMANDS}")
    if command == "VERSION" and not config:
        return Request(command, VERSIONS[-1])
    if not isinstance(config, dict):
        raise CniError(DECODE_FAILED, "network configuration", "is not a JSON object")
    version = config.get("cniVersion", VERSIONS[0])
    if command == "VERSION":
        return Request(command, version if version in VERSIONS else VERSIONS[-1])
    if version not in VERSIONS:
        raise CniError(
            UNSUPPORTED_VERSION, "cniVersion", f"{version!r} is none of {', '.join(VERSIONS)}"
        )
    since = _SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(
            UNSUPPORTED_VERSION, "cniVersion", f"{version} has no {command}; {since} has"
        )
    if command == "STATUS":
        return Request(command, version)
    container_id = _required(values, "CNI_CONTAINERID", _ID)
    interface = _required(values, "CNI_IFNAME", _INTERFACE)
    if len(interface.encode()) > 15 or interface in (".", ".."):
        raise CniError(BAD_ENVIRONMENT, "CNI_IFNAME", f"{interface!r} is no interface name")
    netns = values.get("CNI_NETNS", "")
    if not netns and command != "DEL":
        raise CniError(BAD_ENVIRONMENT, "CNI_NETNS", f"{command} needs it")
    pod = ""
    addresses: tuple[IPAddress, ...] = ()
    if command != "DEL":
        pod, addresses = _arguments(values.get("CNI_ARGS", ""))
    return Request(
        command,
        version,
        container_id,
        interface,
        Path(netns) if netns else None,
        pod or container_id[:63],
        addresses,
    )


def _required(values: Mapping[str, str], name: str, form: re.Pattern[str]) -> str:
    value = values.get(name, "")
    if not form.fullmatch(value):
        raise CniError(
            BAD_ENVIRONMENT, name, f"{value!r} is not what it may be" if value else "missing"
        )
    return value


def _arguments(text: str) -> tuple[str, tuple[IPAddress, ...]]:
    """CNI_ARGS: the pod's name as the kubelet gives it, and the addresses it is to have."""
    pairs = {part.partition("=")[0]: part.partition("=")[2] for part in text.split(";") if part}
    namespace, name = pairs.get("K8S_POD_NAMESPACE", ""), pairs.get("K8S_POD_NAME", "")
    pod = f"{namespace}/{name}" if namespace and name else ""
    try:
        addresses = tuple(ip_address(item) for item in pairs.get("IP", "").split(",") if item)
    except ValueError as failure:
        raise CniError(BAD_ENVIRONMENT, "CNI_ARGS: IP", str(failure)) from failure
    families = [family_of(address) for address in addresses]
    if len(set(families)) != len(families):
        raise CniError(BAD_ENVIRONMENT, "CNI_ARGS: IP", "more than one address of a family")
    return pod, addresses


def result(request: Request, wiring: Wiring) -> dict[str, Any]:
    """The answer to ADD, in the form of the version that the configuration names."""
    ips: list[dict[str, Any]] = []
    routes = []
    for address, gateway in zip(wiring.addresses, wiring.gateways, strict=True):
        ip = {
            "interface": 1,
            "address": f"{address}/{address.max_prefixlen}",
            "gateway": str(gateway),
        }
        if VERSIONS.index(request.version) < VERSIONS.index("1.0.0"):
            ip["version"] = str(address.version)
        ips.append(ip)
        routes.append({"dst": "0.0.0.0/0" if address.version == 4 else "::/0", "gw": str(gateway)})
    pod_side: dict[str, Any] = {
        "name": wiring.interface,
        "mac": wiring.mac,
        "sandbox": wiring.netns,
    }
    if request.version == "1.1.0":
        pod_side["mtu"] = wiring.mtu
    return {
        "cniVersion": request.version,
        "interfaces": [{"name": wiring.host_interface, "mac": wiring.host_mac}, pod_side],
        "ips": ips,
        "routes": routes,
        "dns": {},
    }


def versions(request: Request) -> dict[str, Any]:
    """The answer to VERSION."""
    return {"cniVersion": request.version, "supportedVersions": list(VERSIONS)}


def error(failure: Exception, version: str = VERSIONS[-1]) -> dict[str, Any]:
    """The answer to a call that failed: the one table from errors to codes."""
    match failure:
        case CniError():
            code = failure.code
        case BadInput():
            code = BAD_CONFIG
        case BadEnvironment():
            code = IO_FAILED
        case _:
            code = INTERNAL
    if isinstance(failure, PodlaneError):
        message, details = f"{failure.what}: {failure.why}", failure.next_step
    else:
        message, details = f"internal contradiction: {type(failure).__name__}: {failure}", ""
    return {"cniVersion": version, "code": code, "msg": message, "details": details}
