# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object a line on stderr, each a past-tense event with its facts."""

from __future__ import annotations

import json
import sys
import time


def log(event: str, **facts: object) -> None:
    """Say that something happened, such as log("pod_wired", pod="shop/cart-0")."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    line = {"time": f"{stamp}.{time.time_ns() // 1_000_000 % 1000:03}Z", "event": event, **facts}
    print(json.dumps(line, default=str), file=sys.stderr, flush=True)
