# SPDX-License-Identifier: Apache-2.0
"""The agent's own rows: read as they are, written through the one writer, compared first.

Must not keep a copy: what the maps hold is the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dataplane.core.plan import Delete, Key, Plan, Row, Upsert, diff
from dataplane.kernel import bpf
from dataplane.kernel.loader import Datapath
from dataplane.kernel.maps import Maps, Writer
from dataplane.model.errors import TableFull
from dataplane.model.rows import Table


class Tables:
    """Tables of this node's maps that the agent itself fills."""

    def __init__(self, datapath: Datapath, writer: Writer) -> None:
        self._datapath, self._maps, self._writer = datapath, Maps(datapath), writer
        self._sizes: dict[int, int] = {}

    def get(self, table: Table, key: Key) -> Row | None:
        row: Row | None = self._maps.get(table, key)
        return row

    def items(self, table: Table) -> Iterable[tuple[Key, Row]]:
        return self._maps.items(table)

    def size(self, table: Table) -> int:
        """How many entries the table may have."""
        fd = self._datapath.maps[table]
        if fd not in self._sizes:
            self._sizes[fd] = bpf.map_info(fd).max_entries
        return self._sizes[fd]

    def put(self, table: Table, rows: Mapping[Key, Row]) -> None:
        """Write the rows that are not as given.

        Raises:
            TableFull: the map has no room for one of them; the others are written.
        """
        new = [(key, row) for key, row in rows.items() if self.get(table, key) != row]
        if new:
            refused = self._writer.execute(Plan((Upsert(table, new),)))
            if refused:
                raise refused[0]

    def drop(self, table: Table, keys: Sequence[Key]) -> None:
        """Delete entries, or zero places of an array."""
        if keys:
            self._writer.execute(Plan((Delete(table, keys),)))

    def settle(self, table: Table, rows: Mapping[Key, Row]) -> tuple[TableFull, ...]:
        """Make a whole table hold these rows; what found no room."""
        plan = Plan(diff(table, rows, dict(self.items(table))))
        return self._writer.execute(plan) if plan else ()
