# SPDX-License-Identifier: Apache-2.0
"""What compiler and verifier say, reduced to one line; the source as one text."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.kernel import bundle, source, verifier
from dataplane.model.errors import BadInput, CompileError

# From Linux 6.18: a source line has its text and place.
NEW_LOG = """\
0: R1=ctx() R10=fp0
; struct flow *f = flows.lookup(&k); @ foo.h:10
20: (85) call bpf_map_lookup_elem#1   ; R0=map_value_or_null(id=1,map=flows,ks=16,vs=88)
21: (bf) r7 = r0                      ; R0=map_value_or_null(id=1) R7=map_value_or_null(id=1)
28: (55) if r1 != 0x5 goto pc+2 31: R0=map_value(map=slots,ks=4,vs=8) R7=map_value_or_null(id=1)
; return f->packets; @ foo.h:12
31: (79) r7 = *(u64 *)(r7 +40)
R7 invalid mem access 'map_value_or_null'
verification time 152 usec
stack depth 24
processed 31 insns (limit 1000000) max_states_per_insn 0 total_states 2 peak_states 2 mark_read 0
"""
# From Linux 6.1: its text alone.
OLD_LOG = NEW_LOG.replace(" @ foo.h:10", "").replace(" @ foo.h:12", "")
NO_LINES = "\n".join(line for line in NEW_LOG.splitlines() if not line.startswith(";"))

ACCEPTED = """\
verification time 242 usec
stack depth 16+32
processed 55 insns (limit 1000000) max_states_per_insn 0 total_states 4 peak_states 4 mark_read 0
"""

DIAGNOSTIC = """\
bpf/foo.h:3:9: warning: unused variable 'x' [-Wunused-variable]
        int x;
            ^
bpf/foo.h:12:9: error: use of undeclared identifier 'g'
        return g->packets;
               ^
1 warning and 1 error generated.
"""
IN_SYSTEM_HEADER = """\
In file included from bpf/packet.h:19:
In file included from /usr/include/linux/icmp.h:23:
/usr/include/linux/if.h:28:10: fatal error: 'sys/socket.h' file not found
#include <sys/socket.h>
         ^~~~~~~~~~~~~~
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "bpf"
    folder.mkdir()
    (folder / "foo.h").write_text("\n" * 11 + "\treturn f->packets;\n")
    return folder


@pytest.mark.parametrize("log", [NEW_LOG, OLD_LOG], ids=["6.18", "6.1"])
def test_a_rejection_names_file_line_and_the_one_reason(log: str, sources: Path) -> None:
    reason = verifier.rejection(log, sources)
    assert reason.where == "bpf/foo.h:12"
    assert reason.text == "R7 invalid mem access 'map_value_or_null'\n\treturn f->packets;"


def test_a_source_line_that_stands_twice_is_shown_without_a_place(sources: Path) -> None:
    (sources / "bar.h").write_text("return f->packets;\n")
    reason = verifier.rejection(OLD_LOG, sources)
    assert (reason.where, reason.source) == ("", "return f->packets;")


def test_without_line_information_the_instruction_is_named() -> None:
    reason = verifier.rejection(NO_LINES)
    assert reason.text == (
        "R7 invalid mem access 'map_value_or_null'\n\t31: (79) r7 = *(u64 *)(r7 +40)"
    )


def test_an_empty_log_is_a_reason_too() -> None:
    assert verifier.rejection("").why == "no reason given"


def test_statistics_add_up_the_stack_of_all_frames() -> None:
    assert verifier.statistics(ACCEPTED) == (55, 48)


def test_the_first_error_is_shown_not_the_warning_before_it() -> None:
    reason = verifier.diagnostic(DIAGNOSTIC)
    assert reason.where == "bpf/foo.h:12"
    assert reason.text == "use of undeclared identifier 'g'\n\treturn g->packets;"


def test_an_error_in_a_system_header_is_shown_at_our_include() -> None:
    assert verifier.diagnostic(IN_SYSTEM_HEADER).where == "bpf/packet.h:19"


def test_each_header_is_put_in_once_and_lines_keep_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("int a;\n")
    (tmp_path / "b.h").write_text('#include "a.h"\nint b;\n')
    main = tmp_path / "datapath.c"
    main.write_text('#include <linux/types.h>\n#include "a.h"\n#include "b.h"\nint c;\n')
    lines = source.inline(main).splitlines()
    assert lines.count("int a;") == 1
    assert "#include <linux/types.h>" in lines
    assert lines[lines.index("int b;") - 1] == f'#line 2 "{tmp_path}/b.h"'
    assert lines[lines.index("int c;") - 1] == f'#line 4 "{main}"'


def test_a_header_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    main = tmp_path / "datapath.c"
    main.write_text('\n#include "gone.h"\n')
    with pytest.raises(CompileError, match=r"datapath\.c:2: no such file: gone\.h"):
        source.inline(main)


def test_programs_are_the_functions_of_a_known_context() -> None:
    text = "int from_pod(struct __sk_buff *skb)\n{\nstatic int helper(struct __sk_buff *skb)\n"
    assert source.program_types(text, 4) == {"from_pod": (3, 0)}


def test_a_program_of_a_cgroup_has_its_hook_s_attach_type() -> None:
    text = "int connect(struct bpf_sock_addr *c)\n{\nint connect_mapped(struct bpf_sock_addr *c)\n"
    assert source.program_types(text, 4) == {"connect": (18, 10), "connect_mapped": (18, 11)}
    assert source.program_types(text, 6) == {"connect": (18, 11)}


def test_the_digest_follows_names_and_texts(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("int a;\n")
    first = source.digest(tmp_path)
    (tmp_path / "a.h").rename(tmp_path / "b.h")
    second = source.digest(tmp_path)
    (tmp_path / "b.h").write_text("int b;\n")
    assert len({first, second, source.digest(tmp_path)}) == 3


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    program = bundle.Program(
        "f_4", 4, "f", 3, 0, bytes(range(16)), {"flows_4": (0, 1)}, verified=7, stack=8
    )
    spec = bundle.MapSpec("flows", 4, 9, 16, 88, 1024, 0)
    written = bundle.Bundle("f" * 64, 1, "bcc 1", {"A": "1"}, (spec,), (program,), "6.1")
    bundle.write(written, tmp_path / "new" / "x.bundle")
    assert bundle.read(tmp_path / "new" / "x.bundle") == written


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_file_that_is_no_bundle_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.bundle"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"x\.bundle"):
        bundle.read(path)
