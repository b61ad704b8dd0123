# SPDX-License-Identifier: Apache-2.0
"""`lab check`: ask every row, look at the datapath's own words, judge.

At rest: the programs on every device, and what the maps hold against the objects. Then
requests in waves, each row alone with the counters that it grows. What a row should
come to is `expect`'s, whether it did is `judge`'s; here is only the doing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataplane.abi.layout import abi
from dataplane.kernel.maps import Maps
from dataplane.lab import expect, inside, judge, question, settle, state, wire
from dataplane.lab.cluster import Lab
from dataplane.lab.judge import Drops, Observed, Reply, Verdict
from dataplane.lab.question import Outcome, Row, SourceKind
from dataplane.lab.rest import Rest, look
from dataplane.lab.topology import OUTSIDE
from dataplane.lab.world import pod_name
from dataplane.model.net import Family, IPAddress
from dataplane.model.objects import Node, Pod
from dataplane.model.rows import Table

_GUESTS = "podlane-lab"
_ANSWER_MS, _SILENCE_MS = 2000, 400
_SPOKEN = (Outcome.ANSWERED, Outcome.REFUSED)
_PORTS = "ports.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """All rows judged, and what was found wrong at rest."""

    lab: Lab
    verdicts: tuple[Verdict, ...]
    broken: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return bool(self.verdicts) and not self.broken and all(v.ok for v in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """What `lab check -o json` prints."""
        return {
            "mode": self.lab.mode,
            "family": self.lab.family,
            "nodes": [node.name for node in self.lab.world.nodes],
            "pods": sorted(pod_name(pod) for pod in self.lab.world.pods),
            "services": [verdict.as_json() for verdict in self.verdicts],
            "problems": list(self.broken),
            "ok": self.ok,
        }


def run(lab: Lab, say: Say) -> Report:
    """Check a lab that is up.

    Raises:
        BadEnvironment: a node's agent or maps are not there.
    """
    with state.locked(lab.files), ExitStack() as closing:
        guests = closing.enter_context(_guests(lab))
        world = dataclasses.replace(lab.world, guests=guests)
        maps = {
            node.name: closing.enter_context(settle.maps_of(lab, node.name)) for node in world.nodes
        }
        rest = look(lab, world, maps)
        rows = expect.rows(world)
        say(f"{len(rows)} rows, {sum(row.requests for row in rows)} requests")
        verdicts: dict[int, Verdict] = {}
        asker = _Asker(lab)
        for wave in question.waves(rows):
            for row, seen in _ask_wave(asker, wave, maps, rest):
                verdicts[id(row)] = judge.judge(row, seen)
        asker.save()
    return Report(lab, tuple(verdicts[id(row)] for row in rows), rest.all())


# ---- a pod to ask from, where a node has none ----


@contextlib.contextmanager
def _guests(lab: Lab) -> Iterator[dict[str, Pod]]:
    """One pod on each node that has none; gone again afterwards."""
    with ExitStack() as closing:
        found: dict[str, Pod] = {}
        for node in lab.world.nodes:
            if not any(p.node_name == node.name and not p.host_network for p in lab.runnable()):
                found[node.name] = closing.enter_context(_guest(lab, node))
        yield found


@contextlib.contextmanager
def _guest(lab: Lab, node: Node) -> Iterator[Pod]:
    taken = {address for pod in lab.world.pods for address in pod.addresses}
    addresses: list[IPAddress] = []
    for cidr in node.pod_cidrs:
        # From the end of the range, where pods of manifests come last; not its broadcast.
        last = min(cidr.num_addresses, 1 << 16) - 2
        addresses.append(next(cidr[i] for i in range(last, 1, -1) if cidr[i] not in taken))
    pod = Pod(_GUESTS, f"check-{node.name}", node.name, tuple(addresses))
    key = wire.key_of(pod)
    wire.stop(lab.files, key, host_network=False)  # what a check that was killed left
    try:
        wire.prepare(lab.files, pod, ())
        wire.connect(lab.files, key, pod.addresses)
        yield pod
    finally:
        wire.stop(lab.files, key, host_network=False)


# ---- asking ----


class _Asker:
    """Sends the requests of rows from where they come from.

    Source ports go on where the last check stopped, so that each request is a new flow.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._path = lab.files.folder / _PORTS
        self._next: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            self._next = json.loads(self._path.read_text(encoding="utf-8"))

    def save(self) -> None:
        state.write_whole(self._path, json.dumps(self._next))

    def ask(self, rows: Sequence[Row]) -> list[list[Reply]]:
        """The replies of each row; senders work side by side."""
        by_place: dict[Path, list[int]] = {}
        for number, row in enumerate(rows):
            by_place.setdefault(self._place(row), []).append(number)
        replies: list[list[Reply]] = [[] for _ in rows]
        senders = [(place, [(n, rows[n]) for n in numbers]) for place, numbers in by_place.items()]
        with ThreadPoolExecutor(len(senders) or 1) as pool:
            outputs = list(pool.map(lambda sender: self._send(*sender), senders))
        for (place, _), output in zip(senders, outputs, strict=True):
            for line in output.splitlines():
                self._take(place, line.split("\t"), replies)
        return replies

    def _place(self, row: Row) -> Path:
        files, source = self._lab.files, row.source
        if source.kind is SourceKind.OUTSIDE:
            return files.netns(OUTSIDE)
        if row.by_socket:
            return files.node_netns(source.node)
        namespace, _, name = source.name.partition("/")
        return files.pod_netns(namespace, name)

    def _send(self, place: Path, rows: Sequence[tuple[int, Row]]) -> str:
        jobs = "".join(
            f"{number} {row.protocol.name.lower()} {row.address} {row.number} {row.requests}"
            f" {_ANSWER_MS if row.outcome in _SPOKEN else _SILENCE_MS}\n"
            for number, row in rows
        )
        first = str(self._next.get(str(place), 0))
        return inside.run(place, [str(inside.STAND_IN), "client", first], jobs)

    def _take(self, place: Path, words: Sequence[str], replies: list[list[Reply]]) -> None:
        if words[0] == "next":
            self._next[str(place)] = int(words[1])
        else:
            number, outcome, _, text = words
            replies[int(number)].append(Reply(outcome, text))


