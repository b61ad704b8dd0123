# SPDX-License-Identifier: Apache-2.0
"""One copy of maps and programs for all tests of explain, filled anew for each object set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dataplane.agent import config
from dataplane.explain import calls, trials
from dataplane.explain.answers import Explained, answer
from dataplane.explain.ask import Asker
from dataplane.explain.hops import Hops
from dataplane.explain.manifests import Staged, make_scene
from dataplane.explain.questions import Question, question
from dataplane.explain.scene import Scene
from dataplane.explain.scratch import Scratch
from dataplane.kernel import netns
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.compiler import compile_bundle
from dataplane.model.net import Family
from dataplane.sources.manifests import read
from tests.program.explain import sets

T = TypeVar("T")
Explain = Callable[..., Explained]


class KeptHops(Hops):
    """Copies of other nodes that outlive a question, or each would be verified anew for it."""

    def __init__(
        self, bundle: Bundle, scenes: Callable[[str], Scene] | None, idle: list[Scratch]
    ) -> None:
        super().__init__(bundle, scenes)
        self._idle = idle

    def close(self) -> None:
        self._idle += [copy for copy in self._copies.values() if isinstance(copy, Scratch)]
        self._copies.clear()

    def _load(self, scene: Scene) -> Scratch:
        if not self._idle:
            return super()._load(scene)
        copy = self._idle[-1]
        copy.refill(scene)
        return self._idle.pop()


class Copy:
    """Maps, programs and a calling process, all in one thread with a namespace of its own."""

    def __init__(self, bundle: Bundle, undo: ExitStack) -> None:
        self._bundle = bundle
        self._thread = undo.enter_context(ThreadPoolExecutor(1, initializer=netns.leave))
        undo.callback(self.do, self._close)
        self._undo = ExitStack()
        self._others: list[Scratch] = []
        self.do(lambda: self._open(bundle))

    def do(self, fn: Callable[[], T]) -> T:
        return self._thread.submit(fn).result()

    def ask(self, staged: Staged, asked: Question) -> Explained:
        def go() -> Explained:
            self._scratch.refill(staged.scene)
            hops = KeptHops(self._bundle, staged.elsewhere, self._others)
            try:
                return answer(self._asker, asked, staged.world, hops)
            finally:
                hops.close()

        return self.do(go)

    def _open(self, bundle: Bundle) -> None:
        empty = Scene("nowhere", frozenset(), (), {})
        self._scratch = Scratch(bundle, empty, (*trials.PROGRAMS, *calls.PROGRAMS))
        self._undo.callback(self._scratch.close)
        caller = self._undo.enter_context(calls.calling(self._scratch, bundle, None))
        self._asker = Asker(self._scratch, trials.PacketTrials(self._scratch), caller)

    def _close(self) -> None:
        for other in self._others:
            self._undo.callback(other.close)
        self._undo.close()


@pytest.fixture(scope="session")
def copy(pytestconfig: pytest.Config) -> Iterator[Copy]:
    with ExitStack() as undo:
        yield Copy(compile_bundle(pytestconfig.rootpath / "build/podlane.bundle"), undo)


@pytest.fixture
def explain(copy: Copy, family: Family, tmp_path: Path) -> Explain:
    """explain(objects, from, to, protocol, **config): names stand for addresses."""

    def ask(
        objects: tuple[sets.Object, ...],
        source: str,
        to: str,
        protocol: str = "tcp",
        node: str = "here",
        **keys: Any,
    ) -> Explained:
        document = sets.said({"clusterCIDRs": ["@cluster"], **keys}, family)
        given = {key: value for key, value in document.items() if value is not None}
        staged = make_scene(
            read([sets.write(objects, family, tmp_path)]),
            config.parse(given, "test", node_name=node),
        )
        sender, to = (sets.said(f"@{name}", family) for name in (source, to))
        return copy.ask(staged, question(sender, to, protocol))

    return ask
