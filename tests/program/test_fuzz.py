# SPDX-License-Identifier: Apache-2.0
"""Random and mutated packets through every program, and the ones that were wrong once.

`make fuzz-packets N=10000000` runs more of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.compiler import compile_bundle
from dataplane.model.net import Family
from tests.program import packets, world
from tests.program.fuzz import corpus
from tests.program.fuzz.judge import Judge
from tests.program.fuzz.run import ROUND, replay
from tests.program.fuzz.shapes import Shapes, macs
from tests.program.fuzz.stage import Stage, opened
from tests.program.fuzz.worker import FLOWS, Order, fuzz
from tests.program.sandbox import Sandbox

CORPUS = Path(__file__).parent / "fuzz" / "corpus.txt"
SEED = "podlane"
PACKETS = 200_000


@pytest.fixture(scope="module")
def opened_stage(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Sandbox, Stage]]:
    """A node whose flow table never evicts in these tests."""
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    with opened(bundle, tmp_path_factory.mktemp("bpffs"), {"flows": FLOWS[True]}) as made:
        yield made


@pytest.fixture
def sandbox(opened_stage: tuple[Sandbox, Stage]) -> Sandbox:
    """Where all of the stage is to be called."""
    return opened_stage[0]


@pytest.fixture
def stage(opened_stage: tuple[Sandbox, Stage]) -> Stage:
    """The node in hand."""
    return opened_stage[1]


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes()


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


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("client", "tcp client:40000 > near:80 data=10"),
        ("client", "tcp client:40000 > far:80"),
        ("client", "udp client:40000 > outside:53"),
        ("client", "echo client > outside id=9"),
        ("client", "tcp client:40000 > empty:80"),
        ("client", "udp client:40000 > empty:53"),
        ("client", "tcp client:40000 > outside:80 ttl=1"),
        ("uplink", "tcp outside:40000 > here:30080"),
        ("uplink", "tcp outside:40000 > here:22"),
        ("to-uplink", "udp client:40000 > outside:53"),
        ("to-overlay", "tcp router:40000 > remote:80"),
        ("client", "sctp client:40000 > near:80 data=10"),
        ("uplink", "sctp outside:40000 > here:30080"),
    ],
)
def test_the_judge_sees_each_byte_out_of_place(
    sandbox: Sandbox, stage: Stage, shapes: Shapes, family: Family, way: str, line: str
) -> None:
    case = shapes.by_name[f"{way}/{family:d}"]
    packet = packets.build(line, family, world.addresses(family))
    given = packets.frame(packet, family, macs(case)[:6], macs(case)[6:])
    sandbox.do(stage.forget)
    seen = sandbox.do(lambda: stage.run(case, given))
    assert Judge(roomy=True).wrong(case, given, seen) == ""
    unseen = []
    for at in range(len(seen.frame)):
        for bit in (1, 0x80):
            broken = bytearray(seen.frame)
            broken[at] ^= bit
            if not Judge(roomy=True).wrong(case, given, seen._replace(frame=bytes(broken))):
                unseen.append((at, bit))
    assert unseen == []


def test_packets_that_were_treated_wrongly_once_are_treated_rightly(
    sandbox: Sandbox, stage: Stage, shapes: Shapes
) -> None:
    sequences = corpus.read(CORPUS, shapes.by_name)
    failures = sandbox.do(lambda: [replay(stage, s, roomy=True) for s in sequences])
    wrong = [f"{failure.why}\n{corpus.lines(failure.packets)}" for failure in failures if failure]
    assert not wrong, "\n".join(wrong)
