# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.core.pools import REST_SECONDS, IdPool, SlotPool


def test_fresh_ids_come_before_rested_ones_and_start_at_one() -> None:
    pool = IdPool(4)
    assert [pool.take(0), pool.take(0)] == [1, 2]
    pool.give(1, 0)
    assert (pool.take(9), pool.settled, pool.recycled) == (3, False, False)
    assert (pool.take(9), pool.settled, pool.recycled) == (1, True, True)
    assert pool.take(9) is None


def test_freed_id_rests() -> None:
    pool = IdPool(2)
    assert pool.take(0) == 1
    pool.give(1, 10.0)
    assert pool.take(10.0 + REST_SECONDS / 2) is None
    assert pool.next_rested() == 10.0 + REST_SECONDS
    assert pool.take(10.0 + REST_SECONDS) == 1


def test_best_fit_leaves_the_large_range_whole() -> None:
    pool = SlotPool(100, [(10, 80)])
    assert pool.take(10, 0) in (0, 90)
    assert pool.take(5, 0) is not None
    pool = SlotPool(100, [(3, 20)])
    assert pool.take(3, 0) == 0


def test_freed_neighbours_join_again() -> None:
    pool = SlotPool(9)
    bases = [pool.take(3, 0) for _ in range(3)]
    assert sorted(b for b in bases if b is not None) == [0, 3, 6]
    for base in (0, 6, 3):
        pool.give(base, 3, 0)
    assert pool.take(9, REST_SECONDS) == 0


@given(
    st.integers(1, 40),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 12), st.sampled_from([0.0, 0.05, 0.3])),
        max_size=60,
    ),
)
def test_ranges_never_overlap_rest_before_reuse_and_are_never_lost(
    size: int, moves: list[tuple[bool, int, float]]
) -> None:
    pool, now = SlotPool(size), 0.0
    held: list[tuple[int, int]] = []
    freed: dict[int, float] = {}
    for take, number, pause in moves:
        now += pause
        if take and number:
            base = pool.take(number, now)
            if base is not None:
                places = set(range(base, base + number))
                assert max(places) < size
                assert not places & {p for b, c in held for p in range(b, b + c)}
                assert all(freed.get(p, -1.0) + REST_SECONDS <= now for p in places)
                held.append((base, number))
        elif held:
            base, count = held.pop(number % len(held))
            pool.give(base, count, now)
            freed |= dict.fromkeys(range(base, base + count), now)
    for base, count in held:
        pool.give(base, count, now)
    assert pool.take(size, now + REST_SECONDS) == 0
