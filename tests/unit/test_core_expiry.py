# SPDX-License-Identifier: Apache-2.0
"""How long a flow may be silent, by protocol and state."""

from __future__ import annotations

import pytest

from dataplane.core.expiry import STATES, Lifetimes, StateBits, lifetime, table
from dataplane.model.net import Protocol

LIVES = Lifetimes(
    tcp_syn=1, tcp_established=2, tcp_closing=3, tcp_time_wait=4, udp_single=5, udp_stream=6, sctp=8, other=7
)  # fmt: skip
BITS = StateBits(seen_reply=1, fin_client=2, fin_backend=4, reset=8, backend_first=16, lasting=32)
ANSWERED, CLIENT, BACKEND, RESET, FIRST, LASTING, SYN_ANSWERED = 1, 2, 4, 8, 16, 32, 64
ICMP = 1


@pytest.mark.parametrize(
    ("protocol", "state", "seconds"),
    [
        pytest.param(Protocol.TCP, 0, 1, id="TCP that nobody answered"),
        pytest.param(Protocol.TCP, SYN_ANSWERED, 1, id="TCP half open"),
        pytest.param(Protocol.TCP, SYN_ANSWERED | BACKEND | FIRST, 1, id="TCP given up by backend"),
        pytest.param(Protocol.TCP, SYN_ANSWERED | RESET, 3, id="TCP half open, then reset"),
        pytest.param(Protocol.TCP, SYN_ANSWERED | ANSWERED, 2, id="TCP established"),
        pytest.param(Protocol.TCP, ANSWERED, 2, id="TCP established, of older programs"),
        pytest.param(Protocol.TCP, ANSWERED | CLIENT, 2, id="TCP half closed is alive"),
        pytest.param(Protocol.TCP, ANSWERED | BACKEND | FIRST, 2, id="TCP half closed by backend"),
        pytest.param(Protocol.TCP, ANSWERED | CLIENT | BACKEND, 3, id="TCP closed by client first"),
        pytest.param(
            Protocol.TCP, ANSWERED | CLIENT | BACKEND | FIRST, 4, id="TCP in TIME_WAIT at backend"
        ),
        pytest.param(Protocol.TCP, RESET, 3, id="TCP reset before an answer"),
        pytest.param(Protocol.TCP, ANSWERED | RESET | FIRST, 3, id="a reset ends TIME_WAIT"),
        pytest.param(Protocol.UDP, 0, 5, id="UDP one way"),
        pytest.param(Protocol.UDP, ANSWERED, 5, id="UDP question and answer"),
        pytest.param(Protocol.UDP, LASTING, 5, id="UDP one way for long"),
        pytest.param(Protocol.UDP, ANSWERED | LASTING, 6, id="UDP stream"),
        pytest.param(Protocol.SCTP, 0, 7, id="SCTP that nobody answered"),
        pytest.param(Protocol.SCTP, ANSWERED, 8, id="SCTP established"),
        pytest.param(Protocol.SCTP, ANSWERED | RESET, 3, id="SCTP aborted"),
        pytest.param(ICMP, ANSWERED, 7, id="ICMP"),
    ],
)
def test_silence_that_a_flow_survives(protocol: int, state: int, seconds: int) -> None:
    assert lifetime(LIVES, BITS, protocol, state) == seconds
    assert table(LIVES, BITS)[protocol << 8 | state] == seconds * 10**9


@pytest.mark.parametrize("protocol", [*Protocol, ICMP])
def test_an_answer_alone_prolongs_nothing(protocol: int) -> None:
    """That the backend answers is its own doing; the client's going on is what counts."""
    for state in range(STATES):
        answered = lifetime(LIVES, BITS, protocol, state | SYN_ANSWERED)
        assert answered == lifetime(LIVES, BITS, protocol, state & ~SYN_ANSWERED)


def test_only_tcp_that_went_on_is_kept_as_established() -> None:
    for state in range(STATES):
        kept = lifetime(LIVES, BITS, Protocol.TCP, state) == LIVES.tcp_established
        assert kept == (bool(state & ANSWERED) and not BITS.closed(state))


def test_every_protocol_and_state_has_an_answer() -> None:
    assert len(table(LIVES, BITS)) == 256 * STATES
