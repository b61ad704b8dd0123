# SPDX-License-Identifier: Apache-2.0
"""Whether what came of a row is what should have: observations to verdicts. Pure.

A row is fine only if every request came to what it should, by the right pods, each
reached, with a plausible spread, the client address as the contract says, and the
datapath's own counters grew by exactly these requests. Each thing wrong is one sentence
that names it. Must not send anything or read a map.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from dataplane.lab.question import Outcome, Row
from dataplane.model.net import IPAddress

DROP_REASONS = {
    Outcome.REFUSED: "DROP_NO_BACKEND",
    Outcome.DROPPED: "DROP_NO_LOCAL_BACKEND",
    Outcome.SHUT_OUT: "DROP_SOURCE_RANGE",
}
"""Names in enum drop under which a request that should not be answered is counted."""

NOTES = {
    Outcome.ANSWERED: "",
    Outcome.REFUSED: "no usable endpoint: refused, as it should be",
    Outcome.DROPPED: "the Local policy leaves no endpoint here: dropped, as it should be",
    Outcome.SHUT_OUT: "in none of loadBalancerSourceRanges: dropped, as it should be",
}
_SHOULD = {
    Outcome.REFUSED: "be refused: no endpoint",
    Outcome.DROPPED: "be dropped: no local endpoint",
    Outcome.SHUT_OUT: "be dropped: the sender is in none of loadBalancerSourceRanges",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request came to: ok, refused, timeout or error; its answer or the reason."""

    outcome: str
    text: str


@dataclass(frozen=True, slots=True)
class Drops:
    """Packets that a node dropped while a row ran: enum drop's name and its words."""

    node: str
    hook: str
    reason: str
    words: str
    packets: int


@dataclass(frozen=True, slots=True)
class Observed:
    """What came of one row.

    flows: new flows that the entry node counted for its Service port; None if the kernel
    knows no such Service port. pods: packets that programs counted into each answerer
    (only if the row asks no Service). drops: what its nodes dropped meanwhile, but for what
    other rows were to have dropped. broken: what was found wrong at rest: missing filters, wrong entries.
    """

    replies: Sequence[Reply]
    flows: int | None = None
    pods: Mapping[str, int] = field(default_factory=dict)
    drops: Sequence[Drops] = ()
    broken: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row judged. by: pod to answers; clients: the client addresses that pods saw."""

    row: Row
    answered: int
    by: Mapping[str, int]
    clients: tuple[str, ...]
    why: tuple[str, ...]
    note: str = ""

    @property
    def ok(self) -> bool:
        return not self.why

    def as_json(self) -> dict[str, Any]:
        """The row of `lab check -o json`; `to` is the address that was asked."""
        row = self.row
        return {
            "namespace": row.namespace,
            "name": row.name,
            "port": row.port,
            "protocol": row.protocol.name,
            "family": f"ipv{int(row.family)}",
            "type": row.type,
            "from": {
                "kind": row.source.kind.value,
                "node": row.source.node,
                "name": row.source.name,
            },
            "to": endpoint_text(row.address, row.number),
            "requests": row.requests,
            "answered": self.answered,
            "by": dict(sorted(self.by.items())),
            "clientAddress": ",".join(self.clients),
            "ok": self.ok,
            "why": "; ".join(self.why) or self.note,
        }


def endpoint_text(address: IPAddress, port: int) -> str:
    """address:port, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def judge(row: Row, seen: Observed) -> Verdict:
    """Compare a row with what came of it."""
    by: Counter[str] = Counter()
    clients: Counter[str] = Counter()
    why: list[str] = []
    if len(seen.replies) != row.requests:
        why.append(f"only {len(seen.replies)} of {row.requests} requests were made")
    if row.outcome is Outcome.ANSWERED:
        why += _answers(row, seen.replies, by, clients)
        why += _spread(row, by)
        why += _counted(row, seen)
    else:
        why += _unanswered(row, seen)
    if why:
        why += [
            f"{drop.node} dropped {drop.packets} packets at {drop.hook} meanwhile: {drop.words}"
            for drop in seen.drops
        ]
    why += seen.broken
    answered = sum(reply.outcome == "ok" for reply in seen.replies)
    shown = tuple(text for text, _ in clients.most_common())
    return Verdict(row, answered, by, shown, tuple(why), NOTES[row.outcome])


