# SPDX-License-Identifier: Apache-2.0
"""Writes what was measured: build/bench/NAME.json, and a table for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Goal, Result, Spread, spread

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"
HEADINGS = ("bench", "unit", "ours", "peer", "ratio", "goal", "is it met?")


def machine() -> dict[str, object]:
    """What a reader needs to know before comparing figures of two machines."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model.partition(": ")[2] or platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(pages * size / 2**30, 1),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def write(result: Result, folder: Path = FOLDER) -> None:
    """One file a result; an earlier one of the same name is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.as_json(machine()), indent=1)
    (folder / f"{result.name}.json").write_text(text + "\n")


def read(folder: Path = FOLDER) -> list[Result]:
    """What earlier runs wrote, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text())
        goal = data["goal"] and Goal(**{k: v for k, v in data["goal"].items() if k != "met"})
        ours, peer = tuple(data["ours"]), tuple(data["peer"])
        found.append(Result(data["name"], data["unit"], ours, peer, goal))
    return found


def _cells(result: Result) -> tuple[str, ...]:
    ratio = result.ratio
    return (
        result.name,
        result.unit,
        _spread(spread(result.ours)),
        _spread(spread(result.peer)) if result.peer else "-",
        f"{ratio.median:.3f} ({ratio.min:.3f} … {ratio.max:.3f})" if ratio else "-",
        str(result.goal or "-"),
        "-" if result.goal is None else "met" if result.met else "NOT MET",
    )


def markdown(results: Sequence[Result]) -> str:
    """The table for docs/performance.md."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *map(_cells, results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def _spread(s: Spread, text: str = "{}") -> str:
    middle, low, high = (text.format(_figure(v)) for v in (s.median, s.min, s.max))
    return middle if low == high else f"{middle} ({low} … {high})"


def show(results: Sequence[Result], console: Console) -> None:
    """Median and ends of each side, of the ratio, and whether the goal is met."""
    table = Table(title="median (least … most)", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for result in results:
        table.add_row(*_cells(result))
    console.print(table)
