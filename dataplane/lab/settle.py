# SPDX-License-Identifier: Apache-2.0
"""Read what the lab's nodes hold, and wait until it is what the objects say. Reads only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from dataplane.core.plan import BACKENDS, FRONTENDS, NAMES, SERVICES, SLOTS
from dataplane.kernel.maps import Maps
from dataplane.lab import held
from dataplane.lab.cluster import Lab
from dataplane.model.errors import BadEnvironment

_SECONDS = 30.0
_POLL_SECONDS = 0.03


@contextlib.contextmanager
def maps_of(lab: Lab, node: str) -> Iterator[Maps]:
    """A node's pinned maps."""
    maps = Maps(lab.files.node(node).bpffs_dir)
    try:
        yield maps
    finally:
        maps.close()


def tables(lab: Lab, maps: Maps) -> held.Tables:
    """What a node's maps hold for Services."""
    families = lab.world.families
    return held.Tables(
        names=dict(maps.items(NAMES)),
        frontends={family: dict(maps.items(FRONTENDS[family])) for family in families},
        services=dict(maps.items(SERVICES)),
        slots=dict(maps.items(SLOTS)),
        backends={family: dict(maps.items(BACKENDS[family])) for family in families},
    )


def wait(lab: Lab) -> None:
    """Wait until each node's maps hold what the objects say.

    What a node can't serve, its agent has named; a difference that stays is not waited for.

    Raises:
        BadEnvironment: a node's maps can't be read.
    """
    end = time.monotonic() + _SECONDS
    for node in lab.world.nodes:
        with maps_of(lab, node.name) as maps:
            while held.differences(lab.world, node, tables(lab, maps)):
                if time.monotonic() > end:
                    return
                time.sleep(_POLL_SECONDS)