def _answers(
    row: Row, replies: Sequence[Reply], by: Counter[str], clients: Counter[str]
) -> list[str]:
    """Count who answered; what is wrong with the answers, each kind once with its number."""
    allowed: dict[tuple[str, int], set[str]] = {}
    for one in row.answerers:
        allowed.setdefault((one.pod, one.port), set()).update(map(str, one.clients))
    pods = {one.pod for one in row.answerers}
    wrong: Counter[str] = Counter()
    for reply in replies:
        if reply.outcome != "ok":
            wrong[_failure(reply)] += 1
            continue
        answer = _parse(reply.text)
        if answer is None:
            wrong[f"got an answer that is no stand-in's: {reply.text[:60]!r}"] += 1
            continue
        pod, port, client = answer
        by[pod] += 1
        clients[client] += 1
        if pod not in pods:
            wrong[f"were answered by {pod}, which is not an endpoint here"] += 1
        elif (pod, port) not in allowed:
            wrong[f"reached port {port} of {pod}"] += 1
        elif client not in allowed[pod, port]:
            expected = " or ".join(sorted(allowed[pod, port]))
            wrong[f"showed {pod} the client address {client}, not {expected}"] += 1
    return [f"{count} of {row.requests} requests {what}" for what, count in wrong.most_common()]


def _failure(reply: Reply) -> str:
    if reply.outcome == "timeout":
        return "got no answer" if reply.text == "no answer" else f"got no answer ({reply.text})"
    return "were refused" if reply.outcome == "refused" else f"failed: {reply.text}"


def _parse(text: str) -> tuple[str, int, str] | None:
    try:
        answer = json.loads(text)
        return str(answer["pod"]), int(answer["port"]), str(answer["client"])
    except (ValueError, TypeError, KeyError):
        return None


def _spread(row: Row, by: Mapping[str, int]) -> list[str]:
    """Each answerer reached, and none so often that chance can't explain it (chi squared)."""
    names = sorted({one.pod for one in row.answerers})
    total = sum(by.get(name, 0) for name in names)
    if not row.every or len(names) < 2 or total == 0:
        never = [name for name in names if not by.get(name)] if len(names) == 1 else []
        return [f"{name} never answered" for name in never]
    # Requests that got no answer were somebody's too: who answered none of them is named.
    missed = [name for name in names if not by.get(name)] if row.requests / len(names) >= 8 else []
    if missed:
        shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
        return [f"{shown} never answered"]
    expected = total / len(names)
    chi = sum((by.get(name, 0) - expected) ** 2 / expected for name in names)
    freedom = len(names) - 1
    if chi > freedom + 7 * sqrt(2 * freedom) + 14:
        most = max(names, key=lambda name: by.get(name, 0))
        return [f"the spread is implausible: {most} answered {by[most]} of {total}"]
    return []


def _counted(row: Row, seen: Observed) -> list[str]:
    if row.counted is not None:
        if seen.flows is None:
            return [f"{row.entry}: the kernel knows no Service port {row.counted.service}"]
        if seen.flows != row.requests:
            return [f"{row.entry} counted {seen.flows} new flows for {row.requests} requests"]
        return []
    return [
        f"{one.node} counted {seen.pods.get(one.pod, 0)} packets into {one.pod}"
        f" for {row.requests} requests"
        for one in row.answerers
        if one.pod in seen.pods and seen.pods[one.pod] < row.requests
    ]


def _as_meant(row: Row, reply: Reply) -> bool:
    """Silence is for packets: a system call that is to be dropped says at once that it may not."""
    if row.outcome is Outcome.REFUSED:
        return reply.outcome == "refused"
    if row.by_socket:
        return reply.outcome == "error" and reply.text == os.strerror(errno.EPERM)
    return reply.outcome == "timeout"


def _unanswered(row: Row, seen: Observed) -> list[str]:
    """Refused actively or dropped silently, and counted under the reason that says so."""
    words = _SHOULD[row.outcome]
    others = Counter(_failure(r) if r.outcome != "ok" else "were answered" for r in seen.replies
                     if not _as_meant(row, r))  # fmt: skip
    why = [
        f"{n} of {row.requests} requests {what}, and should {words}" for what, n in others.items()
    ]
    reason = DROP_REASONS[row.outcome]
    counted = sum(d.packets for d in seen.drops if d.node == row.entry and d.reason == reason)
    if counted < row.requests:
        why.append(f"{row.entry} counted {counted} such packets for {row.requests} requests")
    return why
