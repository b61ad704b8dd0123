# SPDX-License-Identifier: Apache-2.0
"""Each kernel's verifier walks a program in its own way: how near to its limit is each one here?

And the programs that others end in, which keep each one short.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dataplane.kernel import loader, verifier
from dataplane.kernel.bundle import Bundle
from tests.program.node import Node
from tests.program.result import dropped, into, refused


def verified_instructions(fd: int) -> int:
    """What this kernel's verifier walked to accept a loaded program."""
    facts = Path(f"/proc/self/fdinfo/{fd}").read_text()
    match = re.search(r"^verified_insns:\s*(\d+)$", facts, re.M)
    assert match is not None, f"this kernel says nothing of verified_insns:\n{facts}"
    return int(match[1])


def test_no_program_needs_half_of_the_instructions_that_the_verifier_walks(
    bundle: Bundle, bpffs: Path, record_property: Callable[[str, object], None]
) -> None:
    with loader.load(bundle, bpffs) as datapath:
        walked = {name: verified_instructions(fd) for name, fd in datapath.programs.items()}
    for name, count in sorted(walked.items()):
        record_property(f"verified {name}", count)
    above = {name: n for name, n in walked.items() if n * 2 > verifier.INSTRUCTION_LIMIT}
    assert walked
    assert not above, f"above half of {verifier.INSTRUCTION_LIMIT}"


def test_a_program_that_is_missing_is_a_drop_by_name(here: Node) -> None:
    here.from_pod("client", "tcp client:40000 > near:80").expect(into("neighbour"))
    new, refusal = "tcp client:40001 > near:80", "tcp client:40000 > empty:80"
    for place in ("START", "CLAIM"):
        with here.without(place):
            here.from_pod("client", new).expect(dropped("TAIL"))
            here.from_pod("client", "tcp client:40000 > near:80 A ack=7").expect(into("neighbour"))
    with here.without("ANSWER"):
        here.from_pod("client", refusal).expect(dropped("NO_BACKEND"))
    here.from_pod("client", new).expect(into("neighbour"))
    here.from_pod("client", refusal).expect(refused("NO_BACKEND"))
