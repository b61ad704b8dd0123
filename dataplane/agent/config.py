# SPDX-License-Identifier: Apache-2.0
"""The node's config: a YAML file in, one frozen value out, or an error that names the key.

Unknown keys are refused, so that a typing mistake never passes as a default. Must not
look at the machine: what depends on it (addresses, devices) is found by `agent.node`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from dataplane.agent.facts import check_ranges
from dataplane.model.errors import BadInput
from dataplane.model.net import IPAddress, IPNetwork
from dataplane.model.objects import Problem
from dataplane.sources.documents import read_one

T = TypeVar("T")

MODES = ("vxlan", "native")
# How a client outside is answered by a pod of another node: through the node that it asked, or
# directly, with the address that it asked for.
SNAT, DSR = LOAD_BALANCER_MODES = ("snat", "dsr")
# What part of the flow table's entries closed flows may be, in flows: a quarter, with two each.
CLOSED_FLOWS_PART = 8
# Entries by map; maps with an entry a family have that many each. Room for 10,000 Services
# with 10 endpoints each, 5,000 nodes, and 128 Ki flows (a flow is two entries).
DEFAULT_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "uplinks": 64,
        "endpoints": 1024,
        "endpoint_counters": 1024,
        "routes": 16384,
        "peers": 16384,
        "frontends": 65536,
        "source_ranges": 16384,
        "services": 32768,
        "service_counters": 32768,
        "slots": 262144,
        "backends": 131072,
        "backend_counters": 131072,
        "names": 65536,
        "flows": 262144,
        "closed_flows": 262144 // CLOSED_FLOWS_PART,
        "affinity": 65536,
        "fragments": 4096,
        "endpoint_flows": 1024,
        "sockets": 32768,
        "datagrams": 16384,
    }
)
# A backend set is one u64: its base has 28 bits, its count 20 (bpf/abi.h).
_MOST = {"slots": 1 << 28, "backends": 1 << 20}
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_DEVICE = re.compile(r"[^\s/:]{1,15}")
_MTU_MIN, _MTU_MAX = 1280, 65535
_SOCKET_PATH_MAX = 107  # sun_path less the zero at its end


@dataclass(frozen=True, slots=True)
class Config:
    """One node's settings; the key in YAML is the field's name in camelCase.

    Empty tuples, zeros and None mean "not given": the Node object or the machine decides.
    """

    node_name: str = ""
    pod_cidrs: tuple[IPNetwork, ...] = ()
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    node_addresses: tuple[IPAddress, ...] = ()
    node_port_addresses: tuple[IPNetwork, ...] = ()
    localhost_node_ports: bool = False
    masquerade_all: bool = False
    non_masquerade_cidrs: tuple[IPNetwork, ...] = ()
    mode: str = "vxlan"
    load_balancer_mode: str = SNAT
    uplinks: tuple[str, ...] = ()
    mtu: int = 0
    api_server: str = ""
    kubeconfig: str = ""
    map_sizes: Mapping[str, int] = field(default_factory=lambda: DEFAULT_SIZES)
    cni_bin_dir: Path = Path("/opt/cni/bin")
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    run_dir: Path = Path("/run/podlane")
    state_dir: Path = Path("/var/lib/podlane")
    bpffs_dir: Path = Path("/sys/fs/bpf/podlane")
    cgroup_root: Path | None = None
    metrics_address: str = ""
    healthz_address: tuple[IPAddress, int] = (IPv4Address("0.0.0.0"), 10256)
    takeover: bool = False


def load(path: Path, *, node_name: str = "") -> Config:
    """Read a config file; `node_name` from the command line wins over the file's.

    Raises:
        BadInput: unreadable, not YAML (with line and column), an unknown key, a value of a
            wrong type, or settings that contradict each other.
    """
    document = read_one(f"config {path}", path)
    return parse({} if document is None else document, str(path), node_name=node_name)


def parse(document: object, source: str, *, node_name: str = "") -> Config:
    """Check a decoded document; `source` names it in errors."""
    if not isinstance(document, dict):
        raise BadInput(f"config {source}", "is not a mapping of keys to values")
    values: dict[str, Any] = {}
    for key, value in document.items():
        known = _KEYS.get(key) if isinstance(key, str) else None
        if known is None:
            raise BadInput(
                f"config {source}: {key}", "unknown key", f"known keys: {', '.join(sorted(_KEYS))}"
            )
        if value is None:
            continue  # `key:` with nothing after it: not given
        name, reader = known
        try:
            values[name] = reader(value)
        except ValueError as failure:
            raise BadInput(f"config {source}: {key}", str(failure)) from failure
    if node_name:
        try:
            values["node_name"] = _node_name(node_name)
        except ValueError as failure:
            raise BadInput("--node", str(failure)) from failure
    values.setdefault("node_name", socket.gethostname().lower())
    config = Config(**values)
    _refuse_contradictions(config, source)
    return config


def unserved(config: Config) -> tuple[Problem, ...]:
    """Keys that are given and that this version reads only, so that nobody relies on them."""
    given = {
        "metricsAddress": (config.metrics_address, "this version has no metrics to serve"),
        "takeover": (config.takeover, "this version leaves a kube-proxy's rules where they are"),
    }
    return tuple(Problem("config", key, why) for key, (value, why) in given.items() if value)


def _refuse_contradictions(config: Config, source: str) -> None:
    if config.pod_cidrs:
        check_ranges(config.pod_cidrs, f"config {source}")
    for cidr in config.pod_cidrs:
        for other in config.service_cidrs:
            if cidr.version == other.version and cidr.overlaps(other):
                raise BadInput(
                    f"config {source}: serviceCIDRs", f"{other} overlaps podCIDRs' {cidr}"
                )
    if config.api_server and config.kubeconfig:
        raise BadInput(
            f"config {source}: kubeconfig", "apiServer is given too", "give one of the two"
        )
    longest = config.run_dir / "cni.sock"
    if len(bytes(longest)) > _SOCKET_PATH_MAX:
        raise BadInput(
            f"config {source}: runDir",
            f"{longest} is longer than a socket's path may be ({_SOCKET_PATH_MAX} bytes)",
        )


# -- readers of one value: each returns it checked or raises ValueError with the reason --------


def _shown(value: object) -> str:
    """A value in a message; not what is in it, which aliases can make larger than memory."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return repr(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a text, not {_shown(value)}")
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_shown(value)}")
    return value


