# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.agent import install
from dataplane.agent.config import parse


@pytest.mark.parametrize(
    ("files", "first"),
    [
        ((), None),
        (("05-podlane.conflist", "10-bridge.conflist"), None),
        (("00-other.conflist", "05-podlane.conflist"), "00-other.conflist"),
        (("04-b.json", "03-a.conf", "05-podlane.conflist"), "03-a.conf"),
        (("00-other.conflist.bak", ".05-podlane.conflist.inert", "05-podlane.conflist"), None),
    ],
)
def test_another_network_that_the_runtime_would_take_is_named(
    tmp_path: Path, files: tuple[str, ...], first: str | None
) -> None:
    for name in files:
        (tmp_path / name).touch()
    config = parse({"cniConfDir": str(tmp_path)}, "of a test", node_name="any")
    found = [str(problem) for problem in install.shadowed(config)]
    if first is None:
        assert found == []
    else:
        (problem,) = found
        assert str(tmp_path / first) in problem


def test_a_folder_that_is_not_there_yet_is_nothing_to_name(tmp_path: Path) -> None:
    config = parse({"cniConfDir": str(tmp_path / "none")}, "of a test", node_name="any")
    assert install.shadowed(config) == ()
