# SPDX-License-Identifier: Apache-2.0
"""What becomes of a flow that has a backend already, when the world changes.

A backend is selectable, retained or gone (docs/decisions/0003). Retained: its address is still
in a slice of this Service port: no new flows; connections go on, UDP only while it serves.
Gone: no packet to it, TCP is refused, others are chosen anew, its own replies still pass. Must
not choose backends.
"""

from __future__ import annotations

import enum

from dataplane.core.reference.endpoints import endpoints_of
from dataplane.core.reference.frontends import Door, Frontend, is_proxied, served_families
from dataplane.core.reference.values import FlowQuestion, Place, World
from dataplane.model.net import Protocol


class Fate(enum.Enum):
    """Of a flow."""

    KEEPS = enum.auto()  # goes on to its backend
    RETAINED = enum.auto()  # its backend is still listed, but this flow is chosen anew
    GONE = enum.auto()  # its backend is no longer listed


def fate_of(world: World, service: str, flow: FlowQuestion, backend: Place) -> Fate:
    """What becomes of a flow of a Service port ("namespace/name:port").

    What is gone once is gone for this flow, should the address be listed again.
    """
    frontend = _port_of(world, service, flow)
    listed = endpoints_of(world, frontend).listed.get(backend) if frontend else None
    if listed is None:
        return Fate.GONE
    return Fate.KEEPS if flow.protocol is not Protocol.UDP or listed.serves else Fate.RETAINED


def _port_of(world: World, service: str, flow: FlowQuestion) -> Frontend | None:
    """The Service port of that name, wherever it may be asked now."""
    for candidate in filter(is_proxied, world.services):
        for port in candidate.ports:
            found = Frontend(Door.CLUSTER_IP, candidate, port, flow.family)
            if (found.name, port.protocol) == (service, flow.protocol):
                return found if flow.family in served_families(world, candidate) else None
    return None
