# SPDX-License-Identifier: Apache-2.0
"""Read what the lab's nodes hold, and wait until it is what the objects say. Reads only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from dataplane.core.plan import BACKENDS, FRONTENDS, NAMES, SERVICES, SLOTS
from dataplane.kernel.maps import Maps
from dataplane.lab import held, wire
from dataplane.lab.cluster import Lab
from dataplane.model.errors import BadEnvironment
from dataplane.model.objects import Node

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
    """Wait until each node's maps hold what the objects say, but for what its agent can't serve.

    Raises:
        BadEnvironment: a node's maps can't be read, or its agent does not come to an end.
    """
    end = time.monotonic() + _SECONDS
    for node in lab.world.nodes:
        with maps_of(lab, node.name) as maps:
            while left := _missing(lab, node, maps):
                if time.monotonic() > end:
                    raise BadEnvironment(
                        f"agent of {node.name}",
                        f"did not write what it was given in {_SECONDS:.0f} seconds: {left[0]}",
                        f"see {lab.files.node(node.name).log}",
                    )
                time.sleep(_POLL_SECONDS)


def _missing(lab: Lab, node: Node, maps: Maps) -> list[str]:
    found = held.differences(lab.world, node, tables(lab, maps))
    if not found:
        return []
    named = {problem.split(":")[0] for problem in wire.agent_problems(lab.files, node.name)}
    return [
        words[0]
        for name, words in found.items()
        if f"Service {name.namespace}/{name.name}" not in named
    ]
