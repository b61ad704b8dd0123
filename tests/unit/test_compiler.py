# SPDX-License-Identifier: Apache-2.0
"""The compiler on sources of the test's own: errors that name their line, and no work twice."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from dataplane.kernel import bundle, compiler
from dataplane.model.errors import BadEnvironment, CompileError

# It needs root, but is no test of a kernel: under emulation a compile takes a minute.
pytestmark = pytest.mark.program

HEADERS = ("abi.h", "config.h", "maps.h", "scratch.h")
BODY = """\
#include "maps.h"

static __always_inline int first(struct __sk_buff *skb)
{
	return skb->mark;
}

static __always_inline int answer(struct __sk_buff *skb)
{
	__u32 key = skb->mark;
	struct uplink *uplink = uplinks.lookup(&key);

	return RESULT;
}
"""
MAIN = """\
#include "answer.h"

int to_pod(struct __sk_buff *skb)
{
	return first(skb) + answer(skb);
}

int from_pod_l2(struct __sk_buff *skb)
{
	return first(skb);
}
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder bpf/ with two small programs."""
    folder = tmp_path / "bpf"
    folder.mkdir()
    for name in HEADERS:
        shutil.copy(Path("bpf") / name, folder)
    shutil.copytree(Path("bpf") / "shim", folder / "shim")
    (folder / "datapath.c").write_text(MAIN)
    (folder / "answer.h").write_text(BODY)
    return folder


def compile_(sources: Path, result: str) -> bundle.Bundle:
    return compiler.compile_bundle(sources.parent / "x.bundle", {"RESULT": result}, sources)


def test_each_program_is_there_once_a_family(sources: Path) -> None:
    made = compile_(sources, "uplink?uplink->mtu:0")
    assert [program.name for program in made.programs] == ["from_pod_l2", "to_pod_4", "to_pod_6"]
    by_name = {program.name: program for program in made.programs}
    assert list(by_name["to_pod_6"].relocations) == ["uplinks_6"]
    assert by_name["to_pod_4"].verified > 0
    assert by_name["to_pod_4"].stack >= 4
    assert {spec.pin for spec in made.maps} > {"peers", "flows_4", "flows_6"}


def test_what_is_compiled_is_not_compiled_again(sources: Path) -> None:
    first = compile_(sources, "0")
    begun = time.process_time(), time.monotonic()
    assert compile_(sources, "0") == first
    assert time.process_time() - begun[0] < 0.1
    other = compile_(sources, "1")
    assert other.fingerprint != first.fingerprint
    (sources / "answer.h").write_text(BODY + "/* changed */\n")
    assert compile_(sources, "1").fingerprint != other.fingerprint


def test_a_compile_error_names_file_line_and_source_line(sources: Path) -> None:
    (sources / "answer.h").write_text(BODY.replace("RESULT", "nonsense"))
    with pytest.raises(CompileError) as error:
        compile_(sources, "0")
    assert str(error.value) == (
        "bpf/answer.h:13: use of undeclared identifier 'nonsense'\n\treturn nonsense;"
    )
    assert "1 error generated" in error.value.log
    assert not (sources.parent / "x.bundle").exists()


def test_a_verifier_rejection_names_file_line_and_source_line(sources: Path) -> None:
    (sources / "answer.h").write_text(BODY.replace("RESULT", "uplink->mtu"))
    with pytest.raises(CompileError) as error:
        compile_(sources, "0")
    assert error.value.what == "bpf/answer.h:13 (to_pod_4)"
    assert error.value.why.endswith("'map_value_or_null'\n\treturn uplink->mtu;")
    assert "processed" in error.value.log


def test_a_header_that_does_not_compile_alone_is_named(sources: Path) -> None:
    assert compiler.check_headers(sources) != []  # RESULT is not defined
    (sources / "answer.h").write_text(BODY.replace("RESULT", "0"))
    assert compiler.check_headers(sources) == []


def test_without_a_compiler_the_bundle_that_is_there_is_taken(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = compile_(sources, "0")
    monkeypatch.setattr(compiler, "_compiler_version", lambda: None)
    assert compile_(sources, "0") == there
    (sources.parent / "x.bundle").unlink()
    with pytest.raises(BadEnvironment, match="no compiler; install Debian's python3-bpfcc"):
        compile_(sources, "0")


def test_a_program_above_half_of_a_limit_fails_the_statistics(
    sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sources / "datapath.c").write_text(
        MAIN.replace(
            "return first(skb) +",
            "__u64 big[40] = {};\n\n\tbpf_skb_load_bytes(skb, 0, big, sizeof(big));\n\treturn big[3] +",
        )
    )
    compile_(sources, "0")
    out = sources.parent / "x.bundle"
    assert compiler.main(["--stats", str(out)]) == 1
    captured = capsys.readouterr()
    assert "above half of a limit" in captured.err
    assert "to_pod_4" in captured.err
    assert "from_pod_l2" in captured.out


def test_no_temporary_file_is_left(sources: Path) -> None:
    compile_(sources, "0")
    assert sorted(os.listdir(sources.parent)) == ["bpf", "x.bundle"]
