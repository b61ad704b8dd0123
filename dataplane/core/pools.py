# SPDX-License-Identifier: Apache-2.0
"""Ids and slot ranges: who has which, and how long a freed one rests before reuse.

A packet that is on its way may still hold what was freed, so a freed id or range rests
for `REST_SECONDS`, and the plan that gives it out again begins with a Grace step
(`settled` says that one is due). Ids never given out before are preferred, so that
this is rare. Time comes in as an argument. Must not know what the ids stand for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

REST_SECONDS = 0.2
LONG_AGO = float("-inf")


class IdPool:
    """The ids 1 .. size - 1 of an array map; 0 means none.

    Args:
        size: places of the map.
        used: ids in use at start.
        spare: other ids that may have been in use before.
    """

    def __init__(self, size: int, used: Iterable[int] = (), spare: Iterable[int] = ()) -> None:
        taken = set(used)
        self.size = size
        self.settled = False
        self.recycled = False  # whether the id taken last had another owner before
        self._next = max(max(taken, default=0), max(spare, default=0)) + 1
        self._resting = deque((LONG_AGO, i) for i in range(1, self._next) if i not in taken)
        self._free: deque[int] = deque()

    def take(self, now: float) -> int | None:
        """An id, or None if all are in use or rest."""
        self.recycled = self._next >= self.size
        if not self.recycled:
            self._next += 1
            return self._next - 1
        if not self._free:
            while self.rested(now):
                self._free.append(self._resting.popleft()[1])
                self.settled = True
        return self._free.popleft() if self._free else None

    def give(self, number: int, now: float) -> None:
        """Frees an id."""
        self._resting.append((now, number))

    def rested(self, now: float) -> bool:
        """Whether something freed may be used again."""
        return bool(self._resting) and self._resting[0][0] + REST_SECONDS <= now

    def next_rested(self) -> float | None:
        """When something freed may be used again."""
        return self._resting[0][0] + REST_SECONDS if self._resting else None


class SlotPool:
    """Contiguous ranges of an array map: best fit, neighbours joined when they come back.

    Args:
        size: places of the map.
        used: (base, count) in use at start, not overlapping.
    """

    def __init__(self, size: int, used: Iterable[tuple[int, int]] = ()) -> None:
        self.size = size
        self.settled = False
        self._at: dict[int, int] = {}  # base of a free range -> count
        self._end: dict[int, int] = {}  # end of a free range -> base
        self._of: dict[int, dict[int, None]] = {}  # count -> bases, as an ordered set
        self._counts: list[int] = []  # the keys of _of, sorted
        self._resting: deque[tuple[float, int, int]] = deque()
        place, adopted = 0, False
        for base, count in sorted(used):
            adopted = True
            if base > place:
                self._resting.append((LONG_AGO, place, base - place))
            place = base + count
        if place < size:
            if adopted:
                self._resting.append((LONG_AGO, place, size - place))
            else:
                self._add(place, size - place)

    def take(self, count: int, now: float) -> int | None:
        """The base of a range of so many places, or None if no free one is large enough."""
        found = self._take(count)
        if found is None and self.rested(now):
            while self.rested(now):
                _, base, freed = self._resting.popleft()
                self._join(base, freed)
            self.settled = True
            found = self._take(count)
        return found

    def give(self, base: int, count: int, now: float) -> None:
        """Frees a range as it was taken."""
        self._resting.append((now, base, count))

    def largest(self) -> int:
        """How many places could be taken now; asked after a `take` that failed."""
        return self._counts[-1] if self._counts else 0

    def rested(self, now: float) -> bool:
        """Whether something freed may be used again."""
        return bool(self._resting) and self._resting[0][0] + REST_SECONDS <= now

    def next_rested(self) -> float | None:
        """When something freed may be used again."""
        return self._resting[0][0] + REST_SECONDS if self._resting else None

    def _take(self, count: int) -> int | None:
        index = bisect_left(self._counts, count)
        if index == len(self._counts):
            return None
        size = self._counts[index]
        base = next(iter(self._of[size]))
        self._remove(base, size)
        if size > count:
            self._add(base + count, size - count)
        return base

    def _join(self, base: int, count: int) -> None:
        before = self._end.get(base)
        if before is not None:
            self._remove(before, base - before)
            base, count = before, count + base - before
        after = self._at.get(base + count)
        if after is not None:
            self._remove(base + count, after)
            count += after
        self._add(base, count)

    def _add(self, base: int, count: int) -> None:
        self._at[base] = count
        self._end[base + count] = base
        bases = self._of.get(count)
        if bases is None:
            bases = self._of[count] = {}
            insort(self._counts, count)
        bases[base] = None

    def _remove(self, base: int, count: int) -> None:
        del self._at[base], self._end[base + count]
        bases = self._of[count]
        del bases[base]
        if not bases:
            del self._of[count]
            del self._counts[bisect_left(self._counts, count)]
