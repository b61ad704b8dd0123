# SPDX-License-Identifier: Apache-2.0
"""A scene from the pinned maps of a node that runs: its rows as they are now, read only.

There is no object to ask, so the reference model has no word here; names are those that
the maps hold. Must not write into what is pinned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

from dataplane.abi.layout import abi
from dataplane.agent.config import load
from dataplane.core.plan import (
    BACKENDS,
    FRONTENDS,
    NAMES,
    PEERS,
    ROUTES,
    SERVICES,
    SLOTS,
    SOURCE_RANGES,
)
from dataplane.explain.scene import DEVICE, ENDPOINTS, NODE, UPLINKS, Scene, Tables, host_key
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.maps import Maps
from dataplane.model.constants import NameKind, NodeFlag, RouteFlag, RouteKind
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import (
    BackendRow,
    EndpointRow,
    NameKey,
    NameRow,
    NodeRow,
    PeerRow,
    RouteKey,
    RouteRow,
    Table,
)

_SHARED = (SERVICES, SLOTS, NAMES, PEERS)
_OF_FAMILY = (NODE, UPLINKS, ENDPOINTS, ROUTES, FRONTENDS, SOURCE_RANGES, BACKENDS)


def read_running(bpffs: Path, node: str) -> Scene:
    """The node whose maps are pinned below a folder.

    Raises:
        BadEnvironment: nothing is pinned there.
    """
    maps = Maps(bpffs)
    try:
        tables: Tables = {table: dict(maps.items(table)) for table in _tables()}
    finally:
        maps.close()
    flags = 0
    for table in NODE.values():
        for key, row in tables[table].items():
            if isinstance(row, NodeRow):
                flags |= row.flags
                tables[table][key] = replace(row, flows_per_pod=0)
    for table in UPLINKS.values():
        # What comes from outside comes by the copy's own device, which stands for the first.
        first = next(iter(sorted(tables[table].items(), key=lambda one: str(one[0]))), None)
        if first is not None:
            tables[table][DEVICE] = first[1]
    routes = list(_routes(tables))
    scene = Scene(
        node=node,
        addresses=frozenset(key.address for key, row in routes if row.kind == RouteKind.NODE),
        cluster=tuple(
            ip_network((key.address, key.prefix))
            for key, row in routes
            if row.flags & RouteFlag.CLUSTER
        ),
        tables=tables,
        pods=dict(_pods(tables)),
        nodes=dict(_nodes(tables)),
        vxlan=bool(flags & NodeFlag.VXLAN),
        complete=True,
    )
    _unmask(scene)
    return scene


def _unmask(scene: Scene) -> None:
    """Pods are hidden from backends in the world by the way there, which is no rule of the
    Service's; so that the two can be told apart, the copy hides nobody on those ways."""
    for family, table in BACKENDS.items():
        for row in scene.tables[table].values():
            found = scene.route(row.address) if isinstance(row, BackendRow) else None
            if isinstance(row, BackendRow) and found and found[1].flags & RouteFlag.MASQUERADE:
                plain = replace(found[1], flags=found[1].flags & ~RouteFlag.MASQUERADE)
                scene.put(ROUTES[family], host_key(row.address), plain)
                scene.unmasked.add(row.address)


def running_name(config: Path | None, bpffs: Path) -> str:
    """The running node's name: as its config says, else where its maps are."""
    return load(config).node_name if config else f"at {bpffs}"


def check_programs(bpffs: Path, bundle: Bundle) -> None:
    """Raises BadEnvironment unless the node runs the very programs of this bundle."""
    link = bpffs / f"v{abi(Family.V4).constant('ABI_VERSION')}" / "bundle"
    try:
        pinned = os.readlink(link)
    except OSError as error:
        raise BadEnvironment(str(link), error.strerror or str(error)) from None
    if pinned != bundle.fingerprint:
        why = f"the node runs programs of another bundle ({pinned[:12]}, here {bundle.fingerprint[:12]})"
        raise BadEnvironment(str(bpffs), why, "use the podlane that loaded them")


def _tables() -> Iterator[Table]:
    yield from _SHARED
    for tables in _OF_FAMILY:
        yield from tables.values()


def _routes(tables: Tables) -> Iterator[tuple[RouteKey, RouteRow]]:
    for table in ROUTES.values():
        for key, row in tables[table].items():
            if isinstance(key, RouteKey) and isinstance(row, RouteRow):
                yield key, row


def _names(tables: Tables, kind: NameKind) -> dict[int, str]:
    return {
        key.id: row.text
        for key, row in tables[NAMES].items()
        if isinstance(key, NameKey) and isinstance(row, NameRow) and key.kind == kind
    }


def _pods(tables: Tables) -> Iterator[tuple[IPAddress, str]]:
    names = _names(tables, NameKind.ENDPOINT)
    for table in ENDPOINTS.values():
        for address, row in tables[table].items():
            if not isinstance(address, IPv4Address | IPv6Address):
                continue
            if isinstance(row, EndpointRow) and row.id in names:
                yield address, names[row.id]


def _nodes(tables: Tables) -> Iterator[tuple[IPAddress, str]]:
    names = _names(tables, NameKind.NODE)
    for address, row in tables[PEERS].items():
        if not isinstance(address, IPv4Address | IPv6Address):
            continue
        if isinstance(row, PeerRow) and row.node_id in names:
            yield address, names[row.node_id]
