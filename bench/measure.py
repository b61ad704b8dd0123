# SPDX-License-Identifier: Apache-2.0
"""What is measured and how it is judged: pairs in alternating rounds, or one figure against a goal.

Pure but for calling what it is given: knows no namespaces, no files and no tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and ends of one list of figures."""

    median: float
    min: float
    max: float


def spread(figures: tuple[float, ...]) -> Spread:
    """The spread of at least one figure."""
    return Spread(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for the median: of the ratio ours/peer if `of` is "ratio", of ours itself else.

    One of at_least and at_most is set.
    """

    of: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> float:
        """The one that is set."""
        bound = self.at_most if self.at_least is None else self.at_least
        assert bound is not None
        return bound

    def met_by(self, figure: float) -> bool:
        return (self.at_least is None or figure >= self.at_least) and (
            self.at_most is None or figure <= self.at_most
        )

    def __str__(self) -> str:
        sign = "≤" if self.at_least is None else "≥"
        return f"{self.of} {sign} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """One measured thing. `peer` is empty where there is nothing to compare with.

    goal is None for what is only told.
    """

    name: str
    unit: str
    ours: tuple[float, ...]
    peer: tuple[float, ...]
    goal: Goal | None

    @property
    def ratio(self) -> Spread | None:
        """Ours by peer, round by round: drift of the machine hits both sides of a round alike."""
        if not self.peer:
            return None
        return spread(tuple(a / b for a, b in zip(self.ours, self.peer, strict=True)))

    @property
    def met(self) -> bool:
        """True without a goal."""
        if self.goal is None:
            return True
        judged = self.ratio if self.goal.of == "ratio" else spread(self.ours)
        return judged is not None and self.goal.met_by(judged.median)

    def as_json(self, machine: dict[str, object]) -> dict[str, object]:
        """What build/bench/NAME.json holds."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": list(self.ours),
            "peer": list(self.peer),
            "ratio": asdict(self.ratio) if self.ratio else None,
            "goal": asdict(self.goal) | {"met": self.met} if self.goal else None,
            "machine": machine,
        }


Figures = dict[str, float]


def alternate(
    ours: Callable[[], Figures], peer: Callable[[], Figures], rounds: int = ROUNDS
) -> tuple[list[Figures], list[Figures]]:
    """Figures of ours, peer, ours, peer, …; a call may yield several figures by name."""
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def pick(rounds: list[Figures], name: str) -> tuple[float, ...]:
    """One figure out of each round."""
    return tuple(figures[name] for figures in rounds)
