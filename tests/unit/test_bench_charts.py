# SPDX-License-Identifier: Apache-2.0
"""The plots say what the tables say: those of the page that is in the tree, too."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import charts, report
from bench.measure import Goal, Result, Spread

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
FASTER = Result("faster", "1/s", (2400.0, 1200.0), (1000.0, 1000.0), Goal("ratio", at_least=2.0))
SLOW = Result("slow", "s", (3.5,), (), Goal("ours", at_most=2.8))
TOLD = Result("told", "ms", (1.5,), (), None)


def table(*results: Result) -> list[charts.Row]:
    return list(charts.rows(report.markdown(results)))


def test_a_table_is_read_as_it_was_written() -> None:
    faster, slow, told = table(FASTER, SLOW, TOLD)
    assert (faster.ours, faster.goal) == (Spread(1800.0, 1200.0, 2400.0), FASTER.goal)
    assert faster.ratio == Spread(1.8, 1.2, 2.4)
    assert (slow.ours, slow.ratio, slow.goal) == (Spread(3.5, 3.5, 3.5), None, SLOW.goal)
    assert (told.name, told.goal) == ("told", None)


def test_other_tables_of_a_page_are_passed_over() -> None:
    assert not list(charts.rows("| bench | ours | peer |\n|---|---|---|\n| `null` | a | b |\n"))


@pytest.mark.parametrize(
    ("draw", "name"), [(charts.ratios, "faster"), (charts.goals, "slow")], ids=["ratios", "goals"]
)
def test_a_plot_has_a_line_for_each_and_shows_what_is_not_met(draw: object, name: str) -> None:
    assert callable(draw)
    drawn = draw(table(FASTER, SLOW, TOLD))
    (dot,) = ElementTree.fromstring(drawn).findall("{*}circle")
    assert dot.get("fill") == "white"
    assert f">{name}</text>" in drawn


def test_what_is_better_stands_further_right() -> None:
    dots = ElementTree.fromstring(
        charts.ratios(
            table(
                Result("a", "1/s", (1.0,), (1.0,), None),
                Result("b", "1/s", (3.0,), (1.0,), None),
                Result("c", "1/s", (1.0,), (999.0,), None),
            )
        )
    ).findall("{*}circle")
    even, above, below = (float(dot.get("cx", "nan")) for dot in dots)
    assert below < even < above


def test_no_line_at_all_is_a_plot_too() -> None:
    ElementTree.fromstring(charts.ratios([]))


def test_the_plots_in_the_tree_are_those_of_the_page(tmp_path: Path) -> None:
    """`python -m bench --charts docs/performance.md` draws them anew."""
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for drawn in charts.draw(copy):
        assert PAGE.with_name(drawn.name).read_text(encoding="utf-8") == drawn.read_text(
            encoding="utf-8"
        )
        assert drawn.name in copy.read_text(encoding="utf-8")
