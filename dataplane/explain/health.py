# SPDX-License-Identifier: Apache-2.0
"""What a node of manifests would answer about its health, in the form that users are told.

Pure. The rules stand in core.health. Must not open sockets.
"""

from __future__ import annotations

from datetime import UTC, datetime

from dataplane.core.health import (
    Liveness,
    health_families,
    health_listeners,
    local_endpoints,
    node_healthz,
    node_livez,
    service_health,
)
from dataplane.explain.manifests import Staged
from dataplane.model.errors import BadInput

_ANY_TIME = datetime.fromtimestamp(0, UTC)


def of_service(staged: Staged, name: str, healthy: bool) -> dict[str, object]:
    """The answer of a Service's healthCheckNodePort, and where it is asked.

    Raises:
        BadInput: no such Service, or it has no health to be asked for on this node.
    """
    what = f"--health {name}"
    namespace, slash, short = name.partition("/")
    if not (namespace and slash and short):
        raise BadInput(what, "is no NAMESPACE/NAME")
    world = staged.world
    found = [s for s in world.services if (s.namespace, s.name) == (namespace, short)]
    if not found:
        raise BadInput(what, "the manifests have no such Service")
    families = health_families(found[0], staged.settings)
    if not families:
        need = "type LoadBalancer, externalTrafficPolicy Local and a healthCheckNodePort"
        raise BadInput(what, "its health is not asked for on this node", f"it needs {need}")
    slices = [s for s in world.slices if (s.namespace, s.service) == (namespace, short)]
    count = local_endpoints(slices, families[0], staged.scene.node)
    answer = service_health(namespace, short, count, healthy)
    listen = [one.text for one in health_listeners(found[0], staged.settings)]
    return {
        "status": answer.status,
        "headers": dict(answer.headers),
        "body": dict(answer.body),
        "listen": listen,
    }


def of_node(staged: Staged, healthy: bool) -> dict[str, object]:
    """The statuses of the proxy's own /healthz and /livez."""
    deleting = staged.own is not None and staged.own.deleting
    live = Liveness(healthy, _ANY_TIME)
    return {
        "/healthz": node_healthz(live, deleting, _ANY_TIME).status,
        "/livez": node_livez(live, _ANY_TIME).status,
    }
