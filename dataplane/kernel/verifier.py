# SPDX-License-Identifier: Apache-2.0
"""What compiler and verifier say, reduced to the one line that helps.

Pure text work; must not call compiler or kernel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STACK_LIMIT = 512
INSTRUCTION_LIMIT = 1_000_000

_DIAGNOSTIC = re.compile(r"^(?P<where>[^\s:]+:\d+):\d+: (?:fatal )?error: (?P<why>.*)$")
_INCLUDED = re.compile(r"^In file included from (?P<where>[^:]+:\d+):$")
_PROCESSED = re.compile(r"^processed (\d+) insns", re.M)
_STACK = re.compile(r"^stack depth (\d+(?:\+\d+)*)", re.M)
_SOURCE_LINE = re.compile(r"^;\s*(?P<text>.*?)\s*(?:@ (?P<where>\S+:\d+))?$")
_INSTRUCTION = re.compile(r"^\d+: \([0-9a-f]{2}\) ")
_STATE = re.compile(r"^(from )?\d+( to \d+)?: |^R\d|^frame\d|^(last_idx|regs=|parent|mark_precise)")
_STATISTICS = ("verification time", "stack depth", "processed ", "func#", "max_states")


@dataclass(frozen=True, slots=True)
class Reason:
    """Where (file:line, or an instruction; empty if unknown), why, and the source line."""

    where: str
    why: str
    source: str = ""

    @property
    def text(self) -> str:
        return f"{self.why}\n\t{self.source}" if self.source else self.why


def diagnostic(log: str) -> Reason:
    """The first error of a compiler's output."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if match := _DIAGNOSTIC.match(line):
            source = lines[number + 1].strip() if number + 1 < len(lines) else ""
            return Reason(_included_from(lines[:number]) or match["where"], match["why"], source)
    for line in lines:
        if "error:" in line:
            return Reason("", line.split("error:", 1)[1].strip())
    return Reason("", next((line for line in reversed(lines) if line.strip()), "no output"))


def _included_from(lines: Sequence[str]) -> str:
    """Our own line that brought in the distribution's header with the error; empty if none did."""
    where = ""
    for line in reversed(lines):
        match = _INCLUDED.match(line)
        if match is None:
            break
        if not match["where"].startswith("/"):
            where = where or match["where"]
    return where


def rejection(log: str, sources: Path | None = None) -> Reason:
    """The verifier's reason, and the source line that it walked last.

    Kernels before 6.8 log a source line's text only; where that text stands once in
    the sources, its place is known all the same.
    """
    lines = [line for line in log.splitlines() if line.strip()]
    while lines and lines[-1].startswith(_STATISTICS):
        lines.pop()
    where = text = instruction = ""
    reasons: list[str] = []
    for line in lines:
        if match := _SOURCE_LINE.match(line):
            if match["text"] or not match["where"]:
                text, where = match["text"], match["where"] or ""
            reasons = []
        elif _INSTRUCTION.match(line):
            instruction, reasons = line.split(";")[0].strip(), []
        elif not _STATE.match(line):
            reasons.append(line.strip())
    why = reasons[0] if reasons else (lines[-1] if lines else "no reason given")
    if not text:
        return Reason("", why, instruction)
    places = _places(text, where, sources) if sources else []
    return Reason(places[0] if len(places) == 1 else where, why, text)


def _places(text: str, where: str, sources: Path) -> list[str]:
    """file:line of each line of the sources that has this text, in the named file if one is."""
    name, _, number = where.rpartition(":")
    if name:
        return [f"{sources.name}/{name}:{number}"]
    return [
        f"{sources.name}/{path.name}:{place}"
        for path in sorted(sources.glob("*.[ch]"))
        for place, line in enumerate(path.read_text().splitlines(), start=1)
        if line.strip() == text
    ]


def statistics(log: str) -> tuple[int, int]:
    """(instructions walked, bytes of stack of all frames) of a program that was accepted."""
    processed, stack = _PROCESSED.findall(log), _STACK.findall(log)
    depth = sum(int(part) for part in stack[-1].split("+")) if stack else 0
    return (int(processed[-1]) if processed else 0), depth
