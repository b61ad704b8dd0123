# SPDX-License-Identifier: Apache-2.0
"""What must hold of plans for Services after any sequence of changes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.core.desired import Desired, Limits
from dataplane.core.plan import Plan
from dataplane.model.objects import Batch, Object
from tests.unit.core_worlds import OTHER_SETTINGS, SETTINGS, Cluster, batches, services
from tests.unit.fakes import FakeMaps
from tests.unit.service_spec import meaning_for, meaning_of

ROOMY = Limits(frontends=1000, services=100, slots=4000, backends=1000)
TIGHT = st.builds(
    Limits,
    frontends=st.integers(2, 12),
    services=st.integers(1, 5),
    slots=st.integers(1, 10),
    backends=st.integers(2, 8),
    source_ranges=st.integers(1, 6),
)
steps = st.lists(st.tuples(batches, st.sampled_from([0.01, 0.1, 0.3])), min_size=1, max_size=8)
Steps = list[tuple[Batch, float]]
slow = settings(max_examples=40, deadline=None)


def run(desired: Desired, maps: FakeMaps, cluster: Cluster, history: Steps, now: float) -> float:
    for batch, pause in history:
        now += pause
        cluster.apply(batch)
        desired.apply(batch)
        maps.execute(desired.plan(now), now)
    return now


@slow
@given(steps)
def test_maps_mean_what_the_objects_say_after_each_plan(history: Steps) -> None:
    desired, maps, cluster = Desired(SETTINGS, ROOMY, {}), FakeMaps(ROOMY), Cluster()
    for index, step in enumerate(history):
        run(desired, maps, cluster, [step], float(index))
        assert meaning_of(maps) == meaning_for(cluster.all(), SETTINGS)
        for table, rows in desired.tables().items():
            assert rows.items() <= maps.table(table).items()
        assert not desired.plan(index + 0.5), "planned although nothing changed"


@slow
@given(steps, st.randoms())
def test_restart_with_the_same_objects_writes_nothing(history: Steps, random: object) -> None:
    maps, cluster = FakeMaps(ROOMY), Cluster()
    run(Desired(SETTINGS, ROOMY, {}), maps, cluster, history, 0.0)
    order = list(cluster.objects)
    random.shuffle(order)  # type: ignore[attr-defined]
    again = Desired(SETTINGS, ROOMY, maps.state())
    for obj in cluster.all(order):
        again.apply(Batch((obj,)))
        assert again.plan(0.0) == Plan()
    again.apply(Batch(synced=True))
    assert again.plan(0.0) == Plan()


@slow
@given(steps, steps)
def test_restart_writes_what_changed_meanwhile(history: Steps, meanwhile: Steps) -> None:
    maps, cluster = FakeMaps(ROOMY), Cluster()
    now = run(Desired(SETTINGS, ROOMY, {}), maps, cluster, history, 0.0)
    before = {(f, r.service_id, r.address, r.port): r for f, r in maps.all_backends() if r.flags}
    for batch, _ in meanwhile:
        cluster.apply(batch)
    again = Desired(SETTINGS, ROOMY, maps.state())
    again.apply(Batch(cluster.all(), (), True))
    maps.execute(again.plan(now + 1), now + 1)
    assert meaning_of(maps) == meaning_for(cluster.all(), SETTINGS)
    for family, row in maps.all_backends():
        old = before.get((family, row.service_id, row.address, row.port))
        if old and row.flags:
            assert row.generation == old.generation, "a backend that stayed was cut off"


@slow
@given(steps, batches, st.integers(0, 8), steps)
def test_agent_that_died_within_a_plan_is_healed_by_the_next(
    history: Steps, last: Batch, executed: int, after: Steps
) -> None:
    maps, cluster = FakeMaps(ROOMY), Cluster()
    desired = Desired(SETTINGS, ROOMY, {})
    now = run(desired, maps, cluster, history, 0.0) + 1
    cluster.apply(last)
    desired.apply(last)
    for step in desired.plan(now).steps[:executed]:
        maps.do(step, now)
    again = Desired(SETTINGS, ROOMY, maps.state())
    again.apply(Batch(cluster.all(), (), True))
    maps.execute(again.plan(now + 1), now + 1)
    assert meaning_of(maps) == meaning_for(cluster.all(), SETTINGS)
    run(again, maps, cluster, after, now + 1)
    assert meaning_of(maps) == meaning_for(cluster.all(), SETTINGS)


@slow
@given(steps, steps)
def test_other_facts_of_the_node_are_taken_up(history: Steps, after: Steps) -> None:
    desired, maps, cluster = Desired(SETTINGS, ROOMY, {}), FakeMaps(ROOMY), Cluster()
    now = run(desired, maps, cluster, history, 0.0) + 1
    desired.configure(OTHER_SETTINGS)
    maps.execute(desired.plan(now), now)
    assert meaning_of(maps) == meaning_for(cluster.all(), OTHER_SETTINGS)
    run(desired, maps, cluster, after, now)
    assert meaning_of(maps) == meaning_for(cluster.all(), OTHER_SETTINGS)


@slow
@given(TIGHT, steps, services)
def test_full_maps_name_who_is_left_out_and_take_them_in_later(
    limits: Limits, history: Steps, last: Object
) -> None:
    desired, maps, cluster = Desired(SETTINGS, limits, {}), FakeMaps(limits), Cluster()
    now = 0.0
    for step in history:
        now = run(desired, maps, cluster, [step], now)
        if meaning_of(maps) != meaning_for(cluster.all(), SETTINGS):
            assert any("no room in the map" in p.reason for p in desired.problems())
    everything = Batch((), tuple(cluster.objects), True)
    now = run(desired, maps, cluster, [(everything, 0.1)], now)
    assert meaning_of(maps) == meaning_for((), SETTINGS)
    assert not desired.problems()
    run(desired, maps, cluster, [(Batch((last,)), 1.0)], now)
    if meaning_of(maps) != meaning_for(cluster.all(), SETTINGS):
        assert any("no room in the map" in p.reason for p in desired.problems())


@slow
@given(steps, steps)
def test_left_out_services_are_served_when_room_comes_back(history: Steps, more: Steps) -> None:
    limits = Limits(frontends=8, services=4, slots=8, backends=6, source_ranges=5)
    desired, maps, cluster = Desired(SETTINGS, limits, {}), FakeMaps(limits), Cluster()
    now = run(desired, maps, cluster, history + more, 0.0)
    while cluster.objects:
        gone = next(iter(cluster.objects))
        now = run(desired, maps, cluster, [(Batch((), (gone,)), 0.01)], now)
        for _ in range(3):
            wake = desired.wake()
            if wake is None:
                break
            now = max(now, wake)
            maps.execute(desired.plan(now), now)
        if not any("no room" in p.reason for p in desired.problems()):
            assert meaning_of(maps) == meaning_for(cluster.all(), SETTINGS)
    assert meaning_of(maps) == meaning_for((), SETTINGS)
