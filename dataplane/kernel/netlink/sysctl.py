# SPDX-License-Identifier: Apache-2.0
"""Network settings of one namespace: files under /proc/sys.

In a container /proc/sys is read-only, so the root is an option (the host's own, mounted
elsewhere). Must not know which settings podlane wants.
"""

from __future__ import annotations

import os
from pathlib import Path

from dataplane.kernel.netns import Netns, run_in
from dataplane.model.errors import BadEnvironment

_LONGEST = 1 << 16


# Where `podlane manifests` mounts the host's own, network part only.
_OF_HOST = Path("/host/proc/sys")


def settings_root() -> Path:
    """Where settings can be written."""
    plain = Path("/proc/sys")
    if (_OF_HOST / "net").is_dir() and not os.access(plain / "net/ipv4/ip_forward", os.W_OK):
        return _OF_HOST
    return plain


class Sysctls:
    """Read and write settings by their path below /proc/sys, such as net/ipv4/ip_forward."""

    def __init__(self, netns: Netns | None = None, root: Path | None = None) -> None:
        self._netns, self._root = netns, root or settings_root()

    def read(self, name: str) -> str | None:
        """The setting's value without its newline; None if this kernel has none of it."""
        # Names are of devices that come and go, and a Path keeps each word that it was made of
        # in Python's table of interned strings: paths are plain text here.
        path = f"{self._root}/{name}"

        def inside() -> str | None:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                return os.read(fd, _LONGEST).decode().strip()
            finally:
                os.close(fd)

        return inside() if self._netns is None else run_in(self._netns, inside)

    def write(self, name: str, value: str) -> None:
        """Set it.

        Raises:
            BadEnvironment: the kernel has no such setting, or it may not be written.
        """
        path = f"{self._root}/{name}"

        def inside() -> None:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)

        try:
            if self._netns is None:
                inside()
            else:
                run_in(self._netns, inside)
        except OSError as failure:
            raise BadEnvironment(
                f"setting {path}",
                f"can't be set to {value!r}: {failure.strerror}",
                "run as root with a writable /proc/sys/net",
            ) from failure
