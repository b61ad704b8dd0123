# SPDX-License-Identifier: Apache-2.0
"""What a packet counts for in the summary, and what must have been reached often enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dataplane.core.reference import Answer, Entry, FlowQuestion, Verdict, World, rules
from dataplane.core.reference.frontends import Door, Frontend
from dataplane.core.reference.model import reference_of
from dataplane.model.net import Family
from dataplane.model.objects import ServiceType
from tests.program.differential import cluster

Label = tuple[str, str]
Tally = Counter[Label]

# Of so many packets each label must have been reached so often.
PACKETS, ENOUGH = 200_000, 1_000

# The word in bpf/abi.h for each rule that stops a packet.
REASONS = {
    rules.NO_ENDPOINTS: "NO_BACKEND",
    rules.NO_SUCH_PORT: "NO_PORT",
    rules.UNKNOWN_FLOW: "NO_FLOW",
    rules.INTERNAL_LOCAL_EMPTY: "NO_LOCAL_BACKEND",
    rules.EXTERNAL_LOCAL_EMPTY: "NO_LOCAL_BACKEND",
    rules.SOURCE_RANGES: "SOURCE_RANGE",
    rules.UNASSIGNED: "NO_SERVICE",
    rules.IMPOSSIBLE_ADDRESS: "MARTIAN",
    rules.MULTICAST: "MULTICAST",
    rules.NO_SUCH_POD: "NO_POD",
    rules.NO_SUCH_NODE: "NO_ROUTE",
    rules.OVERLAY_PORT: "POD_ENCAPSULATES",
    rules.MASQUERADE_PORT: "MASQUERADE_UNKNOWN",
}
GONE: Label = "reason", "BACKEND_GONE"
TYPES = (
    ServiceType.CLUSTER_IP,
    ServiceType.NODE_PORT,
    ServiceType.LOAD_BALANCER,
    ServiceType.HOST_PORT,
)
POLICIES = ("Cluster", "internal Local", "external Local")


def labels_of(world: World, question: FlowQuestion, got: Answer) -> Iterator[Label]:
    """Kind and name of all that a packet reaches."""
    yield "verdict", got.verdict.value
    yield "family", f"IPv{int(question.family)}"
    yield "protocol", question.protocol.name
    yield "from", question.entry.value
    yield "rule", got.rule.name
    if got.rule in REASONS:
        yield "reason", REASONS[got.rule]
    frontend = reference_of(world).frontend(question)
    if frontend is not None:
        yield "type", frontend.service.type.value
        yield "door", frontend.door.name.lower()
        yield "policy", _policy(frontend)
    if got.verdict is Verdict.FORWARD:
        yield "masquerade", "yes" if got.hidden else "no"


def _policy(frontend: Frontend) -> str:
    if frontend.door is Door.CLUSTER_IP and frontend.service.internal_local:
        return "internal Local"
    if frontend.door.is_external and frontend.service.external_local:
        return "external Local"
    return "Cluster"


def wanted() -> Iterator[Label]:
    """All that a run must reach."""
    yield from (("verdict", verdict.value) for verdict in Verdict)
    yield from (("reason", reason) for reason in dict.fromkeys(REASONS.values()))
    yield GONE
    yield from (("type", kind.value) for kind in TYPES)
    yield from (("policy", policy) for policy in POLICIES)
    yield from (("door", door.name.lower()) for door in Door)
    yield from (("rule", rule.name) for rule in rules.ALL)
    yield from (("masquerade", word) for word in ("yes", "no"))
    yield from (("family", f"IPv{int(family)}") for family in Family)
    yield from (("protocol", protocol.name) for protocol in cluster.PROTOCOLS)
    yield from (("from", entry.value) for entry in (Entry.POD, Entry.OUTSIDE))
    for packet in ("reply", "later, keeps", "later, gone", "later, chosen anew"):
        yield "packet", packet


def seldom(tally: Tally, packets: int) -> list[str]:
    """What was not reached often enough in so many packets."""
    least = min(ENOUGH, packets * ENOUGH // PACKETS)
    return [
        f"{kind} {name}: {tally[kind, name]} times, fewer than {least}"
        for kind, name in wanted()
        if tally[kind, name] < least
    ]
