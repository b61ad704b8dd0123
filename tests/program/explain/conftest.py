# SPDX-License-Identifier: Apache-2.0
"""One copy of maps and programs for all tests of explain, filled anew for each object set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataplane.agent import config
from dataplane.explain.answers import Explained, answer
from dataplane.explain.ask import PROGRAMS, Asker
from dataplane.explain.manifests import make_scene
from dataplane.explain.questions import question
from dataplane.explain.scene import Scene
from dataplane.explain.scratch import Scratch
from dataplane.kernel import netns
from dataplane.kernel.compiler import compile_bundle
from dataplane.model.net import Family
from dataplane.sources.manifests import read
from tests.program.explain import sets

Explain = Callable[..., Explained]


@pytest.fixture(scope="session")
def copy(pytestconfig: pytest.Config) -> Iterator[Callable[[Callable[[Scratch], Any]], Any]]:
    """Calls with the copy, in a thread that has a network namespace of its own."""
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    with ThreadPoolExecutor(1, initializer=netns.leave) as thread:
        empty = Scene("nowhere", frozenset(), (), {})
        scratch = thread.submit(Scratch, bundle, empty, PROGRAMS).result()
        yield lambda fn: thread.submit(fn, scratch).result()
        thread.submit(scratch.close).result()


@pytest.fixture
def explain(
    copy: Callable[[Callable[[Scratch], Any]], Any], family: Family, tmp_path: Path
) -> Explain:
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
        asked = question(sets.said(f"@{source}", family), sets.said(f"@{to}", family), protocol)

        def go(scratch: Scratch) -> Explained:
            scratch.refill(staged.scene)
            return answer(Asker(scratch), asked, staged.world)

        found: Explained = copy(partial(go))
        return found

    return ask
