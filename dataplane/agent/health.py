# SPDX-License-Identifier: Apache-2.0
"""The node's health over HTTP: a port for each Service that has one, and /healthz, /livez.

What is answered is made of what the agent knows at that moment (core.health says how), so
nothing has to be told to a server when endpoints change. A port that is taken is named as a
problem, with its process, and tried again. Clients may be anybody who reaches the node: they
share a bounded number of connections (agent.crowd). Must not decide what is healthy.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from aiohttp import web

from dataplane.agent.crowd import MOST_CONNECTIONS, PATIENCE_SECONDS, WAITING, Crowd, Door
from dataplane.core.desired import Desired
from dataplane.core.health import (
    Answer,
    Listener,
    Liveness,
    health_listeners,
    local_endpoints,
    node_healthz,
    node_livez,
    service_health,
)
from dataplane.kernel import ports
from dataplane.model.errors import TableFull
from dataplane.model.net import Family, IPAddress
from dataplane.model.objects import Node, Problem, Service

RETRY_SECONDS = 5.0
_EVERY: Mapping[Family, IPAddress] = {
    Family.V4: IPv4Address("0.0.0.0"),
    Family.V6: IPv6Address("::"),
}
# What an answer may take to be sent when its port is closed.
_CLOSING_SECONDS = 0.5
_QUIET = logging.Logger("podlane.health", logging.CRITICAL + 1)  # a client's nonsense is its own


class Vitals:
    """What the answers of one node are made of. The datapath keeps it, the servers ask it."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired
        self.attached = True  # when it was last looked: programs are where they were put
        self._own: Node | None = None
        self._whole, self._refused = False, False
        self._updated = datetime.now(UTC)

    def written(self, whole: bool, refused: Iterable[TableFull]) -> None:
        """A plan was executed.

        Args:
            whole: every source has synced.
            refused: entries that the kernel took no more. They are not tried again before
                the next start, so the datapath stays behind till then. A name serves nobody.
        """
        self._whole = whole
        self._refused |= any(not full.what.startswith("names:") for full in refused)
        if self.healthy:
            self._updated = datetime.now(UTC)

    def seen(self, own: Node | None) -> None:
        """What the source says of this node. One that is gone counts as it was last, as
        kube-proxy has it: it does not want traffic again because it was deleted at last."""
        self._own = own or self._own

    @property
    def healthy(self) -> bool:
        """Whether the datapath is what the objects say."""
        return self._whole and self.attached and not self._refused

    def of_service(self, key: tuple[str, str], family: Family) -> Answer:
        """What a Service's health port says."""
        pieces = self.desired.slices_of(key)
        count = local_endpoints(pieces, family, self.desired.settings.node)
        return service_health(*key, count, self.healthy)

    def of_node(self, path: str) -> Answer | None:
        """What the node's own health port says; None for a page that it has not."""
        now = datetime.now(UTC)
        live = Liveness(self.healthy, self._updated, self.desired.settings.families)
        if path == "/healthz":
            return node_healthz(live, self._own is not None and self._own.deleting, now)
        if path == "/livez":
            return node_livez(live, now)
        return None


class _Owner(NamedTuple):
    """Whose answers a listener gives: a Service's, or the node's (empty)."""

    namespace: str = ""
    name: str = ""

    @property
    def what(self) -> str:
        return f"Service {self.namespace}/{self.name}" if self.name else "node health"

    def problem(self, reason: str) -> Problem:
        if self.name:
            return Problem(self.what, "spec.healthCheckNodePort", reason)
        return Problem(self.what, "healthzAddress", reason)


@dataclass(slots=True)
class _Open:
    """A listener that answers."""

    owner: _Owner
    runner: web.AppRunner
    door: Door


