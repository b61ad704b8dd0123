# SPDX-License-Identifier: Apache-2.0
"""Which node a map command looks at, and what it says when there is nothing to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from cli import state
from cli.main import main
from dataplane.model.errors import BadInput


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    state.map_command(parser.add_subparsers(), "drops", "")
    return parser.parse_args(["drops", *words])


def test_the_folder_of_the_pins_is_the_one_named() -> None:
    assert state.bpffs(arguments("--bpffs", "/a/b")) == Path("/a/b")


def test_the_folder_of_the_pins_is_the_configs(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("nodeName: n\nbpffsDir: /lab/bpf/podlane\n")
    assert state.bpffs(arguments("--config", str(config))) == Path("/lab/bpf/podlane")


def test_a_config_that_leaves_the_folder_out_means_the_default(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("nodeName: n\n")
    assert state.bpffs(arguments("--config", str(config))) == state.DEFAULT_BPFFS


@pytest.mark.parametrize(
    "text", ["a: [", "- a\n", "", "bpffsDir: 3\n", r'bpffsDir: "/\0"', "mtu: 0b_"]
)
def test_a_config_that_is_none_is_bad_input(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(BadInput, match="config"):
        state.bpffs(arguments("--config", str(config)))


@pytest.mark.parametrize(
    "command", ["services", "backends", "endpoints", "routes", "flows", "drops"]
)
def test_a_folder_without_pins_ends_with_status_2_and_a_next_step(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert main([command, "--bpffs", str(folder), "-o", "json"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert str(folder) in err
        assert "; " in err  # the next step


def test_words_of_an_unknown_number_are_the_number() -> None:
    assert state.text("drop", 4711) == "4711"
    assert state.word("route_kind", 4711) == "4711"
    assert state.protocol_word(4711) == "4711"


def test_a_device_that_this_namespace_does_not_have_has_no_name() -> None:
    assert state.device(1, b"\1\2\3\4\5\6") == ""
    assert state.device(4_000_000, bytes(6)) == ""