def _node_name(value: object) -> str:
    name = _text(value)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no node name (lower-case letters, digits, '-' and '.')")
    return name


def _list(reader: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be a list, not {_shown(value)}")
        found = tuple(reader(item) for item in value)
        if len(set(found)) != len(found):
            raise ValueError("names one thing twice")
        return found

    return read


def _network(value: object) -> IPNetwork:
    text = _text(value)
    if "/" not in text:
        raise ValueError(f"{text!r} is no range: it has no '/'")
    return ip_network(text)  # its ValueError says what is wrong with it


def _address(value: object) -> IPAddress:
    address = ip_address(_text(value))
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ValueError(f"{address} can't be a node's address")
    return address


def _listening(value: object) -> tuple[IPAddress, int]:
    """An address and port, as in "0.0.0.0:10256" or "[::1]:10256"."""
    host, _, port = _text(value).rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{value!r} is not an address and a port, as in 0.0.0.0:10256")
    inner = host.removeprefix("[").removesuffix("]")
    if (":" in inner) != (host == f"[{inner}]"):
        raise ValueError(f"{value!r}: an IPv6 address stands in brackets, an IPv4 one does not")
    return ip_address(inner), int(port)


def _device(value: object) -> str:
    name = _text(value)
    if not _DEVICE.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{name!r} is no device name")
    return name


def _one_of(words: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}, not {_shown(value)}")
        return str(value)

    return read


def _mtu(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a number, not {_shown(value)}")
    if not _MTU_MIN <= value <= _MTU_MAX:
        raise ValueError(f"must be {_MTU_MIN} to {_MTU_MAX}, not {value}")
    return value


def _sizes(value: object) -> Mapping[str, int]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping of map names to numbers, not {_shown(value)}")
    for name, size in value.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 1 << 31:
            raise ValueError(f"{name}: must be a number of entries, not {_shown(size)}")
        if size > _MOST.get(name, size):
            raise ValueError(f"{name}: at most {_MOST[name]}, not {size}")
    given = {_text(name): size for name, size in value.items()}
    if "flows" in given:
        given = {"closed_flows": -(-given["flows"] // CLOSED_FLOWS_PART), **given}
    return MappingProxyType({**DEFAULT_SIZES, **given})


def _path(value: object) -> Path:
    path = Path(_text(value))
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise ValueError(f"must be an absolute path without '..', not {value!r}")
    return path


_KEYS: Mapping[str, tuple[str, Callable[[object], Any]]] = {
    "nodeName": ("node_name", _node_name),
    "podCIDRs": ("pod_cidrs", _list(_network)),
    "clusterCIDRs": ("cluster_cidrs", _list(_network)),
    "serviceCIDRs": ("service_cidrs", _list(_network)),
    "nodeAddresses": ("node_addresses", _list(_address)),
    "nodePortAddresses": ("node_port_addresses", _list(_network)),
    "localhostNodePorts": ("localhost_node_ports", _bool),
    "masqueradeAll": ("masquerade_all", _bool),
    "nonMasqueradeCIDRs": ("non_masquerade_cidrs", _list(_network)),
    "mode": ("mode", _one_of(MODES)),
    "loadBalancerMode": ("load_balancer_mode", _one_of(LOAD_BALANCER_MODES)),
    "uplinks": ("uplinks", _list(_device)),
    "mtu": ("mtu", _mtu),
    "apiServer": ("api_server", _text),
    "kubeconfig": ("kubeconfig", _text),
    "mapSizes": ("map_sizes", _sizes),
    "cniBinDir": ("cni_bin_dir", _path),
    "cniConfDir": ("cni_conf_dir", _path),
    "runDir": ("run_dir", _path),
    "stateDir": ("state_dir", _path),
    "bpffsDir": ("bpffs_dir", _path),
    "cgroupRoot": ("cgroup_root", _path),
    "metricsAddress": ("metrics_address", _text),
    "healthzAddress": ("healthz_address", _listening),
    "takeover": ("takeover", _bool),
}
