# SPDX-License-Identifier: Apache-2.0
"""Random and mutated packets through every program, on as many CPUs as asked for.

    python -m tests.program.fuzz [--packets N] [--seed S] [--workers N] [--save FILE]

Prints the seed, what became of the packets by hook, and how many a second; a failure with
its packets, as few and as short as could be made. Ends with 1 then. Needs root.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections import Counter
from pathlib import Path

from tests.program.fuzz import corpus
from tests.program.fuzz.run import ROUND, Failure, Kinds, Tally, keep_shortest
from tests.program.fuzz.worker import Order, fuzz
from tests.program.packets import shown


def main() -> int:
    args = _arguments()
    rounds = range(-(-args.packets // ROUND)) if args.round is None else [args.round]
    print(f"fuzz: seed {args.seed}, {len(rounds)} rounds of {ROUND} packets", flush=True)
    order = Order(args.bundle, args.seed, rounds, failures=args.failures)
    reports = fuzz(order, args.workers)
    tally: Tally = sum((report.tally for report in reports), Counter())
    for (hook, family, action, reason), number in sorted(tally.items()):
        words = action if reason == "NONE" else f"{action} {reason}"
        print(f"{hook:<13} IPv{family}  {words:<30} {number:>10}")
    for report in reports:
        packets = report.tally.total()
        speed = packets / report.seconds
        print(f"fuzz: {packets} packets in {report.seconds:.1f} s, {speed:.0f} a second")
    failures = [failure for report in reports for failure in report.failures]
    for number, failure in failures:
        _print_failure(args.seed, number, failure)
    print(f"fuzz: {tally.total()} packets, {len(failures)} failures, seed {args.seed}")
    if args.save:
        kinds: Kinds = {}
        for report in reports:
            keep_shortest(kinds, report.kinds)
        with args.save.open("a") as file:
            for kind, packet in sorted(kinds.items()):
                file.write(f"\n# {' '.join(map(str, kind))}\n{corpus.lines([packet])}")
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.program.fuzz")
    parser.add_argument("--packets", type=int, default=10 * ROUND)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--round", type=int, help="only this one")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=int, default=1, help="end a process after so many")
    parser.add_argument("--save", type=Path, help="append a packet of each kind of outcome")
    parser.add_argument("--bundle", type=Path, default=Path("build/podlane.bundle"))
    return parser.parse_args()


def _print_failure(seed: str, number: int, failure: Failure) -> None:
    case, frame = failure.packets[-1]
    print(f"\nFAILED: seed {seed}, round {number}: {case.name}: {failure.why}")
    print(f"in   {frame.hex()}\n     {shown(frame)}")
    print(f"out  {failure.seen.frame.hex()}\n     {shown(failure.seen.frame)}")
    print(f"     {failure.seen._replace(frame=b'')}")
    print(f"{len(failure.packets)} packets, as in a corpus (the last 20):")
    print(corpus.lines(failure.packets[-20:]))


if __name__ == "__main__":
    sys.exit(main())
