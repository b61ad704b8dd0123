# SPDX-License-Identifier: Apache-2.0
"""One question of `lab check`, and which of them may be asked at once. Pure.

Must not know how questions come from objects, or how they are sent and judged.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from dataplane.model.names import ServiceName
from dataplane.model.net import Family, IPAddress, Protocol

PROTOCOLS = (Protocol.TCP, Protocol.UDP)
"""What stand-ins speak."""


class SourceKind(enum.Enum):
    """Where requests come from; the words of `lab check -o json`."""

    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"


class Outcome(enum.Enum):
    """What a request should come to."""

    ANSWERED = "answered"
    REFUSED = "refused"  # the Service has no usable endpoint
    DROPPED = "dropped"  # the Local policy leaves none here
    SHUT_OUT = "shut out"  # the sender is in none of loadBalancerSourceRanges


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """A sender. name is "namespace/pod", a node's name, or "outside"; node is empty then."""

    kind: SourceKind = field(compare=False)
    node: str
    name: str


@dataclass(frozen=True, slots=True)
class Answerer:
    """Who may answer: its name, its port, and the client addresses that it may see."""

    pod: str
    node: str
    address: IPAddress
    port: int
    clients: frozenset[IPAddress]


@dataclass(frozen=True, slots=True)
class Row:
    """One question: who asks, where, how often, and what should come of it.

    entry: the node whose programs meet the first packet. counted: the Service port whose
    counters on that node grow; None if no Service is asked: then each answerer's own
    pod counters do. every: each answerer must be reached. by_socket: the sender is in the
    node's own namespace, where programs meet the system call instead of a packet.
    """

    namespace: str
    name: str
    port: int
    protocol: Protocol
    family: Family
    type: str
    source: Source
    address: IPAddress
    number: int
    entry: str
    outcome: Outcome
    answerers: tuple[Answerer, ...]
    requests: int
    every: bool = True
    counted: ServiceName | None = None
    by_socket: bool = False

    @property
    def nodes(self) -> frozenset[str]:
        """Nodes whose programs this row's packets pass."""
        return frozenset({self.entry, *(a.node for a in self.answerers if a.node)})

    @property
    def pods(self) -> frozenset[str]:
        """Pods that this row's packets pass."""
        sender = {self.source.name} if self.source.kind is SourceKind.POD else set()
        return frozenset({a.pod for a in self.answerers} | sender)


def waves(found: Sequence[Row]) -> list[list[Row]]:
    """Rows in groups that may run at once: no counter is grown by two rows of a group."""
    groups: list[tuple[set[object], list[Row]]] = []
    for row in found:
        keys: set[object] = {(row.entry, row.counted)} if row.counted else set(row.pods)
        if row.outcome is not Outcome.ANSWERED:
            keys.add((row.entry, row.source.kind, row.family, row.outcome))
        for taken, group in groups:
            if taken.isdisjoint(keys):
                taken |= keys
                group.append(row)
                break
        else:
            groups.append((set(keys), [row]))
    return [group for _, group in groups]
