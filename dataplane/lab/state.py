# SPDX-License-Identifier: Apache-2.0
"""Where a lab is kept on the machine, and how all of it is taken away.

All that a lab makes outside its namespaces is mounts below one folder, each lab's own
(a tmpfs with files, one bind mount a namespace, one bpffs a node). Links, addresses,
routes, filters and rules exist in the namespaces only, and processes of the lab are the
processes in those namespaces. So whatever was half made, and whoever was killed,
`destroy` finds all of it: it needs no records that could be missing. Must not know what
runs in a lab.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataplane.model.errors import BadEnvironment, BadInput

ROOT = Path("/run/podlane-lab")
DEFAULT_NAME = "lab"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")
_KILL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """Files of one node; each is a key of its config."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def bpf_mount(self) -> Path:
        return self.folder / "bpf"

    @property
    def bpffs_dir(self) -> Path:
        return self.bpf_mount / "podlane"

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"


@dataclass(frozen=True, slots=True)
class LabFiles:
    """Files of one lab. Raises BadInput for a name that is none."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadInput(
                f"lab name {self.name!r}",
                "is not 1 to 24 lower-case letters, digits and '-'",
                "choose another with --name",
            )

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def record(self) -> Path:
        return self.folder / "lab.json"

    @property
    def manifests(self) -> Path:
        """The folder that the agents watch."""
        return self.folder / "manifests"

    def netns(self, place: str) -> Path:
        """The namespace of the underlay or of `outside`."""
        return self.folder / "netns" / place

    def node_netns(self, name: str) -> Path:
        return self.folder / "netns" / "nodes" / name

    def pod_netns(self, namespace: str, name: str) -> Path:
        return self.folder / "netns" / "pods" / namespace / name

    def node(self, name: str) -> NodeFiles:
        return NodeFiles(self.folder / "nodes" / name)

    @property
    def exists(self) -> bool:
        """Something of this lab is there, whole or half made."""
        return self.folder.exists()


def names() -> list[str]:
    """All labs of this machine, whole or half made."""
    if not ROOT.is_dir():
        return []
    return sorted(entry.name for entry in ROOT.iterdir() if entry.is_dir())


@contextlib.contextmanager
def locked(files: LabFiles) -> Iterator[None]:
    """Keep every other command that changes this lab out.

    Raises:
        BadEnvironment: such a command runs, or the folder can't be made.
    """
    path = ROOT / f"{files.name}.lock"
    try:
        ROOT.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise BadEnvironment(f"{path}", failure.strerror or "", "run as root") from failure
    try:
        if not _took(fd, path):
            raise BadEnvironment(
                f"lab {files.name}", "another command is changing it", "wait for it to end"
            )
        try:
            yield
        finally:
            if not files.exists:
                path.unlink(missing_ok=True)
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            ROOT.rmdir()  # refused while another lab is there


def _took(fd: int, path: Path) -> bool:
    """Whether the lock is ours; not if it is another's, or that one has just removed the file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def create(files: LabFiles) -> None:
    """Make the lab's folder. Shared, so that `destroy` reaches every copy of its mounts."""
    try:
        files.folder.mkdir(mode=0o700)
    except OSError as failure:
        raise BadEnvironment(f"{files.folder}", failure.strerror or "") from failure
    mount("tmpfs", files.folder, "--make-shared", "-o", "mode=0700,nosuid,nodev,noexec")
    for folder in ("netns", "nodes"):
        (files.folder / folder).mkdir()


def mount(kind: str, folder: Path, *options: str) -> None:
    """Mount a new filesystem of a kind.

    Raises:
        BadEnvironment: in mount's own words.
    """
    done = subprocess.run(
        ["mount", "-t", kind, *options, kind, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["mount failed"]
        raise BadEnvironment(f"{kind} at {folder}", words[0])


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its readers see all of the old text or all of the new."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def destroy(files: LabFiles) -> None:
    """Take away all that is left of a lab; nothing to do if nothing is."""
    if files.exists:
        _kill_all(files)
        _unmount(files.folder)
        shutil.rmtree(files.folder)


def processes(netns: Path) -> list[int]:
    """Processes in a namespace, but for the caller."""
    return _processes({_identity(netns)})


def all_processes(files: LabFiles) -> list[int]:
    """Processes in any namespace of a lab, but for the caller."""
    return _processes(_namespaces(files))


def _namespaces(files: LabFiles) -> set[tuple[int, int]]:
    return {_identity(path) for path in files.folder.glob("netns/**/*") if path.is_file()}


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _processes(namespaces: set[tuple[int, int]]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # ended meanwhile
                if _identity(entry / "ns" / "net") in namespaces:
                    found.append(int(entry.name))
    return found


def _kill_all(files: LabFiles) -> None:
    inside = _namespaces(files)
    if _identity(Path("/proc/self/ns/net")) in inside:
        raise BadEnvironment(
            f"lab {files.name}", "this command runs inside of it", "run it on the machine itself"
        )
    end = time.monotonic() + _KILL_SECONDS
    while alive := _processes(inside):
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise BadEnvironment(
                f"lab {files.name}",
                f"processes {alive} do not end",
                "end them, then `lab down` again",
            )
        time.sleep(0.01)


def _unmount(folder: Path) -> None:
    """Detach every mount at or below the folder: the whole tree goes with its root."""
    while any(line.split(" ")[4] == str(folder) for line in _mounts()):
        done = subprocess.run(
            ["umount", "--lazy", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BadEnvironment(f"unmounting {folder}", done.stderr.strip())


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
