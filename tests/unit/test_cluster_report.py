# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from tests.cluster.conformance import results
from tests.cluster.report import render

JUNIT = """<testsuites><testsuite>
<testcase name="[SynchronizedBeforeSuite]" status="passed"/>
<testcase name="[It] [sig-network] A serves" status="passed"/>
<testcase name="[It] [sig-network] B waits" status="failed"><failure message="no &#10; answer"/></testcase>
<testcase name="[It] [sig-network] C asks" status="skipped"><skipped message="skipped - no cloud"/></testcase>
<testcase name="[It] [sig-apps] D" status="skipped"><skipped message="skipped"/></testcase>
<testcase name="[It] [sig-network] E [Provider:GCE] asks"><skipped message="skipped"/></testcase>
</testsuite></testsuites>"""


def test_only_chosen_tests_count_each_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "podlane.xml").write_text(JUNIT)
    assert results(tmp_path / "podlane.xml") == {
        "[sig-network] A serves": ("passed", ""),
        "[sig-network] B waits": ("failed", "no answer"),
        "[sig-network] C asks": ("skipped", "no cloud"),
    }


def test_the_table_has_a_row_a_test_and_says_what_was_not_run(tmp_path: Path) -> None:
    (tmp_path / "podlane.xml").write_text(JUNIT)
    table = render(tmp_path)
    assert "| [sig-network] A serves | passed | not run |" in table
    assert "| [sig-network] B waits | failed: no answer | not run |" in table


def test_a_test_that_is_left_out_has_a_row_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "podlane.xml").write_text(JUNIT)
    reason = "skipped: asks Google's name server"
    row = f"| [sig-network] E [Provider:GCE] asks | {reason} | {reason} |"
    assert row in render(tmp_path)


def test_what_ran_in_one_suite_counts_though_another_left_it_out(tmp_path: Path) -> None:
    ran = '<testsuite><testcase name="[It] [sig-network] E [Provider:GCE] asks"/></testsuite>'
    text = JUNIT.replace("</testsuites>", f"{ran}</testsuites>")
    (tmp_path / "podlane.xml").write_text(text)
    assert "| [sig-network] E [Provider:GCE] asks | passed | not run |" in render(tmp_path)
