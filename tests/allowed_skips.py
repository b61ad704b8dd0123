# SPDX-License-Identifier: Apache-2.0
"""Which skips are accepted where every test is meant to run: `tests/allowed-skips.txt`.

Must not decide whether a test is skipped: that is a probe in the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).parent / "allowed-skips.txt"


@dataclass(frozen=True, slots=True)
class AllowedSkip:
    """A skip whose reason starts with `reason` is accepted, for want of `lacking`."""

    lacking: str
    reason: str


def parse(text: str) -> list[AllowedSkip]:
    """The lines `WORD: start of the reason` of a list; `#` starts a comment.

    Raises:
        ValueError: a line has no word or no reason; the message has the line's number.
    """
    allowed = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        lacking, colon, reason = entry.partition(":")
        if not colon or not lacking.strip() or not reason.strip():
            raise ValueError(f"line {number}: not 'WORD: start of the reason': {line!r}")
        allowed.append(AllowedSkip(lacking.strip(), reason.strip()))
    return allowed


def load() -> list[AllowedSkip]:
    """The project's list."""
    return parse(LIST.read_text(encoding="utf-8"))


def find(reason: str, allowed: list[AllowedSkip]) -> AllowedSkip | None:
    """The entry that accepts a skip of this reason, or None."""
    return next((entry for entry in allowed if reason.startswith(entry.reason)), None)
