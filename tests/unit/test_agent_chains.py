# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataplane.agent.chains import Chains
from dataplane.cni import protocol
from dataplane.cni.protocol import CniError

OURS = {"type": "podlane-cni"}
BY_POD = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def write(folder: Path, *plugins: dict[str, Any], name: str = "net") -> None:
    (folder / "10-a.conflist").write_text(json.dumps({"name": name, "plugins": plugins}))


@pytest.mark.parametrize(
    ("plugins", "limits"),
    [
        ([OURS, {"type": "bandwidth", "egressRate": 1000}], False),
        ([OURS, {"type": "tuning"}, {"type": "bandwidth", "ingressRate": 1000}], False),
        ([OURS, BY_POD], True),
    ],
)
def test_a_second_shaper_behind_us_is_refused_by_name(
    tmp_path: Path, plugins: list[dict[str, Any]], limits: bool
) -> None:
    write(tmp_path, *plugins)
    with pytest.raises(CniError, match=r"plugin bandwidth in .*10-a.conflist") as refused:
        Chains(tmp_path).refuse("net", limits=limits)
    assert refused.value.code == protocol.BAD_CONFIG
    assert "take it out of the chain" in refused.value.next_step
    Chains(tmp_path).refuse("other", limits=limits)


@pytest.mark.parametrize(
    "plugins",
    [
        [OURS],
        [OURS, {"type": "bandwidth"}, {"type": "portmap"}],
        [OURS, BY_POD],
        [{"type": "bridge"}, {"type": "bandwidth", "egressRate": 1000}],
    ],
)
def test_other_chains_are_no_business_of_ours(
    tmp_path: Path, plugins: list[dict[str, Any]]
) -> None:
    write(tmp_path, *plugins)
    Chains(tmp_path).refuse("net", limits=False)


def test_a_changed_file_is_read_again_and_a_broken_one_is_left_alone(tmp_path: Path) -> None:
    chains = Chains(tmp_path)
    chains.refuse("net", limits=True)
    write(tmp_path, OURS)
    chains.refuse("net", limits=True)
    write(tmp_path, OURS, BY_POD)
    with pytest.raises(CniError):
        chains.refuse("net", limits=True)
    (tmp_path / "10-a.conflist").write_text("{")
    chains.refuse("net", limits=True)
    Chains(tmp_path / "missing").refuse("net", limits=True)
