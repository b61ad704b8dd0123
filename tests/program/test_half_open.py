# SPDX-License-Identifier: Apache-2.0
"""A connection is kept as an established one only once its client has gone on after the answer.

Who sends SYNs and ignores what comes back would else fill the table and the masquerade ports
with flows of six hours.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.kernel.sweep import Sweeper
from tests.program import world
from tests.program.node import Node
from tests.program.result import ABI, CHECKED_WITHIN, State, dropped, into, out_by, refused

LIFETIME_TCP_SYN = ABI.constant("LIFETIME_TCP_SYN")
SLACK = 20  # seconds that an emulated CPU may take for a test, by far

PORT = 61000  # the only one under which clients are hidden
ASKED, REPLY = "tcp outside:40000 > here:30080", f"tcp neighbour:8080 > router:{PORT}"
SENT, SEEN = f"tcp router:{PORT} > neighbour:8080", "tcp here:30080 > outside:40000"
ANOTHER = "tcp outside2:50000 > here:30080"
HIDDEN = f"{SENT} ttl=63"
HALF_OPEN = State.FLOW_SYN_ANSWERED
ESTABLISHED = State.FLOW_SYN_ANSWERED | State.FLOW_SEEN_REPLY

# what is told, what the client and the backend send after the client's SYN, in what state both
# halves are then
Segments = list[tuple[str, str]]
LEFT_HALF_OPEN: list[tuple[str, Segments, int]] = [
    ("nobody answers", [], 0),
    ("the answer is ignored", [("backend", "SA")], HALF_OPEN),
    ("and repeated", [("backend", "SA"), ("backend", "SA")], HALF_OPEN),
    ("the client repeats its SYN", [("backend", "SA"), ("client", "S")], HALF_OPEN),
    ("the client answers a SYN", [("backend", "S"), ("client", "SA")], HALF_OPEN),
    ("a segment that acknowledges nothing", [("backend", "SA"), ("client", "P")], HALF_OPEN),
    ("an acknowledgement before the answer", [("client", "A"), ("backend", "SA")], HALF_OPEN),
    ("the backend tells its state", [("backend", "A")], HALF_OPEN),
]
GONE_ON: list[tuple[str, Segments, int]] = [
    ("the client acknowledges", [("backend", "SA"), ("client", "A")], ESTABLISHED),
    ("with data", [("backend", "SA"), ("client", "PA")], ESTABLISHED),
    (
        "and closes its side at once",
        [("backend", "SA"), ("client", "FA")],
        ESTABLISHED | State.FLOW_FIN_CLIENT,
    ),
    (
        "after it has repeated its SYN",
        [("backend", "SA"), ("client", "S"), ("backend", "SA"), ("client", "A")],
        ESTABLISHED,
    ),
]


def cases(rows: list[tuple[str, Segments, int]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("segments", "state"), [rest for _, *rest in rows], ids=[words for words, *_ in rows]
    )


def sweep(node: Node) -> int:
    """What a sweep forgets now."""
    *_, last = Sweeper(node.datapath.maps[node.table("flows")], node.family).sweep()
    return last.deleted


@pytest.fixture(autouse=True)
def one_port(here: Node) -> None:
    here.change("node", 0, masquerade_min=PORT, masquerade_max=PORT)


def open_(here: Node, segments: Segments) -> None:
    here.from_uplink(ASKED).expect(into("neighbour"), HIDDEN)
    for who, flags in segments:
        if who == "client":
            sent = here.from_uplink(f"{ASKED} {flags}")
            sent.expect(into("neighbour"), f"{SENT} {flags} ttl=63")
        else:
            sent = here.from_pod("neighbour", f"{REPLY} {flags}")
            sent.expect(out_by(), f"{SEEN} {flags} ttl=63")


@cases(LEFT_HALF_OPEN)
def test_what_is_not_gone_on_with_gives_its_port_up(
    here: Node, segments: Segments, state: int
) -> None:
    open_(here, segments)
    assert [here.flow(line).state for line in (ASKED, REPLY)] == [state, state]
    here.later(LIFETIME_TCP_SYN - SLACK)
    here.from_uplink(ANOTHER).expect(dropped("PORTS_EXHAUSTED"))
    here.later(2 * SLACK)
    here.from_uplink(ANOTHER).expect(into("neighbour"), HIDDEN)
    answer = here.from_pod("neighbour", f"{REPLY} SA").expect(out_by())
    assert (
        answer.frame[14:]
        == here.build("tcp here:30080 > outside2:50000 SA ttl=63", bytes(6), bytes(6))[14:]
    )
    # who comes back too late is told so, and takes nothing from the other
    here.from_uplink(f"{ASKED} A ack=1").expect(refused("NO_FLOW"))


@cases(LEFT_HALF_OPEN)
def test_a_sweep_forgets_it(here: Node, segments: Segments, state: int) -> None:
    open_(here, segments)
    here.later(LIFETIME_TCP_SYN - SLACK)
    assert sweep(here) == 0
    here.later(2 * SLACK)
    assert sweep(here) == 2
    here.from_uplink(ANOTHER).expect(into("neighbour"), HIDDEN)


@cases(GONE_ON)
def test_what_is_gone_on_with_is_kept_as_established(
    here: Node, segments: Segments, state: int
) -> None:
    open_(here, segments)
    assert [here.flow(line).state for line in (ASKED, REPLY)] == [state, state]
    here.later(2 * LIFETIME_TCP_SYN)
    assert sweep(here) == 0
    here.from_uplink(ANOTHER).expect(dropped("PORTS_EXHAUSTED"))
    here.from_pod("neighbour", f"{REPLY} A").expect(out_by(), f"{SEEN} A ttl=63")
    here.from_uplink(f"{ASKED} A").expect(into("neighbour"), f"{SENT} A ttl=63")


@pytest.mark.parametrize("lost", [ASKED, REPLY], ids=["original", "reply"])
def test_the_acknowledgement_counts_though_a_half_was_lost(here: Node, lost: str) -> None:
    """Put back by that very segment, or later: the flow as a whole is established."""
    open_(here, [("backend", "SA")])
    here.forget(lost)
    here.later(CHECKED_WITHIN)
    here.from_uplink(f"{ASKED} A ack=1").expect(into("neighbour"), f"{SENT} A ack=1 ttl=63")
    assert [here.flow(line).state for line in (ASKED, REPLY)] == [ESTABLISHED, ESTABLISHED]
    here.later(LIFETIME_TCP_SYN + 1)
    assert sweep(here) == 0
    here.from_uplink(ANOTHER).expect(dropped("PORTS_EXHAUSTED"))


@pytest.mark.parametrize("flags", ["R", "RA", "SA", "P"])
def test_another_segment_puts_a_half_back_as_half_open(here: Node, flags: str) -> None:
    open_(here, [("backend", "SA")])
    here.forget(ASKED)
    here.from_uplink(f"{ASKED} {flags}").expect(into("neighbour"))
    assert [here.flow(line).state for line in (ASKED, REPLY)] == [HALF_OPEN, HALF_OPEN]


def test_what_older_programs_knew_as_established_stays_so(here: Node) -> None:
    """They set FLOW_SEEN_REPLY with the answer, and nothing else."""
    open_(here, [])
    for key, flow in here.flows().items():
        here.put("flows", key, replace(flow, state=int(State.FLOW_SEEN_REPLY)))
    here.later(LIFETIME_TCP_SYN + 1)
    assert sweep(here) == 0
    here.from_uplink(ANOTHER).expect(dropped("PORTS_EXHAUSTED"))
    here.from_pod("neighbour", f"{REPLY} A").expect(out_by(), f"{SEEN} A ttl=63")
    assert [here.flow(line).state for line in (ASKED, REPLY)] == [ESTABLISHED, ESTABLISHED]


def test_a_pod_that_is_its_own_backend(here: Node) -> None:
    """Both ends pass the same hook; direction is told by the tuple."""
    asked, reply = "tcp client:40000 > self:80", f"tcp client:8080 > router:{PORT}"
    here.from_pod("client", asked).expect(into("client"))
    here.from_pod("client", f"{reply} SA").expect(into("client"))
    assert [here.flow(line).state for line in (asked, reply)] == [HALF_OPEN, HALF_OPEN]
    here.from_pod("client", f"{asked} A").expect(into("client"))
    assert [here.flow(line).state for line in (asked, reply)] == [ESTABLISHED, ESTABLISHED]


def test_what_came_through_the_stack(here: Node) -> None:
    asked, reply = "tcp lan:40000 > client:80", "tcp client:80 > lan:40000"
    here.to_pod("client", asked)
    here.from_pod("client", f"{reply} SA")
    assert [here.flow(line).state for line in (asked, reply)] == [HALF_OPEN, HALF_OPEN]
    here.to_pod("client", f"{asked} A")
    assert [here.flow(line).state for line in (asked, reply)] == [ESTABLISHED, ESTABLISHED]


def test_associations_and_datagrams_are_answered_at_once(here: Node) -> None:
    for line, back in (
        ("udp client:40000 > near:53", "udp neighbour:5353 > client:40000"),
        ("sctp client:40000 > near:80 chunk=1", "sctp neighbour:3868 > client:40000 chunk=2"),
    ):
        here.from_pod("client", line).expect(into("neighbour"))
        here.from_pod("neighbour", back).expect(into("client"))
    assert {flow.state for flow in here.flows().values()} == {int(State.FLOW_SEEN_REPLY)}


def test_the_node_that_is_asked_for_a_direct_return_sees_no_answer(here: Node) -> None:
    """Whoever goes on is taken for one who was answered, as before."""
    asked = "tcp outside:40000 > here:30081"
    flags = here.get("node", 0).flags | ABI.enum("node_flag")["NODE_DIRECT"]
    here.change("node", 0, flags=flags, overlay_ifindex=world.OVERLAY)
    here.from_uplink(asked)
    assert not here.flow(asked).state
    here.from_uplink(f"{asked} A")
    assert here.flow(asked).state == State.FLOW_SEEN_REPLY
    here.later(LIFETIME_TCP_SYN + 1)
    assert sweep(here) == 0
