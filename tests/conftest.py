# SPDX-License-Identifier: Apache-2.0
"""What all tests share: markers by folder, the need for root, the rule about skips, the bundle."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dataplane.kernel.bundle import Bundle
from dataplane.kernel.compiler import compile_bundle
from tests import allowed_skips

TESTS = Path(__file__).parent
LEVELS = ("unit", "program", "network", "cluster", "vm")
EMULATED = "PODLANE_EMULATED" in os.environ  # tests/vm/guest.sh says so
IN_CI = os.environ.get("CI") == "true"

# No deadlines: a machine under emulation is slow for reasons that no test is about.
settings.register_profile("podlane", deadline=None, derandomize=IN_CI)
settings.load_profile("podlane")

_unexpected_skips: list[str] = []

# A job in the background of a shell ignores SIGINT, and so would all that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the level whose folder it is in."""
    for item in items:
        level = item.path.relative_to(TESTS).parts[0]
        if level in LEVELS:
            item.add_marker(level)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Load programs and make namespaces only as root; take times only on a real CPU."""
    needs_root = any(item.get_closest_marker(level) for level in ("program", "network"))
    if needs_root and os.geteuid() != 0:
        pytest.skip("needs root: it loads BPF programs or makes network namespaces")
    if item.get_closest_marker("speed") and EMULATED:
        pytest.skip("the CPU is emulated: its times say nothing")


def _note_skip(where: str, longrepr: object) -> None:
    reason = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
    reason = reason.removeprefix("Skipped: ")
    if allowed_skips.find(reason, allowed_skips.load()) is None:
        _unexpected_skips.append(f"{where}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a skipped test (an expected failure is none)."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _note_skip(report.nodeid, report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a skipped file."""
    if report.skipped:
        _note_skip(report.nodeid, report.longrepr)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, fail a run with a skip that is not on the list."""
    if IN_CI and _unexpected_skips and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the skips that CI does not accept."""
    if IN_CI and _unexpected_skips:
        terminalreporter.section("skips that are not in tests/allowed-skips.txt", red=True)
        for skip in _unexpected_skips:
            terminalreporter.line(skip)


@pytest.fixture(scope="session")
def bundle(pytestconfig: pytest.Config) -> Bundle:
    """What the sources compile to; compiled only if they changed."""
    return compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")


@pytest.fixture
def quick(bundle: Bundle) -> Bundle:
    """The bundle less the programs that take the verifier long."""
    few = tuple(p for p in bundle.programs if p.verified < 6000)
    assert few
    return dataclasses.replace(bundle, programs=few, fingerprint="quick")


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A folder with a bpf filesystem of the test's own."""
    folder = tmp_path / "bpffs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
