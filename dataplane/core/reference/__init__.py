# SPDX-License-Identifier: Apache-2.0
"""The reference model of the datapath: pure Python that reads as the specification.

`answer(world, flow)` says what becomes of a new flow: verdict, backends, rewritten packet,
the rule and its source. It is what programs and tables are compared with, so it must not
import the code that builds the tables (import-linter holds that).
"""

from dataplane.core.reference.life import Fate, fate_of
from dataplane.core.reference.model import answer
from dataplane.core.reference.rules import Rule
from dataplane.core.reference.values import (
    Answer,
    Entry,
    FlowQuestion,
    Place,
    Rewritten,
    Verdict,
    World,
)

__all__ = [
    "Answer",
    "Entry",
    "Fate",
    "FlowQuestion",
    "Place",
    "Rewritten",
    "Rule",
    "Verdict",
    "World",
    "answer",
    "fate_of",
]
