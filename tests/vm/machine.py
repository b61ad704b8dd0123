# SPDX-License-Identifier: Apache-2.0
"""One virtual machine: this machine's file tree under another kernel, emulated, for one test run.

Must not judge the results: it brings them out. The tree is read-only in the guest; the folder of
results is the only thing shared for writing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.vm.kernels import Kernel

MEMORY = "3G"
SECONDS_OF_ONE_TEST = 600
# Folders that tests or their tools write to; what the guest writes there is gone with it.
WRITABLE = ("/etc", "/root", "/tmp", "/var")

_guests: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True, slots=True)
class Run:
    """What a guest left: `release` and `junit` are None if it did not come that far; times in s."""

    kernel: Kernel
    results: Path
    release: str | None
    junit: Path | None
    booted: float | None
    seconds: float
    timed_out: bool


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _end(guest: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)
    guest.wait()


def end_all() -> None:
    """Switch off each guest that runs: they are no part of the caller's process group."""
    for guest in tuple(_guests):
        _end(guest)


def run_tests(kernel: Kernel, selection: list[str], results: Path, limit: float) -> Run:
    """Boot a kernel, run pytest with these arguments in it, and power it off.

    Args:
        kernel: what to boot.
        selection: pytest's arguments that choose tests.
        results: a folder that is emptied first; console, log and JUnit file end there.
        limit: seconds from start to power-off; then the guest is ended.
    """
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    checkout = Path.cwd()
    script = shlex.join(
        ["bash", "tests/vm/guest.sh", str(results), str(SECONDS_OF_ONE_TEST), *selection]
    )
    writable = [folder for folder in WRITABLE if not checkout.is_relative_to(folder)]
    if not Path("/lib/modules").is_dir():
        writable.append("/lib")  # the guest mounts its modules there
    command = [
        # Never KVM: where it is there but broken, qemu fails; and its absence is the common case.
        *("virtme-run", "--mods", "auto", "--kimg", str(kernel.image)),
        *("--busybox", str(kernel.busybox)),
        *("--disable-kvm", "--disable-monitor", "--force-9p", "--show-boot-console"),
        *("--cpus", "1", "--memory", MEMORY, "--rwdir", str(results)),
        *(f"--overlay-rwdir={folder}" for folder in writable),
        *("--script-sh", f"cd {shlex.quote(str(checkout))} && {script}"),
        "--qemu-opts",  # takes all that follows
        # With `rep movsb` the kernel copies byte by byte under emulation: a tenth of all time.
        *("-cpu", "max,-erms,-fsrm"),
        # The tree once more, for guest.sh to mount.
        *("-fsdev", "local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=cached,mount_tag=cached"),
    ]
    path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ.get('PATH', '')}"
    started = time.monotonic()
    timed_out = False
    with (results / "console.log").open("wb") as console:
        guest = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path},
            start_new_session=True,
        )
        _guests.add(guest)
        try:
            guest.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            _end(guest)
        finally:
            _guests.discard(guest)
    junit = results / "junit.xml"
    booted = _read(results / "booted")
    return Run(
        kernel=kernel,
        results=results,
        release=_read(results / "kernel"),
        junit=junit if junit.is_file() else None,
        booted=float(booted) if booted else None,
        seconds=time.monotonic() - started,
        timed_out=timed_out,
    )
