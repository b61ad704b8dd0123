# SPDX-License-Identifier: Apache-2.0
"""What the kernel is to hold: one frozen value a map entry.

Field names are those of the structs in bpf/abi.h; `dataplane.abi` turns a row into
bytes and back by them. Addresses are `ipaddress` values, MACs are bytes, ports are
host-order numbers here and network order there. Must not know file descriptors.

A table is named (map name in bpf/maps.h, family), family None for shared maps.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.model.net import Family, IPAddress


@dataclass(frozen=True, slots=True, order=True)
class Table:
    """One map of the node. `pin` is its file name under <bpffs>/v1/map/."""

    name: str
    family: Family | None = None

    @property
    def pin(self) -> str:
        return self.name if self.family is None else f"{self.name}_{int(self.family)}"


@dataclass(frozen=True, slots=True)
class NodeRow:
    """struct node."""

    router: IPAddress
    gateway: IPAddress
    flags: int
    overlay_ifindex: int
    vni: int
    hash_seed: int
    masquerade_min: int
    masquerade_max: int
    vxlan_port: int
    pod_mtu: int
    overlay_mac: bytes
    gateway_mac: bytes
    primary: IPAddress
    netns_cookie: int = 0
    flows_per_pod: int = 0
    closed_flows: int = 0


@dataclass(frozen=True, slots=True)
class UplinkRow:
    """struct uplink, keyed by ifindex."""

    address: IPAddress
    mtu: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """struct endpoint, keyed by the pod's address."""

    ifindex: int
    id: int
    mac: bytes
    identity: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True, order=True)
class RouteKey:
    """struct route_key."""

    prefix: int
    address: IPAddress


@dataclass(frozen=True, slots=True)
class RouteRow:
    """struct route; hop is None for kinds that have no next hop."""

    kind: int
    flags: int = 0
    ifindex: int = 0
    hop: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class PeerRow:
    """struct peer; its key (struct peer_key) is the node's address, of either family."""

    node_id: int


@dataclass(frozen=True, slots=True, order=True)
class FrontendKey:
    """struct frontend_key; port 0 with protocol 0 is the whole address."""

    address: IPAddress
    port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class FrontendRow:
    """struct frontend."""

    service_id: int
    kind: int


@dataclass(frozen=True, slots=True, order=True)
class SourceKey:
    """struct source_key; prefix counts the 32 bits of list, too."""

    list: int
    prefix: int
    address: IPAddress


@dataclass(frozen=True, slots=True)
class SourceRow:
    """struct source."""

    service_id: int


@dataclass(frozen=True, slots=True)
class BackendSet:
    """One backend set: places base .. base + count - 1 of `slots`, all with this epoch."""

    base: int = 0
    count: int = 0
    epoch: int = 0

    def __int__(self) -> int:
        """The u64 that packets read (bpf/abi.h, struct service)."""
        return self.base << 36 | self.count << 16 | self.epoch

    @classmethod
    def parse(cls, word: int) -> BackendSet:
        """The set that a u64 of `ServiceRow` means."""
        return cls(word >> 36, word >> 16 & 0xFFFFF, word & 0xFFFF)


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """struct service; the sets are the u64 of `BackendSet`."""

    cluster: int
    local: int
    flags: int = 0
    affinity_seconds: int = 0


@dataclass(frozen=True, slots=True)
class SlotRow:
    """struct slot."""

    backend_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class BackendRow:
    """struct backend; flags 0 means gone."""

    generation: int
    address: IPAddress
    service_id: int
    port: int
    protocol: int
    flags: int


@dataclass(frozen=True, slots=True, order=True)
class NameKey:
    """struct name_key."""

    kind: int
    id: int


@dataclass(frozen=True, slots=True)
class NameRow:
    """struct name; what a Service's text says is decided in dataplane.model.names."""

    text: str


@dataclass(frozen=True, slots=True)
class SweepRow:
    """struct sweep, in its only place."""

    until: int


@dataclass(frozen=True, slots=True)
class FlowBudget:
    """struct flow_budget: live flows that a pod opened; close, and made true by each sweep."""

    live: int
