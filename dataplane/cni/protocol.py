# SPDX-License-Identifier: Apache-2.0
"""CNI, pure: what a runtime asks, checked; what it is answered.

A request is the plugin's environment and the network configuration that it read from
stdin; `cni.runtime` reads the latter's capability arguments. Must not do I/O or know how
a pod is wired. Source: CNI specification 1.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from dataplane.cni.runtime import Bandwidth, HostPort, Runtime, read_runtime
from dataplane.model.errors import (
    BadEnvironment,
    BadInput,
    PodlaneError,
    RangeFull,
    TableFull,
)
from dataplane.model.net import IPAddress, family_of

__all__ = ["Bandwidth", "CniError", "HostPort", "Request", "Runtime", "Wiring"]

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The first version that knows a command.
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
_VALID = "cni.dev/valid-attachments"

UNSUPPORTED_VERSION, UNSUPPORTED_FIELD, UNKNOWN_CONTAINER, BAD_ENVIRONMENT, IO_FAILED = (
    1,
    2,
    3,
    4,
    5,
)
DECODE_FAILED, BAD_CONFIG, TRY_LATER, NOT_AVAILABLE, PODS_SUFFER = 6, 7, 11, 50, 51
INTERNAL, POD_BROKEN = 100, 101
_ID_MAX = 200  # with the interface's it is the name of a file (cni/shim.c)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_INTERFACE = re.compile(r"[^\s/:]+")


class CniError(PodlaneError):
    """A request can't be done; `code` is what the runtime is told."""

    def __init__(self, code: int, what: str, why: str, next_step: str = "") -> None:
        super().__init__(what, why, next_step)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """One CNI call.

    netns is None if the runtime named none (DEL may). addresses are those that the pod is
    to have, empty for any. previous is prevResult: what plugins before made, or, for
    CHECK, all of them. valid is GC's: (container, interface) of each that
    lives; None if it names none, and nothing is to go.
    netns_fd is the namespace itself, if it came along: open during the call only.
    network is the configuration's name.
    """

    command: str
    version: str
    container_id: str = ""
    interface: str = ""
    netns: str | None = None
    pod: str = ""
    addresses: tuple[IPAddress, ...] = ()
    runtime: Runtime = field(default_factory=Runtime)
    previous: Mapping[str, Any] | None = None
    valid: frozenset[tuple[str, str]] | None = None
    netns_fd: int | None = None
    network: str = ""


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
        BadInput: a field of the configuration can't be used.
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
    if not isinstance(version, str):
        raise BadInput("cniVersion", "must be a text")
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
    if command == "GC":
        return Request(command, version, valid=_valid_attachments(config))
    container_id = _required(values, "CNI_CONTAINERID", _ID)
    interface = _required(values, "CNI_IFNAME", _INTERFACE)
    if len(interface.encode()) > 15 or interface in (".", ".."):
        raise CniError(BAD_ENVIRONMENT, "CNI_IFNAME", f"{interface!r} is no interface name")
    if len(container_id) > _ID_MAX:
        raise CniError(BAD_ENVIRONMENT, "CNI_CONTAINERID", f"longer than {_ID_MAX} bytes")
    place = values.get("CNI_NETNS") or None
    if command == "DEL":
        # Nothing of a DEL may fail over what only an ADD needs.
        return Request(command, version, container_id, interface, place)
    if place is None:
        raise CniError(BAD_ENVIRONMENT, "CNI_NETNS", f"{command} needs it")
    pod, wanted = _arguments(values.get("CNI_ARGS", ""))
    runtime = read_runtime(config)
    previous = config.get("prevResult")
    if previous is not None and not isinstance(previous, dict):
        raise BadInput("prevResult", "must be an object")
    addresses = tuple(dict.fromkeys((*wanted, *runtime.addresses)))
    families = [family_of(address) for address in addresses]
    if len(set(families)) != len(families):
        raise CniError(BAD_ENVIRONMENT, "wanted addresses", "more than one address of a family")
    return Request(
        command, version, container_id, interface, place, pod or container_id[:63],
        addresses, runtime, previous, network=str(config.get("name", "")),
    )  # fmt: skip