# ---- counting ----


@dataclass(frozen=True, slots=True)
class _Counts:
    """Counters that a wave may grow: flows by row, packets into pods, drops by node."""

    flows: Sequence[int | None]
    pods: Mapping[str, int]
    drops: Mapping[str, Mapping[tuple[Family, int], int]]


def _count(rows: Sequence[Row], maps: Mapping[str, Maps], rest: Rest) -> _Counts:
    flows: list[int | None] = []
    pods: dict[str, int] = {}
    for row in rows:
        if row.counted is None:
            flows.append(None)
            for pod in sorted({one.pod for one in row.answerers} & rest.endpoints.keys()):
                node, place = rest.endpoints[pod]
                values = maps[node].per_cpu(Table("endpoint_counters"), place)
                pods[pod] = sum(value.to_packets for value in values)
            continue
        place_of_service = rest.services[row.entry].get(row.counted)
        if place_of_service is None:
            flows.append(None)
        else:
            values = maps[row.entry].per_cpu(Table("service_counters"), place_of_service)
            flows.append(sum(value.flows for value in values))
    drops = {
        node: {
            (family, place): counter.packets
            for family in Family
            for place, counter in one.counters(Table("drops", family)).items()
        }
        for node, one in maps.items()
    }
    return _Counts(flows, pods, drops)


def _meant(wave: Sequence[Row]) -> Counter[tuple[str, Family, str]]:
    """Packets that a wave is to have dropped, by node, family and reason."""
    found: Counter[tuple[str, Family, str]] = Counter()
    for row in wave:
        if row.outcome in judge.DROP_REASONS:
            found[row.entry, row.family, judge.DROP_REASONS[row.outcome]] += row.requests
    return found


def _drops(
    row: Row, before: _Counts, after: _Counts, meant: Counter[tuple[str, Family, str]]
) -> Iterator[Drops]:
    """What this row's nodes dropped of its family meanwhile, but not as other rows meant it."""
    words = abi(row.family)
    places_a_hook = int(words.constant("DROP_MAX"))
    for node in sorted(row.nodes):
        for (family, place), packets in sorted(after.drops[node].items()):
            grown = packets - before.drops[node].get((family, place), 0)
            if family is row.family and grown:
                hook, reason = divmod(place, places_a_hook)
                name = words.enum("drop")(reason).name
                if row.outcome is Outcome.ANSWERED and grown <= meant[node, family, name]:
                    continue
                yield Drops(
                    node=node,
                    hook=words.enum("hook")(hook).name.removeprefix("HOOK_").lower(),
                    reason=name,
                    words=words.text("drop", reason),
                    packets=grown,
                )


def _ask_wave(
    asker: _Asker, wave: Sequence[Row], maps: Mapping[str, Maps], rest: Rest
) -> Iterator[tuple[Row, Observed]]:
    before = _count(wave, maps, rest)
    replies = asker.ask(wave)
    after = _count(wave, maps, rest)
    meant = _meant(wave)
    for number, row in enumerate(wave):
        first, last = before.flows[number], after.flows[number]
        yield (
            row,
            Observed(
                replies=replies[number],
                flows=None if first is None or last is None else last - first,
                pods={
                    one.pod: after.pods[one.pod] - before.pods[one.pod]
                    for one in row.answerers
                    if row.counted is None and one.pod in after.pods
                },
                drops=tuple(_drops(row, before, after, meant)),
                broken=rest.touching(row),
            ),
        )
