# SPDX-License-Identifier: Apache-2.0
"""What a packet of an established flow costs, in instructions, held against a golden file.

`UPDATE_GOLDEN=1 pytest …` writes the file anew; look at the difference before it is committed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataplane.kernel import bpf
from dataplane.kernel.bundle import Bundle
from dataplane.model.net import Family
from tests.program import executed
from tests.program.node import Node
from tests.program.result import Result, into, out_by, through_tunnel

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 0.05  # another compiler of the same distribution, not another way through the code

Count = Callable[[Callable[[], Result]], int]


@contextmanager
def counting(node: Node, bundle: Bundle, hook: str) -> Iterator[Count]:
    """A function that says what a packet through this hook executes."""
    name, programs = f"{hook}_{node.family:d}", node.datapath.programs
    before = {key: programs.pop(key) for key in list(programs) if key.startswith(name)}
    counter = bpf.map_create("executed", bpf.MAP_ARRAY, 4, 8, 1)
    tables = node.datapath.maps | node.datapath.tails
    fds = {table.pin: fd for table, fd in tables.items()}
    (program,) = (one for one in bundle.programs if one.name == name)
    programs[name] = executed.load(program, fds, counter)

    def count(run: Callable[[], Result]) -> int:
        found = []
        # about every tenth of a second, one looks after its flow's other half; a slow machine has few
        # packets between
        for _ in range(10):
            bpf.map_update(counter, bytes(4), bytes(8))
            run()
            found.append(bpf.map_lookup(counter, bytes(4), 8) or b"")
        return min(int.from_bytes(number, sys.byteorder) for number in found)

    try:
        yield count
    finally:
        for key in [key for key in programs if key.startswith(name)]:
            os.close(programs.pop(key))
        os.close(counter)
        programs.update(before)


def test_a_packet_of_an_established_flow_executes_as_many_instructions_as_it_did(
    here: Node, there: Node, family: Family, bundle: Bundle
) -> None:
    near, answer = "tcp client:40000 > near:80", "tcp neighbour:8080 > client:40000 SA ack=1001"
    plain, far = "tcp client:40001 > neighbour:80", "tcp client:40002 > far:80"
    world, outside = "tcp client:40003 > outside:443", "tcp outside:40000 > here:30080"
    here.from_pod("client", near)
    here.from_pod("neighbour", answer)
    here.from_pod("client", plain)
    tunnelled = here.from_pod("client", far)
    there.from_overlay(tunnelled.frame)
    returned = there.from_pod("remote", "tcp remote:8080 > client:40002 SA ack=1001")
    masqueraded = here.from_pod("client", world)
    here.from_uplink(outside)
    found: dict[str, int] = {}

    def take(what: str, count: Count, run: Callable[[], Result]) -> None:
        found[what] = count(run)

    with counting(here, bundle, "from_pod") as count:
        take(
            "pod to pod",
            count,
            lambda: here.from_pod("client", f"{plain} A ack=7").expect(into("neighbour")),
        )
        take(
            "pod to Service",
            count,
            lambda: here.from_pod("client", f"{near} A ack=7").expect(into("neighbour")),
        )
        take(
            "Service to pod",
            count,
            lambda: here.from_pod("neighbour", answer).expect(into("client")),
        )
        take(
            "pod to far Service",
            count,
            lambda: here.from_pod("client", f"{far} A ack=7").expect(through_tunnel()),
        )
        take(
            "pod to world",
            count,
            lambda: here.from_pod("client", f"{world} A ack=7").expect(out_by()),
        )
    with counting(here, bundle, "from_overlay") as count:
        take("far Service to pod", count,
             lambda: here.from_overlay(returned.frame).expect(into("client")))  # fmt: skip
    with counting(here, bundle, "from_uplink") as count:
        reply = masqueraded.named("tcp outside:443 > here:MASQ SA ack=1001")
        take("world to pod", count, lambda: here.from_uplink(reply).expect(into("client")))
        take("outside to Service", count, lambda: here.from_uplink(f"{outside} A ack=7"))
    text = "".join(f"{count:5}  {what}\n" for what, count in found.items())
    print(f"\ninstructions of a packet of an established flow, {family.name}:\n{text}", end="")
    golden = GOLDEN / f"established_{family:d}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    wanted = {
        w: int(n) for n, w in (line.split(None, 1) for line in golden.read_text().splitlines())
    }
    assert list(found) == list(wanted)
    off = {w: (found[w], n) for w, n in wanted.items() if abs(found[w] - n) > TOLERANCE * n}
    assert not off, "counted, and the golden file's"