def _valid_attachments(config: Mapping[str, Any]) -> frozenset[tuple[str, str]] | None:
    if _VALID not in config:
        return None  # cnitool names none, and means that nothing is garbage by this list
    listed = config[_VALID] if config[_VALID] is not None else []  # Go's empty list
    if not isinstance(listed, list):
        raise BadInput(_VALID, "must be a list")
    found = set()
    for item in listed:
        pair = (item.get("containerID"), item.get("ifname")) if isinstance(item, dict) else ()
        if len(pair) != 2 or not all(isinstance(text, str) and text for text in pair):
            raise BadInput(_VALID, f"{item!r} is not an object with containerID and ifname")
        found.add((str(pair[0]), str(pair[1])))
    return frozenset(found)


def _required(values: Mapping[str, str], name: str, form: re.Pattern[str]) -> str:
    value = values.get(name, "")
    if not form.fullmatch(value):
        raise CniError(
            BAD_ENVIRONMENT, name, f"{value!r} is not what it may be" if value else "missing"
        )
    return value


def _arguments(text: str) -> tuple[str, tuple[IPAddress, ...]]:
    """CNI_ARGS: the pod's name as the kubelet gives it, and the addresses it is to have."""
    pairs = {}
    for part in filter(None, text.split(";")):
        name, equals, value = part.partition("=")
        if not (name and equals):
            raise CniError(BAD_ENVIRONMENT, "CNI_ARGS", f"{part!r} is not NAME=VALUE")
        pairs[name] = value
    namespace, pod = pairs.get("K8S_POD_NAMESPACE", ""), pairs.get("K8S_POD_NAME", "")
    try:
        addresses = tuple(ip_address(item) for item in pairs.get("IP", "").split(",") if item)
    except ValueError as failure:
        raise CniError(BAD_ENVIRONMENT, "CNI_ARGS: IP", str(failure)) from failure
    return f"{namespace}/{pod}" if namespace and pod else "", addresses


def result(request: Request, wiring: Wiring) -> dict[str, Any]:
    """The answer to ADD, in the form of the version that the configuration names.

    What a plugin before this one made (prevResult) comes first.
    """
    before = dict(request.previous or {})
    interfaces = list(before.get("interfaces") or ())
    own = len(interfaces) + 1
    ips: list[dict[str, Any]] = list(before.get("ips") or ())
    routes = list(before.get("routes") or ())
    for address, gateway in zip(wiring.addresses, wiring.gateways, strict=True):
        ip = {
            "interface": own,
            "address": f"{address}/{address.max_prefixlen}",
            "gateway": str(gateway),
        }
        if VERSIONS.index(request.version) < VERSIONS.index("1.0.0"):
            ip["version"] = str(address.version)
        ips.append(ip)
        routes.append({"dst": "0.0.0.0/0" if address.version == 4 else "::/0", "gw": str(gateway)})
    host_side: dict[str, Any] = {"name": wiring.host_interface, "mac": wiring.host_mac}
    pod_side: dict[str, Any] = {
        "name": wiring.interface,
        "mac": wiring.mac,
        "sandbox": wiring.netns,
    }
    if request.version == "1.1.0":
        host_side["mtu"] = pod_side["mtu"] = wiring.mtu
    return {
        "cniVersion": request.version,
        "interfaces": [*interfaces, host_side, pod_side],
        "ips": ips,
        "routes": routes,
        "dns": before.get("dns") or {},
    }


def not_in_previous(request: Request, wiring: Wiring) -> list[str]:
    """CHECK: what was given out and is not in the result that the runtime kept, in words."""
    if request.previous is None:
        return []
    there = {
        str(item.get("address", "")).partition("/")[0]
        for item in request.previous.get("ips") or ()
        if isinstance(item, dict)
    }
    names = {
        item.get("name")
        for item in request.previous.get("interfaces") or ()
        if isinstance(item, dict)
    }
    wrong = [f"address {a} is not in prevResult" for a in wiring.addresses if str(a) not in there]
    if wiring.interface not in names:
        wrong.append(f"interface {wiring.interface} is not in prevResult")
    return wrong


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
        case RangeFull() | TableFull():
            code = TRY_LATER  # there is room again when another pod goes
        case _:
            code = INTERNAL
    if isinstance(failure, PodlaneError):
        message, details = f"{failure.what}: {failure.why}", failure.next_step
    else:
        message, details = f"internal contradiction: {type(failure).__name__}: {failure}", ""
    return {"cniVersion": version, "code": code, "msg": message, "details": details}
