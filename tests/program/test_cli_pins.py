# SPDX-License-Identifier: Apache-2.0
"""The map commands on real pins, with no process that holds them: the agent is dead."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import backends, endpoints, flows, render, routes, services
from dataplane.core.plan import Plan, Upsert
from dataplane.kernel import loader
from dataplane.kernel.compiler import compile_bundle
from dataplane.kernel.maps import Writer
from tests.program.sandbox import Sandbox
from tests.unit.cli_node import NOW_NS, Shelf, node

# Only programs write these: no writer of ours does.
COUNTED = ("service_counters", "endpoint_counters", "drops", "exhausted")
ROWS: dict[str, Callable[[Shelf], list[Any]]] = {
    "services": services.rows,
    "backends": backends.rows,
    "endpoints": endpoints.rows,
    "routes": routes.rows,
    "flows": lambda tables: flows.rows(tables, NOW_NS),
}


@pytest.fixture(scope="module")
def there() -> Shelf:
    return Shelf({t: rows for t, rows in node().tables.items() if t.name not in COUNTED})


@pytest.fixture(scope="module")
def sandbox(
    there: Shelf, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Sandbox]:
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    sandbox = Sandbox(tmp_path_factory.mktemp("bpffs"), {})

    def fill() -> None:
        with loader.load(bundle, sandbox.bpffs / "podlane") as datapath:
            steps = tuple(Upsert(t, tuple(rows.items())) for t, rows in there.tables.items())
            assert Writer(datapath).execute(Plan(steps)) == ()

    sandbox.do(fill)
    yield sandbox
    sandbox.close()


def podlane(sandbox: Sandbox, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("podlane")), *words]
    return sandbox.do(lambda: subprocess.run(command, capture_output=True, text=True, check=False))


@pytest.mark.parametrize("command", ROWS)
def test_what_is_pinned_is_what_is_shown(command: str, sandbox: Sandbox, there: Shelf) -> None:
    done = podlane(sandbox, command, "--bpffs", str(sandbox.bpffs / "podlane"), "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    text = io.StringIO()
    render.show(render.View((), ""), ROWS[command](there), "json", text)
    assert without_time(done.stdout) == without_time(text.getvalue())


def test_counters_that_nothing_added_to_show_no_drops(sandbox: Sandbox) -> None:
    done = podlane(sandbox, "drops", "--bpffs", str(sandbox.bpffs / "podlane"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing was dropped\n")


def test_a_bpffs_with_nothing_pinned_is_bad_environment(sandbox: Sandbox) -> None:
    done = podlane(sandbox, "services", "--bpffs", str(sandbox.bpffs))
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is pinned there" in done.stderr


def without_time(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text)
    return [{key: value for key, value in row.items() if key != "idleSeconds"} for row in rows]
