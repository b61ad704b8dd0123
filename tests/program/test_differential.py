# SPDX-License-Identifier: Apache-2.0
"""The real programs on tables of the real core, against the reference model.

`make fuzz N=10000000` sends more packets; `make fuzz-mutants` asks whether faults are found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.program.differential.labels import seldom
from tests.program.differential.shrink import objects, row
from tests.program.differential.worker import Order, chains_for, compare

SEED = "podlane"
PACKETS = 200_000


@pytest.mark.speed
@pytest.mark.timeout(600)
def test_the_programs_do_what_the_reference_model_says(pytestconfig: pytest.Config) -> None:
    bundle: Path = pytestconfig.rootpath / "build/podlane.bundle"
    outcome = compare(Order(bundle, SEED, chains_for(PACKETS)), workers=2)
    found = [
        "\n".join([f"chain {d.chain}: {d.why}", row(d), *(objects(d) if d.is_small else ())])
        for d in outcome.differences
    ]
    assert not found, f"seed {SEED}\n" + "\n".join(found)
    assert outcome.packets >= PACKETS
    assert seldom(outcome.tally, outcome.packets) == []
