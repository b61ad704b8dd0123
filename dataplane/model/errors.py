# SPDX-License-Identifier: Apache-2.0
"""The error tree: every failure that podlane tells a user about.

Must not do I/O or know who prints it. Exit statuses are fixed by the command
line's contract: 1 a check failed, 2 bad input or environment, 3 a bug.
"""

from __future__ import annotations


class PodlaneError(Exception):
    """Something failed: on which object, why, and what to do next.

    Args:
        what: the thing that failed, by the name its user knows it by.
        why: the one reason.
        next_step: what its user can do; empty if nothing helps.
    """

    exit_status = 2

    def __init__(self, what: str, why: str, next_step: str = "") -> None:
        self.what, self.why, self.next_step = what, why, next_step
        super().__init__(f"{what}: {why}" + (f"; {next_step}" if next_step else ""))


class CheckFailed(PodlaneError):
    """A check ran and its answer is no."""

    exit_status = 1


class BadInput(PodlaneError):
    """What the user gave (file, option, object) can't be used."""


class BadEnvironment(PodlaneError):
    """The machine lacks something: a right, a mount, a kernel feature, a file."""


class CompileError(BadEnvironment):
    """A BPF program does not compile or is not accepted by the verifier.

    `log` holds the whole output of the compiler or verifier.
    """

    def __init__(self, what: str, why: str, next_step: str = "", log: str = "") -> None:
        super().__init__(what, why, next_step)
        self.log = log


class TableFull(PodlaneError):
    """A map has no room for an object; the rest is served."""


class NoMemory(TableFull):
    """The map had room for it, the kernel no memory."""


class RangeFull(PodlaneError):
    """A node has more pods than addresses."""


class Contradiction(PodlaneError):
    """podlane disagrees with itself: a bug, said so."""

    exit_status = 3
