# SPDX-License-Identifier: Apache-2.0
"""Ask a node's CNI server, as its plugin binary does. Must not know what is asked."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataplane.model.errors import BadEnvironment


def request(
    path: Path, env: Mapping[str, str], config: Mapping[str, object], seconds: float = 60
) -> dict[str, Any]:
    """One call: CNI's result, or its error object (the one with `code`).

    Raises:
        BadEnvironment: no agent answers at `path`.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(seconds)
            client.connect(str(path))
            client.sendall(json.dumps({"env": dict(env), "config": dict(config)}).encode())
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        decoded: dict[str, Any] = json.loads(answer)
    except (OSError, ValueError) as failure:
        raise BadEnvironment(f"socket {path}", str(failure), "is the agent running?") from failure
    return decoded
