# SPDX-License-Identifier: Apache-2.0
"""The runner's judgement: it must never call a kernel good that ran fewer tests than the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.allowed_skips import AllowedSkip, parse
from tests.vm.kernels import KernelError, mirror, obtain
from tests.vm.report import Comparison, compare, junit_name, verified

HOST = ["tests.program.test_a::test_x", "tests.program.test_a::test_y[1]"]
ALLOWED = [AllowedSkip("redirect_peer", "this kernel's test run lacks redirect_peer")]


def junit(*cases: str) -> str:
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def case(name: str, inside: str = "") -> str:
    return f'<testcase classname="tests.program.test_a" name="{name}">{inside}</testcase>'


def judged(*cases: str) -> Comparison:
    return compare(HOST, junit(*cases), ALLOWED)


def test_all_of_the_hosts_tests_passed_is_good() -> None:
    found = judged(case("test_x"), case("test_y[1]"))
    assert (found.ok, found.passed) == (True, 2)


def test_a_named_skip_is_good_and_counted_by_what_is_lacking() -> None:
    skip = (
        '<skipped type="pytest.skip" message="this kernel\'s test run lacks redirect_peer (6.1)"/>'
    )
    found = judged(case("test_x"), case("test_y[1]", skip))
    assert (found.ok, dict(found.named_skips)) == (True, {"redirect_peer": 1})


def test_a_skip_that_is_not_on_the_list_is_bad() -> None:
    found = judged(case("test_x"), case("test_y[1]", '<skipped message="later"/>'))
    assert (found.ok, found.unnamed_skips) == (False, {HOST[1]: "later"})


def test_a_test_that_did_not_run_is_bad() -> None:
    found = judged(case("test_x"))
    assert (found.ok, found.missing) == (False, (HOST[1],))


def test_a_test_that_the_host_does_not_know_is_bad() -> None:
    found = judged(case("test_x"), case("test_y[1]"), case("test_z"))
    assert (found.ok, found.extra) == (False, ("tests.program.test_a::test_z",))


@pytest.mark.parametrize("order", [1, -1])
def test_a_failed_teardown_makes_a_passed_test_fail(order: int) -> None:
    twice = [case("test_x"), case("test_x", '<error message="teardown"/>')][::order]
    found = judged(*twice, case("test_y[1]"))
    assert (found.ok, found.failed) == (False, {HOST[0]: "teardown"})


def test_nothing_run_is_bad_even_if_nothing_was_expected() -> None:
    assert not compare([], junit(), ALLOWED).ok


def test_verified_instructions_are_read_from_the_tests_properties() -> None:
    facts = '<properties><property name="verified to_pod_4" value="1788"/></properties>'
    assert verified(junit(case("test_x", facts))) == {"to_pod_4": 1788}


@pytest.mark.parametrize(
    ("node_id", "name"),
    [
        ("tests/program/test_a.py::test_x", HOST[0]),
        ("tests/program/test_a.py::test_y[1]", HOST[1]),
        ("tests/program/test_a.py::TestC::test_x", "tests.program.test_a.TestC::test_x"),
        ("tests/program/test_a.py::test_x[::1/64]", "tests.program.test_a::test_x[::1/64]"),
    ],
)
def test_node_ids_are_read_as_junit_names(node_id: str, name: str) -> None:
    assert junit_name(node_id) == name


def test_skip_list_takes_comments_and_refuses_a_line_without_a_word() -> None:
    assert parse("# c\n\nkernel: too old  # why\n") == [AllowedSkip("kernel", "too old")]
    with pytest.raises(ValueError, match="line 2"):
        parse("kernel: too old\njust a reason\n")


def test_mirror_is_the_one_that_apt_uses_for_the_main_archive() -> None:
    targets = "bookworm-security main http://s.example/\nbookworm main http://m.example/debian/\n"
    assert mirror(targets) == "http://m.example/debian/"
    with pytest.raises(KernelError, match="no mirror"):
        mirror("nodistro main http://other.example/\n")


def test_an_unknown_kernel_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"'5\.4'.*6\.1, 6\.12, newest"):
        obtain("5.4", tmp_path)
