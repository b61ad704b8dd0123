# SPDX-License-Identifier: Apache-2.0
"""What was given to which pod: SQLite in the state folder, so that it outlives the agent.

An attachment is written before the kernel is touched and marked done afterwards, so that
whatever a crash leaves behind is known. Must not touch the kernel or choose addresses.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, IPAddress

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attachments (
    container_id TEXT NOT NULL,
    interface TEXT NOT NULL,
    veth TEXT NOT NULL UNIQUE,
    endpoint_id INTEGER NOT NULL UNIQUE,
    mac BLOB NOT NULL,
    netns TEXT NOT NULL,
    pod TEXT NOT NULL,
    mtu INTEGER NOT NULL,
    done INTEGER NOT NULL,
    PRIMARY KEY (container_id, interface)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS addresses (
    address TEXT PRIMARY KEY,
    container_id TEXT NOT NULL,
    interface TEXT NOT NULL,
    FOREIGN KEY (container_id, interface)
        REFERENCES attachments (container_id, interface) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last (
    family INTEGER PRIMARY KEY,
    address TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS before (
    what TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    ours TEXT NOT NULL
) WITHOUT ROWID;
"""
_FORM = 1


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of one pod. mac is the pod side's; `pod` is namespace/name."""

    container_id: str
    interface: str
    veth: str
    endpoint_id: int
    mac: bytes
    netns: str
    pod: str
    mtu: int
    addresses: tuple[IPAddress, ...]
    done: bool = True


class Store:
    """The state folder's database; one agent at a time has it open."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            (form,) = self._db.execute("PRAGMA user_version").fetchone()
            if form > _FORM:
                raise BadEnvironment(
                    f"state {path}", "was written by a newer podlane", "use that version"
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_FORM}")
        except (OSError, sqlite3.Error) as failure:
            raise BadEnvironment(f"state {path}", str(failure)) from failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # -- attachments -----------------------------------------------------------

    def attachments(self) -> list[Attachment]:
        """All, by container and interface."""
        given: dict[tuple[str, str], list[IPAddress]] = {}
        for address, container_id, interface in self._db.execute("SELECT * FROM addresses"):
            given.setdefault((container_id, interface), []).append(ip_address(address))
        return [
            Attachment(
                container_id=row[0],
                interface=row[1],
                veth=row[2],
                endpoint_id=row[3],
                mac=row[4],
                netns=row[5],
                pod=row[6],
                mtu=row[7],
                addresses=tuple(
                    sorted(given.get((row[0], row[1]), ()), key=lambda item: item.version)
                ),
                done=bool(row[8]),
            )
            for row in self._db.execute("SELECT * FROM attachments ORDER BY 1, 2")
        ]

    def get(self, container_id: str, interface: str) -> Attachment | None:
        for one in self.attachments():
            if (one.container_id, one.interface) == (container_id, interface):
                return one
        return None

    def holder(self, address: IPAddress) -> str | None:
        """The pod that an address is given to."""
        row = self._db.execute(
            "SELECT pod FROM addresses JOIN attachments USING (container_id, interface)"
            " WHERE address = ?",
            (str(address),),
        ).fetchone()
        return row[0] if row else None

    def last(self, family: Family) -> IPAddress | None:
        """The address of a family that was given last."""
        row = self._db.execute("SELECT address FROM last WHERE family = ?", (family,)).fetchone()
        return ip_address(row[0]) if row else None

    def add(self, new: Attachment) -> None:
        """Write an attachment with its addresses, all or nothing."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT INTO attachments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    new.container_id,
                    new.interface,
                    new.veth,
                    new.endpoint_id,
                    new.mac,
                    new.netns,
                    new.pod,
                    new.mtu,
                    new.done,
                ),
            )
            self._db.executemany(
                "INSERT INTO addresses VALUES (?, ?, ?)",
                [(str(address), new.container_id, new.interface) for address in new.addresses],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO last VALUES (?, ?)",
                [(address.version, str(address)) for address in new.addresses],
            )

    def done(self, one: Attachment) -> None:
        """The pod's wiring stands."""
        self._db.execute(
            "UPDATE attachments SET done = 1 WHERE container_id = ? AND interface = ?",
            (one.container_id, one.interface),
        )

    def remove(self, one: Attachment) -> None:
        """Forget an attachment and free its addresses."""
        self._db.execute(
            "DELETE FROM attachments WHERE container_id = ? AND interface = ?",
            (one.container_id, one.interface),
        )

    # -- what the node had before podlane --------------------------------------

    def remember(self, what: str, before: str, ours: str) -> None:
        """Keep how something was before podlane changed it to `ours`; the first word stays."""
        self._db.execute(
            "INSERT INTO before VALUES (?, ?, ?)"
            " ON CONFLICT (what) DO UPDATE SET ours = excluded.ours",
            (what, before, ours),
        )

    def remembered(self) -> list[tuple[str, str, str]]:
        """(what, how it was, what podlane made of it), sorted."""
        return list(self._db.execute("SELECT what, value, ours FROM before ORDER BY what"))
