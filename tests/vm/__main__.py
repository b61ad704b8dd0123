# SPDX-License-Identifier: Apache-2.0
"""`make test-vm`: the program tests and a small network test under other kernels.

Must not hide a test: each kernel's count is the host's, less the skips that
`tests/allowed-skips.txt` names, or the run fails.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dataplane.kernel.compiler import compile_bundle
from dataplane.model.errors import PodlaneError
from tests import allowed_skips
from tests.vm import kernels, machine, report

SELECTION = ["tests/program", "tests/network/test_every_kernel.py"]
SHOWN_LINES = 40
SHOWN_TESTS = 10


def collect(selection: list[str]) -> list[str]:
    """The names of the tests that this machine would run, as a JUnit file has them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *selection],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        sys.exit(f"test-vm: this machine can't collect the tests:\n{done.stdout}{done.stderr}")
    return [report.junit_name(line) for line in done.stdout.splitlines() if "::" in line]


def _tail(path: Path) -> str:
    if not path.is_file():
        return f"({path} was not written)"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])


def _judge(run: machine.Run, host: list[str], limit: float) -> tuple[str, report.Comparison]:
    """A run in words, and what was found."""
    name = run.kernel.name
    if run.junit is None:
        why = f"ran out of its {limit / 60:g} minutes" if run.timed_out else "ended early"
        words = [f"{name:8} FAILED: the guest {why}"]
        for log in ("pytest.log", "console.log"):
            words.append(f"  the end of {run.results}/{log}:\n{_tail(run.results / log)}")
        return "\n".join(words), report.Comparison(passed=0, missing=tuple(host))
    junit = run.junit.read_text(encoding="utf-8")
    found = report.compare(host, junit, allowed_skips.load())
    skips = ", ".join(f"{count} for want of {word}" for word, count in found.named_skips.items())
    unnamed = found.unnamed_skips.items()
    lines = [
        f"{name:8} {'ok' if found.ok else 'FAILED'}: {found.passed} of {len(host)} tests passed"
        f"{f', skipped {skips}' if skips else ''}, {len(found.failed)} failed"
        f"  (Linux {run.release}; booted in {run.booted:.0f} s, {run.seconds:.0f} s in all)"
    ]
    if walked := report.verified(junit):
        lines.append(f"    verified: {', '.join(f'{k} {v}' for k, v in walked.items())}")
    lines += [f"    failed: {test}: {words}" for test, words in found.failed.items()]
    lines += [f"    skip not on the list: {test}: {why}" for test, why in unnamed]
    lines += [f"    not run: {test}" for test in found.missing[:SHOWN_TESTS]]
    if len(found.missing) > SHOWN_TESTS:
        lines.append(f"    not run: {len(found.missing) - SHOWN_TESTS} more")
    lines += [f"    not a test of this machine: {test}" for test in found.extra]
    if not found.ok:
        lines.append(f"  the end of {run.results}/pytest.log:\n{_tail(run.results / 'pytest.log')}")
    return "\n".join(lines), found


def _stop(number: int, _: object) -> None:
    machine.end_all()
    os._exit(128 + number)


def main() -> int:
    """Run the kernels that the command line names; 0 if each is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="6.1, 6.12 or newest")
    parser.add_argument("--minutes", type=float, default=60, help="time limit of one kernel")
    parser.add_argument("-k", metavar="EXPRESSION", help="only these tests, as pytest's -k")
    options = parser.parse_args()
    selection = SELECTION + (["-k", options.k] if options.k else [])
    names = list(dict.fromkeys(options.kernels)) or list(kernels.SOURCES)
    limit = options.minutes * 60
    build = Path.cwd() / "build"
    build.mkdir(exist_ok=True)

    try:
        # Here, once: the guests find the bundle done, and compile nothing under emulation.
        compile_bundle(build / "podlane.bundle")
    except PodlaneError as error:
        print(f"test-vm: {error}", file=sys.stderr)
        return 2
    host = collect(selection)
    print(f"host     {len(host)} tests collected", flush=True)
    try:
        guests = [kernels.obtain(name, build / "cache/kernels") for name in names]
    except kernels.KernelError as error:
        print(f"test-vm: {error}", file=sys.stderr)
        return 2

    def run(kernel: kernels.Kernel) -> machine.Run:
        return machine.run_tests(kernel, selection, build / "vm" / kernel.name, limit)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    found = []
    # All at once: an emulated CPU each, so three keep two real ones busy to the end.
    with ThreadPoolExecutor(len(guests)) as pool:
        for done in pool.map(run, guests):
            words, comparison = _judge(done, host, limit)
            print(words, flush=True)
            found.append(comparison)
    skipped = sum(comparison.named_skips.total() for comparison in found)
    wrong = sum(comparison.wrong for comparison in found)
    print(f"{sum(c.passed for c in found)} passed, {wrong} failed, {skipped} skipped")
    return 0 if all(comparison.ok for comparison in found) else 1


if __name__ == "__main__":
    sys.exit(main())
