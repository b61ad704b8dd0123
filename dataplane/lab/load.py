# SPDX-License-Identifier: Apache-2.0
"""A light, steady load on one Service port, and what came of it. Must not judge it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dataplane.lab import inside
from dataplane.model.net import IPAddress, Protocol

_LONGEST_SECONDS = 600
_BURST, _PAUSE_MS = 4, 10
_TIMEOUT_MS = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a load: requests, those that failed by reason, answers by pod."""

    requests: int
    failures: dict[str, int]
    by: dict[str, int]


class Load:
    """Requests from several namespaces at once until `stop`; each is a new connection."""

    def __init__(
        self, senders: Sequence[Path], protocol: Protocol, targets: Sequence[tuple[IPAddress, int]]
    ) -> None:
        jobs = "".join(
            f"load {protocol.name.lower()} {address} {port} {_BURST} {_TIMEOUT_MS}\n"
            for address, port in targets
        )
        words = ["client", "0", str(_LONGEST_SECONDS), str(_PAUSE_MS)]
        self._running: list[tuple[subprocess.Popen[str], IO[str]]] = []
        for sender in senders:
            # A file, since nobody reads a pipe while the load goes on.
            output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by stop
            process = subprocess.Popen(
                inside.entering(sender, [str(inside.STAND_IN), *words]),
                stdin=subprocess.PIPE,
                stdout=output,
                text=True,
            )
            assert process.stdin is not None
            process.stdin.write(jobs)
            process.stdin.close()
            self._running.append((process, output))

    def stop(self) -> Outcome:
        """End it once what is under way has ended; what came of it."""
        failures: Counter[str] = Counter()
        by: Counter[str] = Counter()
        requests = 0
        for process, _ in self._running:
            process.terminate()
        for process, output in self._running:
            process.wait()
            output.seek(0)
            for line in output:
                words = line.rstrip("\n").split("\t")
                if words[0] == "next":
                    continue
                requests += 1
                if words[1] == "ok":
                    by[json.loads(words[3])["pod"]] += 1
                else:
                    failures[f"{words[1]}: {words[3]}"] += 1
            output.close()
        self._running = []
        return Outcome(requests, dict(failures), dict(by))
