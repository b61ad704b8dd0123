# SPDX-License-Identifier: Apache-2.0
"""Garbage collection rests while the node's tables are made, and leaves them alone after."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from dataplane.agent import collector


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_while_tables_are_made_and_they_are_left_alone_after() -> None:
    with collector.at_rest():
        assert not gc.isenabled()
        tables = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(tables)
    assert not any(one is tables for one in gc.get_objects())


def test_a_failure_gives_collection_back_and_freezes_nothing() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(KeyError), collector.at_rest():
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() == before
