# SPDX-License-Identifier: Apache-2.0
"""How long a newcomer waits: `podlane lab up` of an application on three nodes."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from bench import ours
from bench.measure import Goal, Result

ROUNDS = 3


def lab_up(manifest: Path) -> list[Result]:
    """Seconds from the command to its end, each time from nothing."""
    times = []
    for _ in range(ROUNDS):
        name = f"bench-{secrets.token_hex(3)}"
        start = time.perf_counter()
        try:
            ours.podlane("lab", "up", "-f", str(manifest), "--name", name, "--nodes", "3")
            times.append(time.perf_counter() - start)
        finally:
            ours.podlane("lab", "down", "--name", name)
    unit = f"s, {manifest.name} on 3 nodes"
    return [Result("lab-up", unit, tuple(times), (), Goal("ours", at_most=20.0))]
