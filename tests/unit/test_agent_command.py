# SPDX-License-Identifier: Apache-2.0
"""How `podlane` finds a command and tells its failure; the agent's command as the example."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli import main as command
from dataplane.model.errors import CheckFailed, CompileError, Contradiction, PodlaneError


def run_one(monkeypatch: pytest.MonkeyPatch, failure: BaseException | None, *words: str) -> int:
    """Run a command `agent` whose doing is to raise `failure`."""

    def run(args: argparse.Namespace) -> int:
        if failure is not None:
            raise failure
        return 0

    module = SimpleNamespace(add_parser=lambda parsers: parsers.add_parser("agent"), run=run)
    monkeypatch.setattr(command, "_module", lambda name: module)
    return command.main([*words, "agent"])


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (None, 0, ""),
        (CheckFailed("row 3", "no answer"), 1, "podlane: row 3: no answer\n"),
        (PodlaneError("config", "bad", "mend it"), 2, "podlane: config: bad; mend it\n"),
        (Contradiction("set 7", "has two owners"), 3, "podlane: set 7: has two owners"),
        (KeyError("x"), 3, "internal contradiction: KeyError: 'x'; this is a bug"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_failure_has_its_status_and_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: BaseException | None,
    status: int,
    words: str,
) -> None:
    assert run_one(monkeypatch, failure) == status
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_debug_shows_traceback_and_whole_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = CompileError("bpf/nat.h:7", "unknown name", log="a page of words")
    assert run_one(monkeypatch, failure) == 2
    assert capsys.readouterr().err == "podlane: bpf/nat.h:7: unknown name (--debug shows more)\n"
    assert run_one(monkeypatch, failure, "--debug") == 2
    said = capsys.readouterr().err
    assert "a page of words" in said
    assert "Traceback" in said


def test_an_unknown_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["jump"])
    assert ended.value.code == 2
    assert "invalid choice: 'jump'" in capsys.readouterr().err


def test_a_bad_config_exits_2_and_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("modes: vxlan\n")
    words = ["agent", "--config", str(config), "--manifests", str(tmp_path)]
    assert command.main(words) == 2
    assert f"config {config}: modes: unknown key" in capsys.readouterr().err


def test_help_imports_no_command() -> None:
    ask = (
        "import sys; from cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(n for n in sys.modules if n.startswith('cli.') or n in ('rich', 'yaml')))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['cli.main']"


def test_every_command_that_help_names_is_there() -> None:
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            command.main([name, "--help"])
        assert ended.value.code == 0
