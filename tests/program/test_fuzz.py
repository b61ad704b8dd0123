# SPDX-License-Identifier: Apache-2.0
"""Random and mutated packets through every program, and the ones that were wrong once.

`make fuzz-packets N=10000000` runs more of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.kernel.compiler import compile_bundle
from tests.program.fuzz import corpus
from tests.program.fuzz.run import ROUND, replay
from tests.program.fuzz.shapes import Shapes
from tests.program.fuzz.stage import opened
from tests.program.fuzz.worker import FLOWS, Order, fuzz

CORPUS = Path(__file__).parent / "fuzz" / "corpus.txt"
SEED = "podlane"
PACKETS = 200_000


@pytest.mark.speed
@pytest.mark.timeout(600)
def test_no_packet_out_of_200000_is_treated_against_the_rfcs(pytestconfig: pytest.Config) -> None:
    bundle = pytestconfig.rootpath / "build/podlane.bundle"
    reports = fuzz(Order(bundle, SEED, range(PACKETS // ROUND)), workers=2)
    failures = [
        f"round {number}: {case.name}: {failure.why}\n{corpus.lines(failure.packets[-20:])}"
        for report in reports
        for number, failure in report.failures
        for case, _ in failure.packets[-1:]
    ]
    assert not failures, f"seed {SEED}\n" + "\n".join(failures)
    assert sum(report.tally.total() for report in reports) == PACKETS


def test_packets_that_were_treated_wrongly_once_are_treated_rightly(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    sequences = corpus.read(CORPUS, Shapes().by_name)
    with opened(bundle, tmp_path, {"flows": FLOWS[True]}) as (sandbox, stage):
        failures = sandbox.do(lambda: [replay(stage, s, roomy=True) for s in sequences])
    wrong = [f"{failure.why}\n{corpus.lines(failure.packets)}" for failure in failures if failure]
    assert not wrong, "\n".join(wrong)
