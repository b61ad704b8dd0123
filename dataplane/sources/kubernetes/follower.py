# SPDX-License-Identifier: Apache-2.0
"""One kind, followed by a thread of its own: a list, then a watch, for ever.

    list (in pages) ─▶ watch from its resourceVersion ─▶ the server ends it: watch from the last
        ▲                     │                          event or bookmark
        └── 410: too old ─────┘   anything else that fails: wait, longer each time, and go on there

What is gone between a state that expired and the next list is told as deleted: nothing is
missed, and nothing is told twice. Must not know what becomes of the objects.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from dataplane.model.objects import Object, ObjectKey, Problem
from dataplane.sources.fields import Fault
from dataplane.sources.kubernetes.access import READ_SECONDS, Access, Answer
from dataplane.sources.kubernetes.failures import Expired, Failure, garbage, told
from dataplane.sources.kubernetes.resources import Resource, Seen, read_object


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what, in seconds; page is the number of objects asked for at once.

    A wait doubles from `first` to `longest` with each failure in a row, and is between half
    of that and all of it, so that many nodes don't come back at one time.
    """

    first: float = 0.5
    longest: float = 30.0
    longest_asked: float = 300.0  # at most this much of what a Retry-After says
    unknown: float = 600.0  # until a server that has no such kind may have it
    watch: float = 300.0  # a watch lasts this long to twice this long
    page: int = 200

    def wait(self, failures: int, asked: float) -> float:
        """Before the next try, after so many failures in a row."""
        most = min(self.longest, self.first * 2.0 ** min(failures - 1, 20))
        return max(random.uniform(most / 2, most), min(asked, self.longest_asked))


@dataclass(slots=True)
class Changes:
    """What is to be told of one kind: values by key, None for what is gone."""

    objects: dict[ObjectKey, Object | None] = field(default_factory=dict)
    problems: dict[ObjectKey, tuple[Problem, ...]] = field(default_factory=dict)


class Told(Protocol):
    """Who takes in what a follower sees; its methods are called by the follower's thread."""

    def changed(self, resource: Resource, changes: Changes) -> None: ...

    def complete(self, resource: Resource) -> None:
        """The first list is told in full."""

    def failing(self, resource: Resource, verb: str, why: str) -> None: ...

    def well(self, resource: Resource) -> None:
        """An end of failing."""


