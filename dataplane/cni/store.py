# SPDX-License-Identifier: Apache-2.0
"""What was given to which pod: SQLite in the state folder, so that it outlives the agent.

An attachment is written before the kernel is touched and marked done afterwards, so that
whatever a crash leaves behind is known. Must not touch the kernel or choose addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from dataplane.cni.runtime import Bandwidth, HostPort
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, IPAddress, Protocol

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
CREATE TABLE IF NOT EXISTS host_ports (
    container_id TEXT NOT NULL,
    interface TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    host_port INTEGER NOT NULL,
    host_ip TEXT NOT NULL,
    container_port INTEGER NOT NULL,
    PRIMARY KEY (protocol, host_port, host_ip),
    FOREIGN KEY (container_id, interface)
        REFERENCES attachments (container_id, interface) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bandwidths (
    container_id TEXT NOT NULL,
    interface TEXT NOT NULL,
    ingress_rate INTEGER NOT NULL,
    ingress_burst INTEGER NOT NULL,
    egress_rate INTEGER NOT NULL,
    egress_burst INTEGER NOT NULL,
    PRIMARY KEY (container_id, interface),
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
    host_ports: tuple[HostPort, ...] = ()
    bandwidth: Bandwidth | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.container_id, self.interface


class _Given:
    """Addresses that pods hold: asked for one by one, for a node may have thousands."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __contains__(self, address: object) -> bool:
        asked = self._db.execute("SELECT 1 FROM addresses WHERE address = ?", (str(address),))
        return asked.fetchone() is not None


class Store:
    """The state folder's database; one agent at a time has it open.

    `fresh`: nothing is known from before. `damaged`: where a database that can't be read
    was moved to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fresh = not path.exists()
        self.damaged: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._open()
            except sqlite3.DatabaseError as failure:
                if isinstance(failure, sqlite3.OperationalError):
                    raise  # a full or read-only folder: the database itself may be whole
                self._move_aside()
                self._open()
        except (OSError, sqlite3.Error) as failure:
            raise self._refusal(failure) from failure

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            (form,) = self._db.execute("PRAGMA user_version").fetchone()
            if form > _FORM:
                raise BadEnvironment(
                    f"state {self._path}", "was written by a newer podlane", "use that version"
                )
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_FORM}")
        except BaseException:
            self._db.close()
            raise

    def _move_aside(self) -> None:
        self.damaged = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
        self._path.rename(self.damaged)
        for end in ("-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)
        self.fresh = True

    def _refusal(self, failure: Exception) -> BadEnvironment:
        return BadEnvironment(
            f"state {self._path}",
            str(failure),
            "see that its folder is writable and has room",
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as failure:
            raise self._refusal(failure) from failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # -- attachments -----------------------------------------------------------

    def attachments(self) -> list[Attachment]:
        """All, by container and interface."""
        return self._select("", ())

    def get(self, container_id: str, interface: str) -> Attachment | None:
        found = self._select(" WHERE container_id = ? AND interface = ?", (container_id, interface))
        return found[0] if found else None

    def _select(self, where: str, values: tuple[str, ...]) -> list[Attachment]:
        given: dict[tuple[str, str], list[IPAddress]] = {}
        ports: dict[tuple[str, str], list[HostPort]] = {}
        limits: dict[tuple[str, str], Bandwidth] = {}
        try:
            for address, *key in self._db.execute(f"SELECT * FROM addresses{where}", values):
                given.setdefault((key[0], key[1]), []).append(ip_address(address))
            for row in self._db.execute(f"SELECT * FROM host_ports{where}", values):
                host_ip = ip_address(row[4]) if row[4] else None
                one = HostPort(Protocol(row[2]), row[3], row[5], host_ip)
                ports.setdefault((row[0], row[1]), []).append(one)
            for row in self._db.execute(f"SELECT * FROM bandwidths{where}", values):
                limits[row[0], row[1]] = Bandwidth(*row[2:])
            rows = self._db.execute(
                f"SELECT * FROM attachments{where} ORDER BY 1, 2", values
            ).fetchall()
        except sqlite3.Error as failure:
            raise self._refusal(failure) from failure
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
                host_ports=tuple(ports.get((row[0], row[1]), ())),
                bandwidth=limits.get((row[0], row[1])),
            )
            for row in rows
        ]

    @property
    def given(self) -> Container[IPAddress]:
        """The addresses that are given out; each question is a look into the store."""
        return _Given(self._db)

    def endpoint_ids(self) -> set[int]:
        """All that are in use."""
        return {row[0] for row in self._db.execute("SELECT endpoint_id FROM attachments")}

    def port_holder(self, wanted: HostPort) -> str | None:
        """The pod that holds a host port which clashes with this one."""
        rows = self._db.execute(
            "SELECT host_ip, pod FROM host_ports JOIN attachments USING (container_id, interface)"
            " WHERE protocol = ? AND host_port = ?",
            (int(wanted.protocol), wanted.host_port),
        )
        for host_ip, pod in rows:
            other = HostPort(
                wanted.protocol, wanted.host_port, 0, ip_address(host_ip) if host_ip else None
            )
            if wanted.clashes(other):
                return str(pod)
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
        with self._writing():
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
                "INSERT INTO host_ports VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        *new.key,
                        int(port.protocol),
                        port.host_port,
                        str(port.host_ip or ""),
                        port.container_port,
                    )
                    for port in new.host_ports
                ],
            )
            if new.bandwidth is not None:
                self._db.execute(
                    "INSERT INTO bandwidths VALUES (?, ?, ?, ?, ?, ?)",
                    (*new.key, *dataclasses.astuple(new.bandwidth)),
                )
            self._db.executemany(
                "INSERT OR REPLACE INTO last VALUES (?, ?)",
                [(address.version, str(address)) for address in new.addresses],
            )

    def done(self, one: Attachment) -> None:
        """The pod's wiring stands."""
        with self._writing():
            self._db.execute(
                "UPDATE attachments SET done = 1 WHERE container_id = ? AND interface = ?", one.key
            )

    def remove(self, one: Attachment) -> None:
        """Forget an attachment and free its addresses."""
        with self._writing():
            self._db.execute(
                "DELETE FROM attachments WHERE container_id = ? AND interface = ?", one.key
            )

    def writable(self) -> None:
        """Raises BadEnvironment if nothing could be written now."""
        with self._writing():
            self._db.execute(f"PRAGMA user_version = {_FORM}")  # a page, as it is

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
