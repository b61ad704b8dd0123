# SPDX-License-Identifier: Apache-2.0
"""A guest's results against the tests that this machine would run.

Must not run anything: it compares names and counts.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.allowed_skips import AllowedSkip, find


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tests by outcome; names are `module.Class::test[parameters]`, reasons pytest's own words."""

    passed: int
    failed: dict[str, str] = field(default_factory=dict)
    named_skips: Counter[str] = field(default_factory=Counter)
    unnamed_skips: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def wrong(self) -> int:
        """Tests that failed, did not run, were skipped for no named reason or came from nowhere."""
        return len(self.failed) + len(self.unnamed_skips) + len(self.missing) + len(self.extra)

    @property
    def ok(self) -> bool:
        """All of the host's tests passed, less the named skips."""
        return self.passed > 0 and self.wrong == 0


def verified(junit: str) -> dict[str, int]:
    """Instructions that the guest's verifier walked, by program (tests/program/test_limits.py)."""
    return {
        str(fact.get("name")).removeprefix("verified "): int(str(fact.get("value")))
        for fact in ElementTree.fromstring(junit).iter("property")
        if str(fact.get("name")).startswith("verified ")
    }


def junit_name(node_id: str) -> str:
    """A pytest node id in JUnit's words: `a/test_b.py::C::t[x]` is `a.test_b.C::t[x]`."""
    path, bracket, parameters = node_id.partition("[")
    file, *names = path.split("::")
    *classes, test = names
    module = file.removesuffix(".py").replace("/", ".")
    return ".".join([module, *classes]) + "::" + test + bracket + parameters


def compare(host: Iterable[str], junit: str, allowed: list[AllowedSkip]) -> Comparison:
    """Judge a guest's JUnit file by the tests that the host collects (names as `junit_name`)."""
    outcomes: dict[str, tuple[str, str]] = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        outcome, words = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, words = "failed", child.get("message") or child.tag
                break
            if child.tag == "skipped" and child.get("type") != "pytest.xfail":
                outcome, words = "skipped", child.get("message") or ""
        # A test that failed in its teardown comes twice.
        if outcomes.get(name, ("", ""))[0] != "failed":
            outcomes[name] = (outcome, words)

    failed, named, unnamed = {}, Counter[str](), {}
    for name, (outcome, words) in outcomes.items():
        if outcome == "failed":
            failed[name] = words
        elif outcome == "skipped":
            entry = find(words, allowed)
            if entry is None:
                unnamed[name] = words
            else:
                named[entry.lacking] += 1
    expected = set(host)
    return Comparison(
        passed=sum(outcome == "passed" for outcome, _ in outcomes.values()),
        failed=failed,
        named_skips=named,
        unnamed_skips=unnamed,
        missing=tuple(sorted(expected - outcomes.keys())),
        extra=tuple(sorted(outcomes.keys() - expected)),
    )
