# SPDX-License-Identifier: Apache-2.0
"""One trial of a flow: what a program said, and what became of the packet or the call.

Packets go through BPF_PROG_TEST_RUN; the node's own flows are calls of real sockets
(dataplane.explain.calls). Must not compare trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as Interface

from dataplane.abi.layout import abi
from dataplane.explain import frames
from dataplane.explain.frames import Seen
from dataplane.explain.questions import Question
from dataplane.explain.scene import OUTSIDE_MAC, POD_MAC, UPLINK_MAC
from dataplane.explain.scratch import Scratch
from dataplane.model.flow import Flow, FlowKey, Verdict
from dataplane.model.net import Family, IPAddress, Protocol, family_of

PROGRAMS = tuple(f"{hook}_{family:d}" for hook in ("from_pod", "from_uplink") for family in Family)
FORWARD, REJECT, DROP, PASS = "forward", "reject", "drop", "pass"
FIRST_PORT = 20000  # outside the masquerade range
GATEWAY_MAC = bytes.fromhex("0a706c000002")


@dataclass(frozen=True, slots=True)
class Trial:
    """said: the program's own verdict. seen: the packet afterwards, or whom a call went to.

    number tells the trials of a flow apart: the packet's source port. flow: what was
    remembered of a packet. packet: its bytes afterwards; a call has none.
    """

    number: int
    verdict: str
    said: Verdict
    seen: Seen
    flow: Flow | None = None
    packet: bytes = b""


class Trials(Interface):
    """How flows of one kind of sender are tried."""

    def program(self, question: Question) -> str:
        """The program that is asked, in words."""

    def run(self, question: Question, number: int) -> Trial:
        """One trial; of trials with different numbers each may choose another backend."""


class PacketTrials:
    """Packets of a pod, or from outside."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        actions, flags = abi(Family.V4).enum("action"), abi(Family.V4).enum("flow_flag")
        self._answer, self._drop = actions["ACTION_ANSWER"], actions["ACTION_DROP"]
        # to a backend of this node or by SNAT, or as it came to the backend's node
        self._to_backend = flags["FLOW_NAT_DST"] | flags["FLOW_DIRECT"]

    def program(self, question: Question) -> str:
        return program_for(question, self._scratch.scene.in_cluster(question.source))

    def run(self, question: Question, number: int) -> Trial:
        inside = self._scratch.scene.in_cluster(question.source)
        macs = (GATEWAY_MAC, POD_MAC) if inside else (UPLINK_MAC, OUTSIDE_MAC)
        port = FIRST_PORT + 1297 * number
        source, target = (question.source, port), (question.address, question.port)
        frame = frames.build(macs, question.protocol, source, target)
        return self.put(program_for(question, inside), frame, question.protocol)

    def put(
        self,
        program: str,
        frame: bytes,
        protocol: Protocol,
        tunnel: tuple[IPAddress, int] | None = None,
    ) -> Trial:
        """A packet that is already bytes; tunnel as in Scratch.run."""
        before = frames.read(frame)
        outcome = self._scratch.run(program, frame, tunnel)
        ports = (before.source_port, before.target_port)
        key = FlowKey(before.source, before.target, *ports, int(protocol))
        flow = self._scratch.flow(family_of(before.source), key)
        said, after = outcome.verdict, frames.read(outcome.packet)
        return Trial(ports[0], self._verdict(said), said, after, flow, outcome.packet)

    def _verdict(self, said: Verdict) -> str:
        if said.action == self._answer:
            return REJECT
        if said.action == self._drop or not said.action:
            return DROP
        return FORWARD if said.flow_flags & self._to_backend else PASS


def program_for(question: Question, inside: bool) -> str:
    """Where the sender's packets enter the node."""
    return f"{'from_pod' if inside else 'from_uplink'}_{int(question.family)}"
