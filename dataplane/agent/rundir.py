# SPDX-License-Identifier: Apache-2.0
"""The run-time folder: one agent at a time, and what state it is in.

`agent.lock` is held (flock) by the agent that runs and holds its pid; `status.json` says
how far it has come, so that whoever started it can wait for "ready". Only root can open the
lock: whoever can read a file can hold its lock. Must not know more.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from dataplane.model.errors import BadEnvironment

LOCK, STATUS, SOCKET = "agent.lock", "status.json", "cni.sock"


class RunDir:
    """Held from `take` until the process ends."""

    def __init__(self, path: Path, node: str) -> None:
        self.path, self._node = path, node
        self._lock = -1

    def take(self) -> None:
        """Make the folder and become its one agent.

        Raises:
            BadEnvironment: another agent has it; its pid is named.
        """
        lock = self.path / LOCK
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as failure:
            pid = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            self.release()
            raise BadEnvironment(
                f"run folder {self.path}",
                f"another podlane (pid {pid}) has it",
                "stop that one first, or give this node a runDir of its own",
            ) from failure
        except OSError as failure:
            raise BadEnvironment(
                f"run folder {self.path}", str(failure), "run as root"
            ) from failure
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def say(self, state: str, **facts: object) -> None:
        """Write the status: state is starting, ready, failed or stopped."""
        status = {"state": state, "node": self._node, "pid": os.getpid(), **facts}
        temporary = self.path / f".{STATUS}"
        temporary.write_text(json.dumps(status, default=str) + "\n")
        temporary.replace(self.path / STATUS)


def is_ready(path: Path) -> bool:
    """Whether an agent runs in this folder, and says that its node is up."""
    try:
        with open(path / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # an agent holds it
    except OSError:
        return False
    else:
        return False
    try:
        return bool(json.loads((path / STATUS).read_text())["state"] == "ready")
    except (OSError, ValueError, KeyError):
        return False
