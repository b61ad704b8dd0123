# SPDX-License-Identifier: Apache-2.0
"""`docs/conformance.md` from the JUnit files of Kubernetes' runner, and from these alone."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.build import VERSION
from tests.cluster.conformance import FOLDER, left_out, results

TARGET = Path("docs/conformance.md")
COLUMNS = ("podlane", "kube-proxy")


def render(folder: Path = FOLDER) -> str:
    """The table: a row a test that either side ran or left out, full names unescaped."""
    found = {name: results(folder / f"{name}.xml") for name in COLUMNS}
    reasons = {
        test: reason
        for name in COLUMNS
        for test, reason in left_out(folder / f"{name}.xml").items()
    }
    ran = {name for side in found.values() for name in side}
    lines = [
        "# Kubernetes' own network tests",
        f"Made by `make conformance` from the JUnit files of Kubernetes {VERSION}'s runner. kube-proxy"
        " ran with the plugins bridge, host-local and portmap, in a cluster of the same making."
        " First the tests that ran, then those that neither side ran, each with the reason.",
        "",
        "| test | podlane | kube-proxy |",
        "|---|---|---|",
    ]
    for test in sorted(ran):
        cells = [_cell(found[name].get(test)) for name in COLUMNS]
        lines.append(f"| {test} | {' | '.join(cells)} |")
    for test in sorted(reasons.keys() - ran):
        cell = _cell(("skipped", reasons[test]))
        lines.append(f"| {test} | {cell} | {cell} |")
    return "\n".join(lines) + "\n"


def _cell(outcome: tuple[str, str] | None) -> str:
    if outcome is None:
        return "not run"
    word, reason = outcome
    return f"{word}: {reason.replace('|', '/')[:200]}" if reason else word


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
