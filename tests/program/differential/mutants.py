# SPDX-License-Identifier: Apache-2.0
"""Does the differential test find faults? Each of mutants.txt, built into a copy of the sources.

    python -m tests.program.differential.mutants [--only NAME] [--packets N] [--workers N]

A fault is one line of bpf/ or dataplane/core changed. Prints a table; ends with 1 if one
survives so many packets. Needs root.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dataplane.kernel.compiler import compile_bundle

ROOT = Path(__file__).resolve().parents[3]
LIST = Path(__file__).with_name("mutants.txt")
PACKETS = 100_000
SEED = "mutants"
_PARTS = ("bpf", "dataplane", "tests/program")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")
_FOUND = re.compile(r"^DIFFERENCE: .*?: (.*)$", re.M)
_SENT = re.compile(r"^differential: (\d+) packets, ", re.M)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A line of a file, and what stands in its place."""

    name: str
    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Changes the file under a root. Raises ValueError if the line is not there once."""
        path = root / self.file
        lines = path.read_text().splitlines(keepends=True)
        at = [n for n, line in enumerate(lines) if line.strip() == self.old]
        if len(at) != 1:
            raise ValueError(f"{self.name}: {self.file} has the line {len(at)} times: {self.old}")
        lines[at[0]] = lines[at[0]].replace(self.old, self.new)
        path.write_text("".join(lines))


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant; packets until it was found, why it was, seconds it took."""

    mutant: Mutant
    found: bool
    packets: int
    words: str
    seconds: float


def load() -> list[Mutant]:
    """All that are listed."""
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    made = []
    for head, old, new in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name, _, file = head.rpartition(": ")
        made.append(Mutant(name, file, old.removeprefix("- "), new.removeprefix("+ ")))
    return made


def hunt(mutant: Mutant, cpu: int, packets: int = PACKETS) -> Result:
    """Builds a mutant and looks for it, on one CPU."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="podlane-mutant-") as folder:
        root = Path(folder)
        for part in _PARTS:
            shutil.copytree(ROOT / part, root / part, ignore=_LEFT_OUT)
        for file in ("tests/__init__.py", "build/podlane.bundle"):
            if (ROOT / file).exists():
                (root / file).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / file, root / file)
        mutant.apply(root)
        # The copy's own package is found first: it is the folder in which the child starts.
        command = [
            *("taskset", "-c", str(cpu), sys.executable, "-m", "tests.program.differential"),
            *("--partial", "--workers", "1", "--seed", SEED, "--packets", str(packets)),
        ]
        env = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, check=False
        )
    found, sent = _FOUND.search(done.stdout), _SENT.search(done.stdout)
    if sent is None:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Result(mutant, False, 0, f"NOT RUN: {why}", time.monotonic() - began)
    words = found.group(1) if found else "SURVIVED"
    return Result(mutant, found is not None, int(sent.group(1)), words, time.monotonic() - began)


def main() -> int:
    args = _arguments()
    compile_bundle(ROOT / "build/podlane.bundle")
    mutants = [m for m in load() if args.only in (None, m.name)]
    cpus = sorted(os.sched_getaffinity(0))[: args.workers]
    free = list(cpus)

    def run(mutant: Mutant) -> Result:
        cpu = free.pop()
        try:
            return hunt(mutant, cpu, args.packets)
        finally:
            free.append(cpu)

    survived = 0
    print(f"{'mutant':<44} {'packets':>8} {'seconds':>8}  what was found", flush=True)
    with ThreadPoolExecutor(len(cpus)) as pool:
        for result in pool.map(run, mutants):
            survived += not result.found
            print(
                f"{result.mutant.name:<44} {result.packets:>8} {result.seconds:>8.1f}"
                f"  {result.words[:90]}",
                flush=True,
            )
    print(f"fuzz-mutants: {len(mutants)} mutants, {survived} survived {args.packets} packets")
    return 1 if survived or not mutants else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.program.differential.mutants")
    parser.add_argument("--only", help="one of them, by name")
    parser.add_argument("--packets", type=int, default=PACKETS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
