# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' names to addresses: a pod that sends, a Service port that is asked.

Pure: names are those of the scene. Must not ask an API server or a resolver.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from dataplane.core.plan import FRONTENDS, NAMES
from dataplane.explain.questions import Question, place, question
from dataplane.explain.scene import Scene
from dataplane.model.constants import FrontendKind, NameKind
from dataplane.model.errors import BadInput
from dataplane.model.names import ServiceName
from dataplane.model.net import IPAddress
from dataplane.model.rows import FrontendKey, FrontendRow, NameKey, NameRow

_NAMED = 8  # what an error names before it counts


def named_question(scene: Scene, source: str, to: str, protocol: str) -> Question:
    """A question whose sender may be NAMESPACE/POD, and whose target SERVICE.NAMESPACE:PORT.

    PORT is a number or the port's name; the family is one that both ends have, IPv4 first.

    Raises:
        BadInput: nothing here has the name; says what has.
    """
    senders = _senders(scene, source)
    targets = _targets(scene, to, protocol)
    for target in targets:
        for sender in senders:
            if sender == source or target == to or _same_family(sender, target):
                return question(sender, target, protocol)
    raise BadInput("--from", f"{source} and {to} have no address family in common")


def _same_family(sender: str, target: str) -> bool:
    return (":" in sender) == target.startswith("[")


def _senders(scene: Scene, source: str) -> list[str]:
    if "/" not in source:
        return [source]
    found = sorted((a.version, str(a)) for a, name in scene.pods.items() if name == source)
    here = [text for _, text in found if scene.endpoint(ip_address(text)) is not None]
    if not here:
        known = sorted({name for a, name in scene.pods.items() if scene.endpoint(a) is not None})
        words = f"pods: {_some(known)}" if known else "no pod's name is known, so give its address"
        raise BadInput("--from", f"node {scene.node} has no pod {source}", words)
    return here


def _targets(scene: Scene, to: str, protocol: str) -> list[str]:
    host, colon, port = to.rpartition(":")
    if not colon or _is_like_address(host.strip("[]")):
        return [to]
    name, _, rest = host.partition(".")
    namespace, _, domain = rest.partition(".")
    # The cluster's domain, which nobody told of, may follow `svc` (Kubernetes DNS specification).
    if not (name and namespace and port) or domain.split(".")[0] not in ("", "svc"):
        form = "give an address, IPv6 as [ADDRESS]:PORT, or a Service with its namespace"
        raise BadInput("--to", f"{to!r} is neither IP:PORT nor SERVICE.NAMESPACE:PORT", form)
    mine = [one for one in _services(scene) if (one[0].namespace, one[0].name) == (namespace, name)]
    if not mine:
        there = sorted({f"{one[0].name}.{one[0].namespace}" for one in _services(scene)})
        words = f"Services: {_some(there)}" if there else "it serves none"
        raise BadInput("--to", f"node {scene.node} serves no Service {namespace}/{name}", words)
    found = [
        (address.version, place(address, number))
        for service, address, number in mine
        if port in (service.port, str(number)) and service.protocol.name == protocol.upper()
    ]
    if not found:
        ports = sorted({f"{number}/{one.protocol.name} ({one.port})" for one, _, number in mine})
        raise BadInput(
            "--to", f"{namespace}/{name} has no port {port}", f"it has {', '.join(ports)}"
        )
    return [text for _, text in sorted(found)]


def _services(scene: Scene) -> Iterator[tuple[ServiceName, IPAddress, int]]:
    """Service ports by name, each with its ClusterIP and number."""
    names = {
        key.id: ServiceName.parse(row.text)
        for key, row in scene.tables.get(NAMES, {}).items()
        if isinstance(key, NameKey) and isinstance(row, NameRow) and key.kind == NameKind.SERVICE
    }
    for table in FRONTENDS.values():
        for key, row in scene.tables.get(table, {}).items():
            if not (isinstance(key, FrontendKey) and isinstance(row, FrontendRow)):
                continue
            if row.kind == FrontendKind.CLUSTER_IP and row.service_id in names:
                yield names[row.service_id], key.address, key.port


def _is_like_address(text: str) -> bool:
    """Whether an address was meant: no Service's name has a colon, or is a number alone."""
    return ":" in text or all(part.isdecimal() for part in text.split("."))


def _some(names: list[str]) -> str:
    """The first few of many names."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
