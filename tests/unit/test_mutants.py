# SPDX-License-Identifier: Apache-2.0
"""The list of faults for `make fuzz-mutants` fits the sources as they are."""

from __future__ import annotations

import pytest

from tests.program.differential.mutants import ROOT, Mutant, load


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in load()]
    assert len(names) >= 30
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", load(), ids=lambda mutant: mutant.name)
def test_its_line_stands_there_once(mutant: Mutant) -> None:
    assert mutant.file.startswith(("bpf/", "dataplane/core/"))
    assert not mutant.file.startswith("dataplane/core/reference/")
    lines = (ROOT / mutant.file).read_text().splitlines()
    assert [line.strip() for line in lines].count(mutant.old) == 1
    assert mutant.new != mutant.old