class HealthServers:
    """The servers of one node.

    Args:
        vitals: where answers come from.
        node_address: address and port of /healthz and /livez; an unspecified address is
            every one of the node's families.
        most: connections at one time, of all ports together.
        patience: seconds that a connection may be without an answer.
    """

    def __init__(
        self,
        vitals: Vitals,
        node_address: tuple[IPAddress, int],
        most: int = MOST_CONNECTIONS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._vitals = vitals
        self._crowd = Crowd(most, patience)
        self._node_address = node_address
        self._open: dict[Listener, _Open] = {}
        self._failed: dict[Listener, tuple[_Owner, OSError]] = {}
        self._holders: dict[Listener, str] = {}
        self._looking: asyncio.Task[None] | None = None
        self._contested: tuple[Problem, ...] = ()
        self._served: Mapping[tuple[str, str], Service] = {}
        self._settings: object = None
        self._next = 0.0
        self._ending: set[asyncio.Task[None]] = set()

    async def settle(self) -> None:
        """Open and close what is to be; quick if nothing changed, for the datapath waits for it."""
        desired = self._vitals.desired
        served, settings = dict(desired.health_checked()), desired.settings
        due = self._failed and time.monotonic() >= self._next
        if served == self._served and settings == self._settings and not due:
            return
        self._served, self._settings = served, settings
        wanted = self._wanted()
        for listener in [one for one in self._open if wanted.get(one) != self._open[one].owner]:
            self._close(listener)
        self._failed = {}
        for listener, owner in wanted.items():
            if listener not in self._open:
                try:
                    await self._try(listener, owner)
                except OSError as refusal:
                    self._failed[listener] = owner, refusal
        self._look_for_holders()
        self._next = time.monotonic() + RETRY_SECONDS

    def wake(self) -> float | None:
        """When `settle` wants to be called though nothing changed (time.monotonic)."""
        return self._next if self._failed else None

    def problems(self) -> tuple[Problem, ...]:
        """Ports that do not answer. Who has one that is taken is known some time after `settle`."""
        failed = (
            owner.problem(f"{_place(at)} {self._why(at, refusal)}")
            for at, (owner, refusal) in self._failed.items()
        )
        return (*self._contested, *failed)

    async def close(self) -> None:
        """Answer no more; a look for who has a port comes to its end, as its thread can't be ended."""
        for listener in list(self._open):
            self._close(listener)
        looking = [self._looking] if self._looking else []
        await asyncio.gather(*self._ending, *looking)

    # -- who answers where ---------------------------------------------------------

    def _wanted(self) -> dict[Listener, _Owner]:
        """The node's own port first; of Services with one port the older one has it."""
        settings = self._vitals.desired.settings
        address, port = self._node_address
        wanted: dict[Listener, _Owner] = {}
        if not address.is_unspecified:
            wanted[Listener(address, port)] = _Owner()
        else:
            for family in settings.families:
                wanted[Listener(_EVERY[family], port)] = _Owner()
        contested = []
        for (namespace, name), service in sorted(
            self._served.items(), key=lambda pair: (pair[1].created, pair[0])
        ):
            owner = _Owner(namespace, name)
            for listener in health_listeners(service, settings):
                other = wanted.setdefault(listener, owner)
                if other != owner:
                    contested.append(owner.problem(f"{_place(listener)} is taken by {other.what}"))
        self._contested = tuple(contested)
        return wanted

    def _answering(self, listener: Listener, owner: _Owner) -> Callable[[str], Answer | None]:
        if not owner.name:
            return self._vitals.of_node
        key = owner.namespace, owner.name
        return lambda _: self._vitals.of_service(key, listener.family)

    # -- who has a port that is taken ------------------------------------------------

    def _look_for_holders(self) -> None:
        """Once a taking, one look at a time; those that were refused meanwhile wait for a retry."""
        taken = {at for at, (_, refusal) in self._failed.items() if _is_taken(refusal)}
        self._holders = {at: who for at, who in self._holders.items() if at in taken}
        new = taken - self._holders.keys()
        if new and self._looking is None:
            self._looking = asyncio.create_task(self._look(new))

    async def _look(self, new: set[Listener]) -> None:
        """In a thread, and nobody waits for it: it reads every descriptor of every process."""
        try:
            found = await asyncio.to_thread(ports.listeners, {at.port for at in new})
        except (OSError, ValueError, RuntimeError):
            # A process may have any bytes for its name, and there may be no thread to be had.
            found = {}
        self._holders |= {at: found.get(at.port, "") for at in new & self._failed.keys()}
        self._looking = None

    def _why(self, at: Listener, refusal: OSError) -> str:
        if not _is_taken(refusal):
            return str(refusal.strerror)
        holder = self._holders.get(at)
        return f"is taken by {holder}" if holder else "is taken"

    # -- sockets -------------------------------------------------------------------

    async def _try(self, listener: Listener, owner: _Owner) -> None:
        """Raises OSError: the port cannot be had."""
        bound = _bind(listener)
        runner = _runner(self._answering(listener, owner), self._crowd)
        await runner.setup()
        assert runner.server is not None
        door = Door(bound, runner.server, self._crowd)
        self._open[listener] = _Open(owner, runner, door)

    def _close(self, listener: Listener) -> None:
        """The port is free at once; who is still being answered must not hold up the datapath."""
        opened = self._open.pop(listener)
        opened.door.close()
        ending = asyncio.create_task(opened.runner.cleanup())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


def _is_taken(refusal: OSError) -> bool:
    return refusal.errno == errno.EADDRINUSE


def _place(listener: Listener) -> str:
    host = str(listener.address)
    return (
        f"[{host}]:{listener.port}" if listener.family is Family.V6 else f"{host}:{listener.port}"
    )


def _bind(listener: Listener) -> socket.socket:
    """A socket that listens. Raises OSError."""
    inet6 = listener.family is Family.V6
    made = socket.socket(socket.AF_INET6 if inet6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if inet6:  # else "::" would take IPv4's port as well
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((str(listener.address), listener.port))
        made.listen(WAITING)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _runner(answering: Callable[[str], Answer | None], crowd: Crowd) -> web.AppRunner:
    """An HTTP server that gives one answer to every method; it says nothing of itself."""

    async def handle(request: web.Request) -> web.Response:
        await crowd.turn()
        if request.transport is not None:
            crowd.answered(request.transport)
        answer = answering(request.path)
        if answer is None:
            # As Go's net/http, which kube-proxy answers with.
            headers = {"Content-Type": "text/plain; charset=utf-8"}
            headers["X-Content-Type-Options"] = "nosniff"
            return web.Response(status=404, headers=headers, body=b"404 page not found\n")
        return web.Response(status=answer.status, headers=answer.headers, body=answer.text.encode())

    async def unsigned(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.popall("Server", None)

    app = web.Application()
    app.on_response_prepare.append(unsigned)
    app.router.add_route("*", "/{path:.*}", handle)
    return web.AppRunner(
        app,
        access_log=None,
        logger=_QUIET,
        shutdown_timeout=_CLOSING_SECONDS,
        # Whose connection has ended waits no more for its turn: else questions could be left
        # there without number, and no bound of connections would count them.
        handler_cancellation=True,
    )
