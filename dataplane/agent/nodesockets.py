# SPDX-License-Identifier: Apache-2.0
"""The node's own sockets: programs at their system calls, and an end to those of gone backends.

A socket that is connected asks nobody again, so the programs remember which backend it
got; when that one is gone, the agent closes the socket, which its owner sees at once.
Must not decide which backends are served (core) nor touch sockets of other namespaces.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from dataplane.abi.codec import codec
from dataplane.abi.layout import abi
from dataplane.agent.config import Config
from dataplane.agent.log import log
from dataplane.agent.tables import Tables
from dataplane.core.plan import BACKENDS, Delete, Grace, Plan
from dataplane.kernel import bpf, sockets
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.loader import Datapath
from dataplane.kernel.sockdiag import SockDiag
from dataplane.model.constants import BackendFlag
from dataplane.model.errors import PodlaneError
from dataplane.model.flow import SocketFlow
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.objects import Problem
from dataplane.model.rows import BackendRow, Table

SOCKETS = {family: Table("sockets", family) for family in Family}
# A program that read the set before it changed may end after the first look, and its socket
# is found only once its connect() has gone on from there.
LOOKS = (0.0, 0.1, 0.2, 0.4)
# A look that failed is taken again: a datagram's owner may talk to a gone backend for ever.
RETRY_SECONDS = 5.0
# What becomes of sockets that this kernel does not close.
NOT_CLOSED = {
    Protocol.TCP: "the node's own connections to a removed backend end by their own time-outs",
    Protocol.UDP: "the node's sockets that are connected to a removed backend must be connected anew",
}


def not_closed(diag: SockDiag) -> dict[Protocol, Problem]:
    """The protocols whose sockets this kernel does not close on request, and why."""
    found = {}
    for protocol, so in NOT_CLOSED.items():
        option = diag.missing(protocol)
        if option:
            verb = "closes" if option == "INET_DIAG_DESTROY" else "finds"
            why = f"this kernel {verb} no {protocol.name} sockets on request: {so}"
            found[protocol] = Problem("kernel", f"CONFIG_{option}", why)
    return found


@dataclass(frozen=True, slots=True)
class _Left:
    """A record of a socket whose backend is gone."""

    family: Family
    key: bytes
    flow: SocketFlow


class NodeSockets:
    """Programs at the system calls of one node's processes, and their sockets.

    Raises BadEnvironment when made, if there is no cgroup2 to put programs on.
    """

    def __init__(self, config: Config, bundle: Bundle, datapath: Datapath, tables: Tables) -> None:
        self._bpffs = config.bpffs_dir
        self._root = config.bpffs_dir / f"v{abi(Family.V4).constant('ABI_VERSION')}"
        self._places = sockets.places(bundle)
        self._programs = datapath.programs
        self._maps = {family: datapath.maps[table] for family, table in SOCKETS.items()}
        self._tables = tables
        self._wanted = asyncio.Event()
        self._diag = SockDiag()
        self.cgroup = sockets.find_cgroup(config.cgroup_root)
        self._not_closed = not_closed(self._diag)
        self.problems = tuple(self._not_closed.values())

    def attach(self, undo: ExitStack) -> Iterator[str]:
        """Put the programs in place, and let go of other versions'; words on what moved.

        Raises:
            BadEnvironment: the kernel refuses.
        """
        if not (self._root / sockets.FOLDER).exists():
            undo.callback(sockets.detach, self._bpffs)
        for name in sockets.attach(self._places, self._programs, self.cgroup, self._root):
            yield f"{name} on {self.cgroup}"
        for path in sockets.drop_other_versions(self._root):
            yield f"{path} removed, of another version"

    def care(self) -> Iterator[str]:
        """Put back what somebody took away."""
        if sockets.wrong(self._places, self._programs, self.cgroup, self._root):
            with ExitStack() as undo:
                yield from self.attach(undo)
                undo.pop_all()

    # ---- sockets of gone backends ----
    def written(self, plan: Plan) -> None:
        """A plan was executed: if a backend may be sent less than before, look for its sockets."""
        for step in plan.steps:
            if isinstance(step, Grace) or step.table not in BACKENDS.values():
                continue
            if isinstance(step, Delete) or any(
                isinstance(row, BackendRow) and not row.flags & BackendFlag.SERVING
                for _, row in step.rows
            ):
                self._wanted.set()

    async def run(self) -> None:
        """Close sockets whose backend is gone, until cancelled; looks once at the start."""
        self._wanted.set()
        told = ""
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                try:
                    await self._close_gone()
                    told = ""
                except (OSError, PodlaneError) as failure:  # BpfError is an OSError
                    if str(failure) != told:
                        told = str(failure)
                        log("sockets_not_closed", why=told, tried_again_every=RETRY_SECONDS)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wanted.wait(), RETRY_SECONDS)
                    self._wanted.set()
        finally:
            self._diag.close()

    async def _close_gone(self) -> None:
        """Raises OSError: what the last look was refused. An earlier one's is made good by it."""
        total, refused = 0, None
        for number, pause in enumerate(LOOKS):
            await asyncio.sleep(pause)
            left = [one async for one in self._gone()]
            if not left and number:
                refused = None
                break
            closed, refused = await self._close(left)
            total += closed
        if total:
            log("sockets_closed", sockets=total, why="their backend is gone")
        if refused is not None:
            raise refused
        # No socket has them: a connection that failed, or is older than the agent's look.
        for one in left:
            self._forget(one)

    async def _close(self, left: list[_Left]) -> tuple[int, OSError | None]:
        """Close what is found; how many, and what was refused, which keeps no other.

        Their records stay until then: without it a socket would for a moment be called what
        its backend is. Of a socket that is not connected a record says nothing any more.
        """
        wanted: dict[tuple[IPAddress, int, int], dict[int, _Left]] = {}
        for one in left:
            if one.flow.protocol in self._not_closed:
                continue
            peer = one.flow.backend, one.flow.backend_port, one.flow.protocol
            (cookie,) = struct.unpack("=Q", one.key)
            wanted.setdefault(peer, {})[cookie] = one
        closed, refused = 0, None
        for peer, of_peer in wanted.items():
            try:
                of_this = list(self._diag.connected_to(*peer))
            except OSError as error:
                of_this, refused = [], error
            for found in of_this:
                record = of_peer.get(found.cookie)
                # Its owner may have connected it anew: to the same pod, by another Service.
                if record is not None and self._stands(record):
                    try:
                        closed += self._diag.destroy(found)
                    except OSError as error:
                        refused = error
            await asyncio.sleep(0)
        return closed, refused

    def _stands(self, one: _Left) -> bool:
        """False if its socket has ended, or connected anew since it was read."""
        fd, read = self._maps[one.family], codec(SOCKETS[one.family])
        now = bpf.map_lookup(fd, one.key, read.value_size)
        return now is not None and read.parse_value(now) == one.flow

    def _forget(self, one: _Left) -> None:
        if self._stands(one):
            bpf.map_delete(self._maps[one.family], one.key)

    async def _gone(self) -> AsyncIterator[_Left]:
        """Records whose backend may not be sent any more what the socket sends."""
        for family, fd in self._maps.items():
            read = codec(SOCKETS[family])
            size, marks = read.value_size, _marks(family)
            holds: dict[tuple[int, ...], bool] = {}
            for keys, values, _ in bpf.map_batches(fd, read.key_size, size):
                for place, what in enumerate(marks.iter_unpack(values)):
                    if what not in holds:
                        holds[what] = self._holds(family, *what)
                    if not holds[what]:
                        flow = read.parse_value(values[place * size : (place + 1) * size])
                        yield _Left(family, keys[place * 8 : (place + 1) * 8], flow)
                await asyncio.sleep(0)

    def _holds(self, family: Family, generation: int, backend_id: int, protocol: int) -> bool:
        """The rule of service_backend_holds (bpf/service.h)."""
        row = self._tables.get(BACKENDS[family], backend_id)
        needed = BackendFlag.LISTED if protocol == Protocol.TCP else BackendFlag.SERVING
        return (
            isinstance(row, BackendRow)
            and row.generation == generation
            and bool(row.flags & needed)
        )


def _marks(family: Family) -> struct.Struct:
    """generation, backend_id and protocol of a packed socket_flow: a row takes ten times as long."""
    layout = abi(family).struct("socket_flow")
    letters = {"generation": "Q", "backend_id": "I", "protocol": "B"}
    form, end = "=", 0
    for field in layout.fields:
        if field.name in letters:
            form += f"{field.offset - end}x{letters[field.name]}"
            end = field.offset + field.size
    return struct.Struct(f"{form}{layout.size - end}x")
