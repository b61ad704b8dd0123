# SPDX-License-Identifier: Apache-2.0
"""Draws what a table of `python -m bench --markdown` says, as SVG: the ratios, and the absolute goals.

From the table and not from the runs, so that a page's plots say what its tables say. Must not measure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from bench.measure import Goal, Spread

_NUMBER = r"([\d.,]+)"
_SPREAD = re.compile(rf"{_NUMBER}(?: \({_NUMBER} … {_NUMBER}\))?")
_GOAL = re.compile(rf"(ratio|ours) ([≤≥]) {_NUMBER}")
_CELLS = 7
_LEFT, _WIDTH, _STEP = 230, 400, 18
_WIDEST = 4  # doublings: what is beyond 1/16 or 16 stands at the end


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; ratio is None without a peer."""

    name: str
    ours: Spread
    ratio: Spread | None
    goal: Goal | None


@dataclass(frozen=True, slots=True)
class Mark:
    """One line of a plot: a spread on an axis whose middle is 1, and what the median has to reach."""

    name: str
    spread: Spread
    goal: Goal | None

    @property
    def met(self) -> bool:
        return self.goal is None or self.goal.met_by(self.spread.median)


def rows(page: str) -> Iterator[Row]:
    """The lines of all the tables of a page that --markdown wrote; other tables are passed over."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == _CELLS and (ours := _spread(cells[2])):
            yield Row(cells[0], ours, _spread(cells[4]), _goal(cells[5]))


def ratios(found: Sequence[Row]) -> str:
    """Ours by peer, with the goals for it."""
    marks = []
    for row in found:
        if row.ratio:
            goal = row.goal if row.goal and row.goal.of == "ratio" else None
            marks.append(Mark(row.name, row.ratio, goal))
    return _plot("ours by peer", marks)


def goals(found: Sequence[Row]) -> str:
    """Ours by the bound that it has to keep."""
    marks = []
    for row in found:
        if row.goal and row.goal.of == "ours":
            bound, ours = row.goal.bound, row.ours
            of_bound = Spread(ours.median / bound, ours.min / bound, ours.max / bound)
            one = Goal("ours", 1.0) if row.goal.at_least else Goal("ours", at_most=1.0)
            marks.append(Mark(row.name, of_bound, one))
    return _plot("ours by its goal", marks)


def draw(page: Path) -> list[Path]:
    """Both plots, beside the page; returns their files."""
    found = list(rows(page.read_text(encoding="utf-8")))
    files = []
    for kind, text in (("ratios", ratios(found)), ("goals", goals(found))):
        files.append(page.with_name(f"{page.stem}-{kind}.svg"))
        files[-1].write_text(text, encoding="utf-8")
    return files


def _spread(cell: str) -> Spread | None:
    match = _SPREAD.fullmatch(cell)
    if match is None:
        return None
    middle, low, high = (float((text or match[1]).replace(",", "")) for text in match.groups())
    return Spread(middle, low, high)


def _goal(cell: str) -> Goal | None:
    match = _GOAL.fullmatch(cell)
    if match is None:
        return None
    bound = float(match[3].replace(",", ""))
    return Goal(match[1], at_least=bound) if match[2] == "≥" else Goal(match[1], at_most=bound)


def _plot(title: str, marks: Sequence[Mark]) -> str:
    """A dot for the median (hollow and red if the goal is not met), a line to the ends, a tick for
    the goal, on a logarithmic axis as wide as the figures need."""
    ends = [abs(math.log2(v)) for m in marks for v in (m.spread.min, m.spread.max) if v > 0]
    reach = min(_WIDEST, max(1, math.ceil(max(ends, default=1))))
    height = _STEP * (len(marks) + 3)

    def x(value: float) -> float:
        doublings = math.log2(value) if value > 0 else -reach
        return _LEFT + _WIDTH * (min(reach, max(-reach, doublings)) + reach) / (2 * reach)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 30}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="{height}" fill="white"/>',
        f'<text x="{_LEFT - 8}" y="14" text-anchor="end" font-weight="bold">{title}</text>',
    ]
    for doublings in range(-reach, reach + 1):
        at = x(2.0**doublings)
        shade = "#888" if doublings == 0 else "#ddd"
        parts.append(f'<path d="M{at:.1f} {_STEP + 2}V{height - 4}" stroke="{shade}"/>')
        label = f"{2**doublings}" if doublings >= 0 else f"1/{2**-doublings}"
        parts.append(f'<text x="{at:.1f}" y="14" text-anchor="middle">{label}</text>')
    for number, mark in enumerate(marks):
        y = _STEP * (number + 2)
        colour, fill = ("#36c", "#36c") if mark.met else ("#c33", "white")
        name = escape(mark.name)
        low, middle, high = x(mark.spread.min), x(mark.spread.median), x(mark.spread.max)
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{name}</text>',
            f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{colour}"/>',
            f'<circle cx="{middle:.1f}" cy="{y}" r="4" fill="{fill}" stroke="{colour}"/>',
        ]
        if mark.goal:
            at = x(mark.goal.bound)
            parts.append(f'<path d="M{at:.1f} {y - 7}v14" stroke="#333" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>", ""])
