# SPDX-License-Identifier: Apache-2.0
"""The second copy: maps and programs without pins, filled from a scene, fresh for each run.

Runs in a network namespace of its own, or the sockets of this machine could have the ports
that a run looks for. Must not read or write anything of a node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dataplane.abi.codec import codec
from dataplane.core.plan import Key, Plan, Row, Upsert
from dataplane.explain.scene import DEVICE, Change, Scene
from dataplane.kernel import bpf, netns, prelude
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.loader import FIXED_MAPS, Datapath, load_unpinned
from dataplane.kernel.maps import Maps, Writer
from dataplane.kernel.prelude import Setup
from dataplane.kernel.testrun import Outcome, Runner
from dataplane.model.errors import Contradiction
from dataplane.model.flow import Flow, FlowKey, SocketKey, Verdict
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import NodeRow, Table

# Tables by the table whose places they count for.
_BESIDE = {
    "service_counters": "services",
    "backend_counters": "backends",
    "endpoint_counters": "endpoints",
    "endpoint_flows": "endpoints",
}
_VERDICTS = Table("verdicts")
_NO_VERDICT = Verdict(0, 0, 0, 0, None, 0, 0, 0)
_SPARE = 8  # entries that a question adds


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A map that programs write from packets, to be emptied."""

    fd: int
    key_size: int


class Scratch:
    """Maps and programs of one scene."""

    def __init__(self, bundle: Bundle, scene: Scene, programs: Collection[str]) -> None:
        """Load and fill. Raises BadEnvironment, CompileError."""
        self.scene = scene
        self._datapath: Datapath = load_unpinned(bundle, _sizes(bundle, scene), programs)
        self._maps = Maps(self._datapath)
        self._runner = Runner(self._datapath)
        # Whatever is evicted by use is what programs remember of packets.
        self._remembered = [
            _Remembered(self._datapath.maps[table], spec.key_size)
            for spec in bundle.maps
            if spec.type == bpf.MAP_LRU_HASH
            and (table := Table(spec.name, Family(spec.family) if spec.family else None))
        ]
        step = (codec(_VERDICTS).value_size + 7) // 8 * 8
        self._no_verdicts = bytes(step * bpf.possible_cpus())
        # Sockets of this namespace are the node's.
        self._cookie = netns.cookie()
        self._fill(scene)

    def refill(self, scene: Scene) -> None:
        """Another scene in place of this one, in maps of the size that the first one needed."""
        for table, rows in self.scene.tables.items():
            for key in rows:
                self._clear(table, key)
        self.scene = scene
        self._fill(scene)

    def _fill(self, scene: Scene) -> None:
        for rows in scene.tables.values():
            for key, row in rows.items():
                if isinstance(row, NodeRow):
                    rows[key] = replace(row, netns_cookie=self._cookie)
        steps = tuple(Upsert(table, list(rows.items())) for table, rows in scene.tables.items())
        refused = Writer(self._datapath).execute(Plan(steps))
        if refused:
            raise Contradiction("explain's copy of the maps", str(refused[0]))

    def _clear(self, table: Table, key: Key) -> None:
        fd, form = self._datapath.maps[table], codec(table)
        if bpf.map_info(fd).type in bpf.ARRAY_TYPES:
            bpf.map_update(fd, form.key(key), bytes(form.value_size))
        else:
            bpf.map_delete(fd, form.key(key))

    def close(self) -> None:
        self._datapath.close()

    @property
    def programs(self) -> Mapping[str, int]:
        """Programs by name, by fd."""
        return self._datapath.programs

    def run(
        self, program: str, frame: bytes, tunnel: tuple[IPAddress, int] | None = None
    ) -> Outcome:
        """One packet through one program, that has seen none before.

        Args:
            tunnel: outer source and VNI of a packet that was encapsulated; None for others.
        """
        if tunnel is not None:
            program = self._after_overlay(program, tunnel)
        self.forget()
        outcome = self._runner.run(program, frame, ifindex=DEVICE)
        if tunnel is not None and outcome.retval in (prelude.FAILED_SETUP, prelude.FAILED_CALL):
            raise Contradiction(program, f"the kernel took no tunnel key ({outcome.retval:#x})")
        return outcome

    def _after_overlay(self, program: str, tunnel: tuple[IPAddress, int]) -> str:
        """The program with one before it that sets the key: a test run has none."""
        name = f"{program} of {tunnel[0]} by VNI {tunnel[1]}"
        programs = self._datapath.programs
        if name not in programs:
            programs[name] = prelude.load(programs[program], Setup(tunnel=tunnel))
        return name

    def forget(self) -> None:
        """What programs remember of packets and sockets, and their last verdict."""
        for one in self._remembered:
            while (key := bpf.map_next_key(one.fd, None, one.key_size)) is not None:
                bpf.map_delete(one.fd, key)
        bpf.map_update(self._datapath.maps[_VERDICTS], bytes(4), self._no_verdicts)

    def said(self) -> Verdict:
        """The verdict since `forget`, on whatever CPU; all zero if there is none."""
        every: list[Verdict] = [_NO_VERDICT, *self._maps.per_cpu(_VERDICTS, 0)]
        return max(every, key=lambda one: one.action)

    def flow(self, family: Family, key: FlowKey) -> Flow | None:
        """The flow table's entry of a tuple, as the last run left it."""
        found: Flow | None = self._maps.get(Table("flows", family), key)
        return found

    def get(self, table: Table, key: Key | SocketKey) -> Any | None:
        return self._maps.get(table, key)

    def write(self, table: Table, key: Key, row: Row | None) -> None:
        """Set one entry of the maps, not of the scene."""
        fd, form = self._datapath.maps[table], codec(table)
        if row is None:
            bpf.map_delete(fd, form.key(key))
        else:
            bpf.map_update(fd, form.key(key), form.value(row))

    @contextmanager
    def changed(self, changes: Collection[Change]) -> Iterator[None]:
        """Scene and maps with other rows, for as long as a question is asked."""
        before = [(t, k, self.scene.tables.get(t, {}).get(k)) for t, k, _ in changes]
        self._apply(changes)
        try:
            yield
        finally:
            self._apply(before[::-1])

    def _apply(self, changes: Collection[Change]) -> None:
        for table, key, row in changes:
            rows = self.scene.tables.setdefault(table, {})
            if row is not None:
                rows[key] = row
            elif rows.pop(key, None) is None:
                continue
            self.write(table, key, row)


def _sizes(bundle: Bundle, scene: Scene) -> dict[str, int]:
    """Room for the scene's rows: places up to the last one used, or as many as there are."""
    sizes: dict[str, int] = {}
    arrays = {spec.name for spec in bundle.maps if spec.type in bpf.ARRAY_TYPES}
    for table, rows in scene.tables.items():
        need = len(rows)
        if table.name in arrays:
            need = 1 + max((key for key in rows if isinstance(key, int)), default=0)
        sizes[table.name] = max(sizes.get(table.name, 0), need + _SPARE)
    for name, of in _BESIDE.items():
        sizes[name] = sizes.get(of, 0)
    least = {spec.name: spec.max_entries for spec in bundle.maps}
    return {
        name: max(size, least[name])
        for name, size in sizes.items()
        if name in least and name not in FIXED_MAPS
    }
