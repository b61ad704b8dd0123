# SPDX-License-Identifier: Apache-2.0
"""Releases that the plugin recorded while no agent answered: a file each in the state folder.

The name is CONTAINER:INTERFACE, the file is empty (cni/shim.c writes it). Must not unwire.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

FOLDER = "releases"
_UNFINISHED_SECONDS = 60


class Releases:
    """The folder; it may be missing."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER

    def waiting(self) -> list[tuple[str, str]]:
        """(container, interface) of each, sorted; what a killed plugin left unfinished goes."""
        try:
            names = sorted(entry.name for entry in self._folder.iterdir())
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            container, _, interface = name.partition(":")
            if container and interface:
                found.append((container, interface))
            elif name.startswith("."):
                self._drop_old(self._folder / name)
        return found

    def taken(self, container_id: str, interface: str) -> bool:
        """Whether there is one of this interface."""
        return os.path.exists(self._file(container_id, interface))

    def done(self, container_id: str, interface: str) -> None:
        """It was seen to."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file(container_id, interface))

    def _file(self, container_id: str, interface: str) -> str:
        """As text: a Path's words stay in Python's table of interned strings."""
        return f"{self._folder}/{container_id}:{interface}"

    @staticmethod
    def _drop_old(temporary: Path) -> None:
        try:
            if time.time() - temporary.stat().st_mtime > _UNFINISHED_SECONDS:
                temporary.unlink()
        except FileNotFoundError:
            pass  # its plugin has just finished it
