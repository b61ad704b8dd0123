# SPDX-License-Identifier: Apache-2.0
"""The real programs and tables against the reference model.

    python -m tests.program.differential [--packets N] [--seed S] [--workers N] [--chain N]

Prints the seed and how often each verdict, drop reason, Service type, policy and rule was
reached; a difference as a row of a packet table, with the objects that it needs. Ends with 1
then, or if something was reached too seldom. Needs root.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from pathlib import Path

from tests.program.differential.labels import seldom
from tests.program.differential.run import CHAIN, Difference
from tests.program.differential.shrink import objects, row
from tests.program.differential.worker import Order, chains_for, compare


def main() -> int:
    args = _arguments()
    chains = chains_for(args.packets) if args.chain is None else range(args.chain, args.chain + 1)
    print(f"differential: seed {args.seed}, {len(chains)} chains of {CHAIN} packets", flush=True)
    order = Order(args.bundle, args.seed, chains, shrinks=not args.partial)
    began = time.monotonic()
    outcome = compare(order, args.workers)
    elapsed = time.monotonic() - began
    for (kind, name), number in sorted(outcome.tally.items()):
        print(f"{kind:<11} {name:<42} {number:>10}")
    for difference in outcome.differences:
        _print_difference(args.seed, difference)
    missed = [] if args.partial or outcome.differences else seldom(outcome.tally, outcome.packets)
    for line in missed:
        print(f"TOO SELDOM: {line}")
    speed = outcome.packets / outcome.seconds if outcome.seconds else 0
    print(
        f"differential: {outcome.packets} packets, {speed:.0f} a second and process,"
        f" {outcome.packets / elapsed:.0f} in all, {len(outcome.differences)} differences, seed {args.seed}"
    )
    return 1 if outcome.differences or missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.program.differential")
    parser.add_argument("--packets", type=int, default=200_000)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--chain", type=int, help="only this one")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--partial", action="store_true", help="ask not what was reached, shrink nothing"
    )
    parser.add_argument("--bundle", type=Path, default=Path("build/podlane.bundle"))
    return parser.parse_args()


def _print_difference(seed: str, difference: Difference) -> None:
    print(f"\nDIFFERENCE: seed {seed}, chain {difference.chain}: {difference.why}")
    print(row(difference))
    for line in objects(difference) if difference.is_small else ():
        print(f"  {line}")
    print()


if __name__ == "__main__":
    sys.exit(main())
