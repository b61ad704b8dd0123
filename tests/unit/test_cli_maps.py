# SPDX-License-Identifier: Apache-2.0
"""What the map commands print, held against golden files.

`UPDATE_GOLDEN=1 pytest tests/unit/test_cli_maps.py` writes the files anew: read the difference
before it is committed.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import backends, drops, endpoints, flows, render, routes, services
from dataplane.abi.layout import abi
from dataplane.model.net import Family
from tests.unit.cli_node import NOW_NS, Shelf, node

GOLDEN = Path(__file__).parent / "golden"

VIEWS: dict[str, tuple[render.View, Callable[[Shelf], list[Any]]]] = {
    "services": (services.VIEW, services.rows),
    "backends": (backends.VIEW, backends.rows),
    "endpoints": (endpoints.VIEW, endpoints.rows),
    "routes": (routes.VIEW, routes.rows),
    "flows": (flows.VIEW, lambda tables: flows.rows(tables, NOW_NS)),
    "drops": (drops.VIEW, drops.rows),
}


def printed(name: str, output: str, tables: Shelf) -> tuple[str, str]:
    """What a command writes to stdout and to stderr."""
    view, rows = VIEWS[name]
    out, words = io.StringIO(), io.StringIO()
    render.show(view, rows(tables), output, out, words)
    return out.getvalue(), words.getvalue()


# A row for every reason of abi.h would change with each new one: a test of its own counts them.
SHOWN = [(name, output) for name in VIEWS for output in ("table", "wide", "json")]
SHOWN = [shown for shown in SHOWN if shown not in (("drops", "wide"), ("drops", "json"))]


@pytest.mark.parametrize(("name", "output"), SHOWN)
def test_what_people_and_programs_read_is_as_in_the_golden_file(name: str, output: str) -> None:
    text, words = printed(name, output, node())
    golden = GOLDEN / f"{name}.{output}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
    assert words == ""


@pytest.mark.parametrize("name", VIEWS)
def test_yaml_says_what_json_says(name: str) -> None:
    as_json, _ = printed(name, "json", node())
    as_yaml, _ = printed(name, "yaml", node())
    assert yaml.safe_load(as_yaml) == json.loads(as_json)


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "drops"])
def test_an_empty_node_prints_an_empty_json_list_and_nothing_else(name: str) -> None:
    assert printed(name, "json", Shelf({})) == ("[]\n", "")


@pytest.mark.parametrize("name", VIEWS)
def test_an_empty_node_says_so_on_stderr(name: str) -> None:
    out, words = printed(name, "table", Shelf({}))
    assert out == ""
    assert words == VIEWS[name][0].nothing + "\n"


def test_every_drop_reason_is_listed_at_every_hook_when_asked_for() -> None:
    out, _ = printed("drops", "json", Shelf({}))
    rows = json.loads(out)
    reasons, hooks = abi(Family.V4).enum("drop"), abi(Family.V4).enum("hook")
    assert len(rows) == (len(reasons) - 1) * (len(hooks) - 1) * len(Family)
    assert all(row["packets"] == 0 and row["reason"] for row in rows)


def test_output_does_not_depend_on_the_order_in_the_kernel() -> None:
    there = node()
    back = Shelf({t: dict(reversed(list(rows.items()))) for t, rows in there.tables.items()})
    for name in VIEWS:
        assert printed(name, "json", back) == printed(name, "json", there)


def test_a_flow_with_one_half_evicted_says_which_one_is_left() -> None:
    rows = {row.protocol: row for row in flows.rows(node(), NOW_NS)}
    assert rows["UDP"].halves == "reply"
    assert rows["ICMP"].halves == "both"


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", VIEWS)
def test_a_narrow_terminal_folds_cells_and_cuts_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    view, rows = VIEWS[name]
    screen = Terminal()
    render.show(view, rows(node()), "table", screen, io.StringIO())
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60
