# SPDX-License-Identifier: Apache-2.0
"""Writes what was measured: build/bench/NAME.json, and a table for people."""

from __future__ import annotations

import json
import math
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


def chart(results: Sequence[Result]) -> str:
    """An SVG of each ratio: a dot for the median, a line to its ends, a tick for the goal.

    The axis is logarithmic, from a quarter to four times the peer; what is beyond stands at its end.
    """
    rows = [(one, one.ratio) for one in results if one.ratio]
    left, width, step = 230, 400, 18
    height = step * (len(rows) + 2)

    def x(ratio: float) -> float:
        return left + width * (math.log2(min(4.0, max(0.25, ratio))) + 2) / 4

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 20}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="{height}" fill="white"/>',
    ]
    for mark in (0.25, 0.5, 1, 2, 4):
        parts.append(f'<path d="M{x(mark):.0f} {step}V{height}" stroke="#ccc"/>')
        parts.append(f'<text x="{x(mark):.0f}" y="12" text-anchor="middle">{mark:g}x</text>')
    for number, (one, ratio) in enumerate(rows):
        y = step * (number + 2) - 6
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{one.name}</text>')
        parts.append(f'<path d="M{x(ratio.min):.1f} {y}H{x(ratio.max):.1f}" stroke="#36c"/>')
        parts.append(f'<circle cx="{x(ratio.median):.1f}" cy="{y}" r="4" fill="#36c"/>')
        if one.goal and one.goal.of == "ratio":
            at = x(one.goal.at_least or one.goal.at_most or 1)
            parts.append(f'<path d="M{at:.1f} {y - 7}v14" stroke="#c33" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>", ""])


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
