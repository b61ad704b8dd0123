# SPDX-License-Identifier: Apache-2.0
"""A place for test runs: devices of known numbers, and a bpffs, that end with a thread.

A test run looks its device up in the caller's network namespace, so all of them are made
by one thread that has a network and a mount namespace of its own. Nothing is left to be
cleaned up. Must not know programs or maps.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Sandbox:
    """One thread in namespaces of its own; `bpffs` is there for what `do` runs, only."""

    def __init__(self, folder: Path, devices: Mapping[int, bytes]) -> None:
        """Devices by their number, with their MAC address."""
        self.bpffs = folder
        self._thread = ThreadPoolExecutor(1, "sandbox")
        self.do(lambda: self._enter(devices))

    def do(self, fn: Callable[[], T]) -> T:
        """What fn returns or raises, run in the sandbox."""
        return self._thread.submit(fn).result()

    def close(self) -> None:
        """End the thread, and with it the namespaces."""
        self._thread.shutdown()

    def _enter(self, devices: Mapping[int, bytes]) -> None:
        # The Runner goes to the lowest CPU for each packet: this thread is there already.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        _must(_libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS), "unshare")
        _must(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount")
        path = os.fsencode(self.bpffs)
        _must(_libc.mount(b"bpf", path, b"bpf", ctypes.c_ulong(0), None), "mount bpffs")
        # A child has the namespaces of the thread that starts it.
        lines = "".join(
            f"link add d{number} index {number} address {mac.hex(':')} type veth peer name p{number}\n"
            f"link set d{number} up\n"
            f"link set p{number} up\n"
            for number, mac in devices.items()
        )
        ip = ["ip", "-batch", "-"]
        done = subprocess.run(ip, input=lines, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{' '.join(ip)}: {done.stderr}")
