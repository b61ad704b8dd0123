# SPDX-License-Identifier: Apache-2.0
"""How long a flow may be silent: the rules by which the sweep forgets flows.

The programs apply the same rules when a packet meets an old entry (ct_lifetime() in
bpf/conntrack.h). Pure; times are seconds. Must not read maps or clocks.

Orders of magnitude follow nf_conntrack's defaults, save that an established TCP flow
may be silent for six hours, not five days: a lost one is then not kept for ever, and a
live one that says nothing for so long is put back by its next packet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.model.net import Protocol

# A state is a byte; bits that this version does not know are kept by nobody, and harmless.
STATES = 256


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds of silence a protocol and state; bpf/abi.h has the numbers."""

    tcp_syn: int
    tcp_established: int
    tcp_closing: int
    tcp_time_wait: int
    udp_single: int
    udp_stream: int
    sctp: int
    other: int


@dataclass(frozen=True, slots=True)
class StateBits:
    """The bits of enum flow_state that lifetimes depend on.

    FLOW_SYN_ANSWERED is none of them: TCP without FLOW_SEEN_REPLY is not established,
    whether it was answered or not.
    """

    seen_reply: int
    fin_client: int
    fin_backend: int
    reset: int
    backend_first: int
    lasting: int

    def closed(self, state: int) -> bool:
        """Both sides closed, or one reset."""
        both = self.fin_client | self.fin_backend
        return bool(state & self.reset) or state & both == both


def lifetime(lifetimes: Lifetimes, bits: StateBits, protocol: int, state: int) -> int:
    """Seconds that a flow in this state may be silent."""
    if protocol == Protocol.TCP:
        if bits.closed(state):
            lingers = state & bits.backend_first and not state & bits.reset
            return lifetimes.tcp_time_wait if lingers else lifetimes.tcp_closing
        return lifetimes.tcp_established if state & bits.seen_reply else lifetimes.tcp_syn
    if protocol == Protocol.UDP:
        stream = state & bits.seen_reply and state & bits.lasting
        return lifetimes.udp_stream if stream else lifetimes.udp_single
    if protocol == Protocol.SCTP and bits.closed(state):
        return lifetimes.tcp_closing
    if protocol == Protocol.SCTP and state & bits.seen_reply:
        return lifetimes.sctp
    return lifetimes.other


def table(lifetimes: Lifetimes, bits: StateBits) -> Mapping[int, int]:
    """Lifetimes in ns by `protocol << 8 | state`, for a sweep that has no time to ask."""
    return {
        protocol << 8 | state: lifetime(lifetimes, bits, protocol, state) * 10**9
        for protocol in range(256)
        for state in range(STATES)
    }
