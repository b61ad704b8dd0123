# SPDX-License-Identifier: Apache-2.0
"""What the programs write and Python only reads: flows, counters, verdicts.

Field names are those of the structs in bpf/abi.h. Addresses are `ipaddress` values,
ports host-order numbers, times ns of CLOCK_MONOTONIC. Must not know file descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.model.net import IPAddress


@dataclass(frozen=True, slots=True, order=True)
class FlowKey:
    """struct flow_key: the tuple of a packet; ICMP echo has its identifier in both ports."""

    src: IPAddress
    dst: IPAddress
    sport: int
    dport: int
    protocol: int


@dataclass(frozen=True, slots=True)
class Flow:
    """struct flow: the whole flow, in each of its two entries.

    client:client_port -> frontend:frontend_port, rewritten to
    source:source_port -> backend:backend_port. packets, bytes, last_seen are of one direction.
    """

    client: IPAddress
    frontend: IPAddress
    source: IPAddress
    backend: IPAddress
    client_port: int
    frontend_port: int
    source_port: int
    backend_port: int
    generation: int
    last_seen: int
    packets: int
    bytes: int
    backend_id: int
    service_id: int
    ifindex: int
    identity: int
    version: int
    protocol: int
    flags: int
    state: int
    checked: int = 0


@dataclass(frozen=True, slots=True, order=True)
class AffinityKey:
    """struct affinity_key: a client of one Service port."""

    client: IPAddress
    service_id: int


@dataclass(frozen=True, slots=True)
class Affinity:
    """struct affinity: where that client's new flows go; last_used is that of its last one."""

    generation: int
    last_used: int
    backend_id: int
    version: int


@dataclass(frozen=True, slots=True, order=True)
class SocketKey:
    """struct socket_key: whom a socket that is not connected sends to, or hears from."""

    cookie: int
    address: IPAddress
    port: int
    side: int


@dataclass(frozen=True, slots=True)
class SocketFlow:
    """struct socket_flow: the frontend that a socket of the node asked for, and what it got."""

    generation: int
    started: int
    frontend: IPAddress
    backend: IPAddress
    frontend_port: int
    backend_port: int
    backend_id: int
    service_id: int
    version: int
    protocol: int


@dataclass(frozen=True, slots=True)
class Counter:
    """struct counter."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True, order=True)
class ExhaustedKey:
    """struct exhausted_key: a destination for which no masquerade port was free."""

    address: IPAddress
    port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class ServiceCounter:
    """struct service_counter; `flows` counts new flows."""

    flows: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class EndpointCounter:
    """struct endpoint_counter, as the pod sees it: `to_` is into the pod."""

    to_packets: int
    to_bytes: int
    from_packets: int
    from_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """struct verdict: what the last packet of a CPU came to. hop is None for none."""

    action: int
    reason: int
    hook: int
    ifindex: int
    hop: IPAddress | None
    service_id: int
    backend_id: int
    flow_flags: int
