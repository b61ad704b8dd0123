# SPDX-License-Identifier: Apache-2.0
"""How benches judge what they measured; nothing here is timed."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from bench import report
from bench.measure import Goal, Result, alternate, pick

RATIO = Goal("ratio", at_least=0.97)


def result(ours: tuple[float, ...], peer: tuple[float, ...] = (), goal: Goal = RATIO) -> Result:
    return Result("path", "Gbit/s", ours, peer, goal)


def test_rounds_alternate_between_ours_and_the_peer() -> None:
    turns = count()
    ours, peer = alternate(lambda: {"turn": next(turns)}, lambda: {"turn": next(turns)}, 3)
    assert (pick(ours, "turn"), pick(peer, "turn")) == ((0, 2, 4), (1, 3, 5))


def test_the_ratio_is_taken_round_by_round() -> None:
    measured = result((10.0, 5.0, 20.0), (10.0, 10.0, 10.0)).ratio
    assert measured is not None
    assert (measured.median, measured.min, measured.max) == (1.0, 0.5, 2.0)


def test_a_goal_is_met_by_the_median_alone() -> None:
    assert result((9.9, 1.0, 9.9), (10.0, 10.0, 10.0)).met
    assert not result((9.6, 20.0, 9.6), (10.0, 10.0, 10.0)).met


def test_an_absolute_goal_needs_no_peer() -> None:
    assert result((2.9,), goal=Goal("ours", at_most=3.0)).met
    assert not result((3.1,), goal=Goal("ours", at_most=3.0)).met
    assert result((3.1,), goal=Goal("ours", at_most=3.0)).ratio is None


def test_a_figure_is_picked_out_of_every_round() -> None:
    assert pick([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}], "b") == (2.0, 4.0)


def test_a_result_can_be_read_back(tmp_path: Path) -> None:
    written = result((10.0, 5.0), (10.0, 10.0))
    report.write(written, tmp_path)
    assert report.read(tmp_path) == [written]
    assert "| path | Gbit/s |" in report.markdown([written])
