# SPDX-License-Identifier: Apache-2.0
"""What was given to which pod, found again where the store is gone: from what lives.

A host veth carries container and interface in its alias; its pod's addresses are the
endpoint rows that name it; host ports are frontends that lead to these. Must not change
anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataplane.agent import shaping
from dataplane.agent.facts import GATEWAY_MAC, HOST_VETH
from dataplane.agent.tables import Tables
from dataplane.cni.runtime import Bandwidth, HostPort
from dataplane.cni.store import Attachment
from dataplane.core.plan import BACKENDS, FRONTENDS, NAMES
from dataplane.kernel.netlink import Link, Links, NetlinkError
from dataplane.model.constants import FrontendKind, NameKind
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.rows import (
    BackendRow,
    EndpointRow,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    Table,
)

_ALIAS_MAX = 255


def alias_of(one: Attachment) -> str:
    """The remark on a pod's host veth; the namespace's path is left out where it is too long."""
    short = f"{one.container_id} {one.interface}"
    whole = f"{short} {one.netns}"
    return whole if len(whole.encode()) <= _ALIAS_MAX else short


def pod_links(links: Links) -> dict[int, Link]:
    """Host veths of pods, by index; told from others' by name and MAC."""
    return {
        link.index: link
        for link in links.links()
        if HOST_VETH.fullmatch(link.name) and link.mac == GATEWAY_MAC
    }


def living(links: Links, tables: Tables) -> Iterator[Attachment]:
    """The pods that this node's kernel knows, as they were given their networks."""
    found: defaultdict[int, list[tuple[IPAddress, EndpointRow]]] = defaultdict(list)
    for family in Family:
        for address, row in tables.items(Table("endpoints", family)):
            if isinstance(row, EndpointRow) and not isinstance(
                address, int | FrontendKey | NameKey
            ):
                found[row.ifindex].append((address, row))  # type: ignore[arg-type]
    ports = dict(_host_ports(tables))
    for index, link in sorted(pod_links(links).items()):
        words = link.alias.split(" ", 2)
        if len(words) < 2 or not found[index]:
            continue
        row = found[index][0][1]
        addresses = tuple(sorted((a for a, _ in found[index]), key=lambda a: a.version))
        name = tables.get(NAMES, NameKey(NameKind.ENDPOINT, row.id))
        yield Attachment(
            container_id=words[0],
            interface=words[1],
            veth=link.name,
            endpoint_id=row.id,
            mac=row.mac,
            netns=words[2] if len(words) > 2 else "",
            pod=name.text if isinstance(name, NameRow) else words[0][:63],
            mtu=link.mtu,
            addresses=addresses,
            host_ports=tuple(sorted({p for a in addresses for p in ports.get(a, ())}, key=str)),
            bandwidth=_bandwidth(links, link, words),
        )


def _bandwidth(links: Links, link: Link, words: Sequence[str]) -> Bandwidth | None:
    """The pod's own limit is inside its namespace, whose path may lead nowhere by now."""
    out = None
    if len(words) > 2:
        try:
            with Links(Path(words[2])) as inside:
                eth0 = inside.link(words[1])
                out = inside.tc.shaper(eth0.index) if eth0 else None
        except (BadEnvironment, NetlinkError):
            pass
    return shaping.bandwidth(links.tc.shaper(link.index), out)


def _host_ports(tables: Tables) -> Iterator[tuple[IPAddress, list[HostPort]]]:
    """Host ports by the pod's address, each on the addresses of the node that it was on."""
    frontends: defaultdict[int, list[FrontendKey]] = defaultdict(list)
    for family in Family:
        for key, row in tables.items(FRONTENDS[family]):
            if isinstance(row, FrontendRow) and row.kind == FrontendKind.HOST_PORT:
                frontends[row.service_id].append(key)  # type: ignore[arg-type]
    for family in Family:
        for _, backend in tables.items(BACKENDS[family]):
            if isinstance(backend, BackendRow) and backend.flags:
                keys = frontends.get(backend.service_id, ())
                if keys:
                    yield (
                        backend.address,
                        [
                            HostPort(Protocol(k.protocol), k.port, backend.port, k.address)
                            for k in keys
                        ],
                    )
