# SPDX-License-Identifier: Apache-2.0
"""The node's own flows: real connect(2) and sendto(2), past the real socket programs.

The kernel has no test run for programs at system calls, so a child process makes the calls
in the copy's network namespace and in a cgroup of its own, on which the copy's programs are
for as long. Nothing of it leaves: the namespace has no route. Must not compare trials.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from dataplane.explain import caller
from dataplane.explain.frames import Seen
from dataplane.explain.questions import Question
from dataplane.explain.scratch import Scratch
from dataplane.explain.trials import DROP, FORWARD, PASS, REJECT, Trial
from dataplane.kernel import sockets
from dataplane.kernel.bundle import Bundle
from dataplane.model.errors import BadEnvironment, Contradiction
from dataplane.model.flow import SocketFlow, SocketKey, Verdict
from dataplane.model.net import Family, Protocol
from dataplane.model.rows import Table

_CALLS = {Protocol.TCP: "connect", Protocol.UDP: "sendmsg"}
# What helps where the call that is its key was refused.
_STEPS = {
    "socket": "switch IPv6 on, or ask for an IPv4 flow",
    "setsockopt": "ask on a machine with Linux 4.15 or newer",
    "bind": "ask from another address of the node",
    "cgroup.procs": "it must be possible to move a process into a new cgroup2 folder",
}
_TO_FRONTEND = 0  # enum socket_side
PROGRAMS = tuple(f"{name}_{family:d}" for name in _CALLS.values() for family in Family)


def program_for(question: Question) -> str:
    """The program at the call that a new flow begins with."""
    return f"{_CALLS[question.protocol]}_{question.family:d}"


class CallTrials:
    """Calls of a process of the node."""

    def __init__(self, scratch: Scratch, to: IO[str], back: IO[str]) -> None:
        self._scratch, self._to, self._back = scratch, to, back

    def program(self, question: Question) -> str:
        return program_for(question)

    def run(self, question: Question, number: int) -> Trial:
        """A call of a new socket; which one it is decides the backend, so number does not.

        Raises:
            BadEnvironment: this machine lets no process call from that address.
        """
        self._scratch.forget()
        asked = {
            "family": int(question.family),
            "protocol": question.protocol.name.lower(),
            "source": str(question.source),
            "address": str(question.address),
            "port": question.port,
        }
        answer = self._tell(json.dumps(asked))
        if "refused" in answer:
            why = f"this machine refuses {answer['refused']}: {os.strerror(answer['errno'])}"
            raise BadEnvironment(f"a flow from {question.source}", why, _STEPS[answer["refused"]])
        flow = self._remembered(question, answer["cookie"])
        said = self._scratch.said()
        self._to.write("\n")  # the socket may be closed
        self._to.flush()
        asker = (question.source, 0)
        if flow is not None:
            verdict = Verdict(0, 0, said.hook, 0, None, flow.service_id, flow.backend_id, 0)
            return Trial(number, FORWARD, verdict, Seen(*asker, flow.backend, flow.backend_port))
        seen = Seen(*asker, question.address, question.port)
        if not said.reason:
            return Trial(number, PASS, said, seen)
        refused = answer["errno"] == errno.ECONNREFUSED
        return Trial(number, REJECT if refused else DROP, said, seen)

    def _remembered(self, question: Question, cookie: int) -> SocketFlow | None:
        """What the programs wrote down for this socket."""
        key: int | SocketKey = cookie
        if question.protocol is Protocol.UDP:
            key = SocketKey(cookie, question.address, question.port, _TO_FRONTEND)
        name = "sockets" if question.protocol is Protocol.TCP else "datagrams"
        found: SocketFlow | None = self._scratch.get(Table(name, question.family), key)
        return found

    def _tell(self, line: str) -> dict[str, Any]:
        try:
            self._to.write(line + "\n")
            self._to.flush()
            answer: dict[str, Any] = json.loads(self._back.readline())
        except (OSError, ValueError):
            raise Contradiction("explain's own process", "ended before it answered") from None
        return answer


@contextmanager
def calling(scratch: Scratch, bundle: Bundle, root: Path | None) -> Iterator[CallTrials]:
    """A process that calls, in a cgroup with the copy's socket programs, until the end.

    Args:
        root: the folder of cgroup2 to make the cgroup in; None finds one.

    Raises:
        BadEnvironment: there is no cgroup2, or no cgroup may be made there.
    """  # fmt: skip
    with ExitStack() as undo:
        folder = sockets.find_cgroup(root) / f"podlane-explain-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
        except OSError as error:
            raise BadEnvironment(f"cgroup {folder}", str(error.strerror)) from error
        undo.callback(folder.rmdir)
        programs = scratch.programs
        places = {n: place for n, place in sockets.places(bundle).items() if n in programs}
        undo.enter_context(sockets.attached(places, programs, folder))
        command = [sys.executable, "-I", "-S", str(Path(caller.__file__)), str(folder)]
        child = undo.enter_context(
            # In a group of its own: Ctrl-C is ours, and it ends when its input does.
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
            )
        )
        assert child.stdin is not None
        assert child.stdout is not None
        yield CallTrials(scratch, child.stdin, child.stdout)
