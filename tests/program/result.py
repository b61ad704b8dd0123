# SPDX-License-Identifier: Apache-2.0
"""What a packet comes to: as a test means it (`Verdict`), and as it came (`Result`).

Must not know how packets are made and fed to programs (node.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scapy.layers.l2 import Ether

from dataplane.abi.layout import abi
from dataplane.kernel.testrun import Outcome
from dataplane.model.net import Family
from tests.program import packets, world

if TYPE_CHECKING:
    from tests.program.node import Node

ABI = abi(Family.V4)
Drop, Action, Hook = ABI.enum("drop"), ABI.enum("action"), ABI.enum("hook")
# Their members are known when abi.h is read, so not to a type checker.
Flag: Any = ABI.enum("flow_flag")
State: Any = ABI.enum("flow_state")

# tc verdicts: TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
TC_VERDICTS = {"PASS": 0xFFFFFFFF, "DROP": 2}
TC_REDIRECT = 7

# A packet looks after its flow's other half, and what it asks, at least this often (seconds).
CHECKED_WITHIN = 0.2

Frame = bytes

# In a line: the port of the node's range that the program has chosen.
MASQUERADED = "MASQ"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a packet comes to; None is not compared. device: where it goes; hop: over whom."""

    action: str
    reason: str = "NONE"
    device: int | None = None
    hop: str | None = None

    def __str__(self) -> str:
        parts = [self.action, self.reason if self.reason != "NONE" else "", self.hop or ""]
        return " ".join(p for p in (*parts, f"to {self.device}" if self.device else "") if p)


PASSED = Verdict("PASS")
ANSWERED = Verdict("ANSWER")


def into(pod: str) -> Verdict:
    return Verdict("POD", device=world.PODS[pod])


def into_by_shaper(pod: str) -> Verdict:
    return Verdict("SHAPED", device=world.PODS[pod])


def through_tunnel(device: int = world.OVERLAY, to: str = "there") -> Verdict:
    return Verdict("TUNNEL", device=device, hop=to)


def by_next_hop(to: str = "there") -> Verdict:
    return Verdict("NATIVE", device=world.UPLINK, hop=to)


def out_by(device: int = world.UPLINK) -> Verdict:
    return Verdict("WORLD", device=device)


def dropped(reason: str) -> Verdict:
    return Verdict("DROP", reason)


def refused(reason: str) -> Verdict:
    """Dropped by name, and answered with TCP RST or ICMP unreachable."""
    return Verdict("ANSWER", reason)


# ---- what came of it ----
@dataclass(frozen=True, slots=True)
class Result:
    """One packet through one hook."""

    node: Node
    hook: str
    device: int
    given: Frame
    outcome: Outcome
    drops: Mapping[tuple[str, str], int]

    @property
    def frame(self) -> Frame:
        return self.outcome.packet

    @property
    def verdict(self) -> Verdict:
        left = self.outcome.verdict
        action = Action(left.action).name.removeprefix("ACTION_")
        return Verdict(action, Drop(left.reason).name.removeprefix("DROP_"), left.ifindex)

    def expect(self, verdict: Verdict, packet: str | Frame | None = None) -> Result:
        """Verdict, tc verdict, next hop, drop counters; and the packet byte for byte.

        Without one, a packet that passes must be as it was.
        """
        failed = [*self._wrong_verdict(verdict), *self._wrong_counters(verdict)]
        if packet is None and verdict.action == "PASS":
            packet = self.given
        if packet is not None:
            wanted = packet if isinstance(packet, bytes) else self._frame(packet, verdict)
            if isinstance(packet, str) and MASQUERADED in packet:
                failed += self._wrong_port()
            if self.frame != wanted:
                failed += packets.differences(self.frame, wanted)
                failed += [f"wanted {packets.shown(wanted)}"]
        if self.frame != self.given and verdict.action != "DROP":
            failed += [f"wrong checksum: {w}" for w in packets.wrong_checksums(self.frame)]
        assert not failed, "\n".join(
            [
                f"{self.hook} of node {self.node.name}, device {self.device}, IPv{self.node.family:d}",
                f"in     {packets.shown(self.given)}",
                f"out    {packets.shown(self.frame)}",
                *failed,
            ]
        )
        return self

    def _wrong_verdict(self, meant: Verdict) -> Iterable[str]:
        was = self.verdict
        if (was.action, was.reason) != (meant.action, meant.reason):
            yield f"verdict {was}, not {meant}"
        code = TC_VERDICTS.get(meant.action, TC_REDIRECT)
        if self.outcome.retval != code:
            yield f"tc verdict {self.outcome.retval:#x}, not {code:#x}"
        if meant.device is not None and was.device != meant.device:
            yield f"to device {was.device}, not {meant.device}"
        if meant.action == "ANSWER" and was.device != self.device:
            yield f"answered on device {was.device}, not {self.device}"
        hop = self.node.hop(meant.hop)
        if meant.device is not None and self.outcome.verdict.hop != hop:
            yield f"next hop {self.outcome.verdict.hop}, not {hop}"

    def _wrong_counters(self, meant: Verdict) -> Iterable[str]:
        hook = "from_pod" if self.hook == "from_pod_l2" else self.hook
        counted = {} if meant.reason == "NONE" else {(hook.upper(), meant.reason): 1}
        if self.drops != counted:
            yield f"drops counted: {dict(self.drops)}, not {counted}"

    def _frame(self, line: str, verdict: Verdict) -> Frame:
        """MACs as the verdict demands: what is redirected to a neighbour gets them later."""
        dst, src = self.given[:6], self.given[6:12]
        if verdict.action in ("POD", "SHAPED"):
            pod = next(p for p, device in world.PODS.items() if device == verdict.device)
            dst, src = world.mac_of(world.PODS[pod]), world.GATEWAY_MAC
        elif verdict.action == "TUNNEL" or self.hook == "to_overlay":
            dst = src = world.OVERLAY_MAC
        elif verdict.action == "ANSWER":
            dst, src = src, dst
        return self.node.build(self.named(line), dst, src)

    @property
    def port(self) -> int:
        """The port that the packet has left with; an echo's identifier."""
        packet = Ether(self.frame).payload
        layer = packet.payload
        if layer.name.startswith("ICMP"):
            return int(layer.id)
        return int(layer.sport)

    def named(self, line: str) -> str:
        """A line with the port that was chosen in place of MASQUERADED."""
        return line.replace(MASQUERADED, str(self.port)) if MASQUERADED in line else line

    def _wrong_port(self) -> Iterable[str]:
        if not world.MASQUERADE_MIN <= self.port <= world.MASQUERADE_MAX:
            yield f"source port {self.port} is not of the masquerade range"
