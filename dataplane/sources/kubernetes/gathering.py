# SPDX-License-Identifier: Apache-2.0
"""What all followers of a node see, put together into batches.

The first change of a quiet time goes at once. While more come close behind it they are
gathered: an object that changed ten times meanwhile is told once, as it is in the end.
Must not know HTTP or wait in threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence

from dataplane.model.objects import Batch, Object, ObjectKey, Problem
from dataplane.sources.kubernetes.access import Access
from dataplane.sources.kubernetes.follower import Changes, Follower, Patience
from dataplane.sources.kubernetes.resources import Resource, resources

# Silence that ends a gathering, and the time after which it ends without: a few changes close
# together wait for no more than the kernel's own jitter, many are a burst that goes on.
FEW = 8
FEW_SECONDS = 0.005
BURST_SECONDS = 0.05
IMPATIENCE_SECONDS = 0.5


async def watch(
    access: Access, node: str, *, service_cidrs: bool, patience: Patience | None = None
) -> AsyncGenerator[Batch, None]:
    """The objects of a cluster, then each change to them; never ends.

    Batches are synced once every kind has been listed. Before that they tell problems, and
    what was seen so far.

    Args:
        node: whose Pods are of interest.
        service_cidrs: whether ServiceCIDR objects are.
    """
    kinds = resources(node, service_cidrs=service_cidrs)
    gathering = Gathering(access.server, kinds, asyncio.get_running_loop())
    patience = patience or Patience()
    followers = [Follower(access, kind, gathering, patience) for kind in kinds]
    for follower in followers:
        follower.start()
    try:
        while True:
            await gathering.settled()
            yield gathering.take()
    finally:
        gathering.close()
        for follower in followers:
            follower.stop()


class Gathering:
    """Changes that were not told yet. Threads put them in, the loop takes them."""

    def __init__(
        self, server: str, kinds: Sequence[Resource], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._server, self._loop = server, loop
        self._lock = threading.Lock()
        self._pending: dict[ObjectKey, Object | None] = {}
        self._faults: dict[ObjectKey, tuple[Problem, ...]] = {}
        self._failing: dict[str, Problem] = {}
        self._incomplete = {kind.name for kind in kinds}
        self._something = asyncio.Event()
        self._woken = False  # or about to be: the loop has it
        self._newest = 0.0
        self._taken = 0.0
        self._closed = False

    # -- followers' threads ----------------------------------------------------------

    def changed(self, resource: Resource, changes: Changes) -> None:
        with self._lock:
            for key, value in changes.objects.items():
                self._pending[key] = value
            for key, problems in changes.problems.items():
                self._faults.pop(key, None)
                if problems:
                    self._faults[key] = problems
            if not self._incomplete or changes.problems:
                self._wake()

    def complete(self, resource: Resource) -> None:
        with self._lock:
            if self._incomplete:
                self._incomplete.discard(resource.name)
                if not self._incomplete:
                    self._wake()

    def failing(self, resource: Resource, verb: str, why: str) -> None:
        problem = Problem(f"API server {self._server}", f"{verb} {resource.name}", why)
        with self._lock:
            if self._failing.get(resource.name) != problem:
                self._failing[resource.name] = problem
                self._wake()

    def well(self, resource: Resource) -> None:
        with self._lock:
            if self._failing.pop(resource.name, None) is not None:
                self._wake()

    def _wake(self) -> None:
        self._newest = self._loop.time()
        if not self._closed and not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._something.set)

    # -- the loop --------------------------------------------------------------------

    async def settled(self) -> None:
        """Wait for something to tell: the first thing at once, others when no more come."""
        await self._something.wait()
        began = self._loop.time()
        if began - self._taken >= FEW_SECONDS:
            return
        while True:
            silence = FEW_SECONDS if len(self._pending) <= FEW else BURST_SECONDS
            until = min(self._newest + silence, began + IMPATIENCE_SECONDS)
            if (left := until - self._loop.time()) <= 0:
                return
            await asyncio.sleep(left)

    def take(self) -> Batch:
        with self._lock:
            pending, self._pending = self._pending, {}
            self._something.clear()
            self._woken = False
            self._taken = self._loop.time()
            problems = [p for found in self._faults.values() for p in found]
            return Batch(
                upserts=tuple(value for value in pending.values() if value is not None),
                deletes=tuple(key for key, value in pending.items() if value is None),
                synced=not self._incomplete,
                problems=tuple(sorted([*problems, *self._failing.values()])),
            )

    def close(self) -> None:
        with self._lock:
            self._closed = True