class Follower(threading.Thread):
    """Follows one kind until stopped."""

    def __init__(self, access: Access, resource: Resource, told: Told, patience: Patience) -> None:
        super().__init__(name=f"follow-{resource.name}", daemon=True)
        self._access, self._resource, self._told = access, resource, told
        self._patience = patience
        self._known: dict[ObjectKey, Object] = {}
        self._problems: dict[ObjectKey, tuple[Problem, ...]] = {}
        self._version = ""  # what the next watch goes on from; empty: list first
        self._verb = "list"
        self._failures = 0
        self._whole = False  # pages fail: ask for all at once
        self._stopping = threading.Event()
        self._answer: Answer | None = None

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._version:
                    self._list()
                self._watch()
            except Expired:
                self._version = ""
                self._failures += 1
                if self._failures > 1:
                    self._pause(self._patience.wait(self._failures - 1, 0))
            except Failure as failure:
                self._after(failure)

    def stop(self) -> None:
        """Come to an end, at once if it waits for the server."""
        self._stopping.set()
        answer = self._answer
        if answer is not None:
            answer.interrupt()

    def _after(self, failure: Failure) -> None:
        if self._stopping.is_set():
            return
        self._failures += 1
        resource = self._resource
        if failure.unknown and resource.optional:
            self._told.failing(
                resource,
                self._verb,
                f"{failure.why}: Kubernetes has it since 1.33; give `serviceCIDRs` in the config",
            )
            self._replace({})
            self._told.complete(resource)
            self._pause(self._patience.unknown)
            return
        self._told.failing(resource, self._verb, failure.why)
        if failure.credentials:
            self._access.renew()
        self._pause(self._patience.wait(self._failures, failure.after))

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    # -- list ----------------------------------------------------------------------

    def _list(self) -> None:
        """All objects, and the version to watch from."""
        self._verb = "list"
        found: dict[ObjectKey, Seen] = {}
        query = dict(self._resource.selectors)
        if not self._whole:
            query["limit"] = str(self._patience.page)
        while True:
            try:
                page = self._ask(query, READ_SECONDS).document()
            except Expired:
                # The state that the pages are of went before the last was read.
                self._whole = "continue" in query
                raise
            version, rest = self._read_page(page, found)
            if not rest:
                break
            query["continue"] = rest
        self._whole = False
        self._replace(found)
        self._version = version
        self._told.complete(self._resource)
        self._told.well(self._resource)

    def _read_page(self, page: dict[str, Any], found: dict[ObjectKey, Seen]) -> tuple[str, str]:
        """Take in a page; its version, and what asks for the next one."""
        items, meta = page.get("items"), page.get("metadata")
        version = meta.get("resourceVersion") if isinstance(meta, dict) else None
        if not isinstance(version, str) or not version or not isinstance(items, list | None):
            raise garbage(f"list of {self._resource.name}", "it has no items or no resourceVersion")
        for item in items or ():
            seen = self._read(item)
            found[seen.key] = seen
        rest = meta.get("continue") if isinstance(meta, dict) else None
        return version, rest if isinstance(rest, str) else ""

    def _replace(self, found: dict[ObjectKey, Seen]) -> None:
        changes = Changes()
        for key in [key for key in self._known.keys() | self._problems.keys() if key not in found]:
            self._take(Seen(key, None), changes)
        for seen in found.values():
            self._take(seen, changes)
        self._tell(changes)

    # -- watch ---------------------------------------------------------------------

    def _watch(self) -> None:
        """Follow changes until the server ends the watch, as it does after a time."""
        self._verb = "watch"
        lasting = random.uniform(self._patience.watch, 2 * self._patience.watch)
        query = {
            **self._resource.selectors,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(lasting)),
        }
        answer = self._ask(query, lasting + READ_SECONDS)
        self._told.well(self._resource)
        began, before = time.monotonic(), self._version
        self._answer = answer
        try:
            if self._stopping.is_set():
                return
            for event in answer.lines():
                self._event(event)
                self._failures = 0
        finally:
            self._answer = None
            answer.close()
        if self._version == before and time.monotonic() - began < self._patience.first:
            raise Failure("the server ends each watch at once")

    def _event(self, event: dict[str, Any]) -> None:
        kind, item = event.get("type"), event.get("object")
        if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR") or not isinstance(
            item, dict
        ):
            raise garbage(f"event of {self._resource.name}", f"its type is {ascii(kind)[:40]}")
        if kind == "ERROR":
            raise told(item.get("code"), item.get("message"), "watch", self._resource.name)
        meta = item.get("metadata")
        version = meta.get("resourceVersion") if isinstance(meta, dict) else None
        if not isinstance(version, str) or not version:
            raise garbage(f"event of {self._resource.name}", "it has no resourceVersion")
        if kind != "BOOKMARK":
            seen = self._read(item)
            changes = Changes()
            self._take(Seen(seen.key, None) if kind == "DELETED" else seen, changes)
            self._tell(changes)
        self._version = version

    # -- both ----------------------------------------------------------------------

    def _ask(self, query: dict[str, str], read: float) -> Answer:
        resource = self._resource
        return self._access.get(resource.path, query, self._verb, resource.name, read)

    def _read(self, item: object) -> Seen:
        try:
            return read_object(self._resource, item)
        except Fault as fault:
            raise garbage(f"object of {self._resource.name}", str(fault)) from fault

    def _take(self, seen: Seen, changes: Changes) -> None:
        """Note what is other than before."""
        key, value = seen.key, seen.value
        if value is None:
            if self._known.pop(key, None) is not None:
                changes.objects[key] = None
        elif self._known.get(key) != value:
            self._known[key] = value
            changes.objects[key] = value
        if seen.problems != self._problems.get(key, ()):
            changes.problems[key] = seen.problems
            self._problems.pop(key, None)
            if seen.problems:
                self._problems[key] = seen.problems

    def _tell(self, changes: Changes) -> None:
        if changes.objects or changes.problems:
            with contextlib.suppress(RuntimeError):  # the loop has ended; so do we
                self._told.changed(self._resource, changes)
