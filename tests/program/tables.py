# SPDX-License-Identifier: Apache-2.0
"""Packet tables: rows of (what is told, packet in, verdict, packet out).

No packet out: one that passes is as it was, one that is dropped is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.program.result import Verdict

Row = tuple[str, str, Verdict, str | None]


def table(rows: Sequence[Row]) -> pytest.MarkDecorator:
    """Run a test with each row's `sent`, `verdict` and `seen`, under the row's words."""
    names = [words for words, *_ in rows]
    assert len(set(names)) == len(names), "two rows tell the same"
    values: list[Any] = [rest for _, *rest in rows]
    return pytest.mark.parametrize(("sent", "verdict", "seen"), values, ids=names)
