# SPDX-License-Identifier: Apache-2.0
"""Commands inside the lab's namespaces. Must not know what they are for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family

TOOLS = {"ip": "iproute2", "mount": "mount", "nsenter": "util-linux", "unshare": "util-linux"}
"""Programs that the lab calls, and Debian's package of each."""

STAND_IN = Path(__file__).resolve().parents[2] / "build" / "podlane-stand-in"

# A view of the machine that fits a network namespace: /sys of its own. Node: also its bpffs
# and the cgroups where they are on any machine. The mounts go with the command.
_VIEW = 'mount -t sysfs sysfs /sys && exec "$@"'
_NODE_VIEW = (
    'bpf=$1; shift; mount -t sysfs sysfs /sys && mount --bind "$bpf" /sys/fs/bpf && '
    '{ mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || :; } && exec "$@"'
)


def require() -> None:
    """Raises BadEnvironment for the first program that is missing."""
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise BadEnvironment(tool, "is not installed", f"apt-get install {package}")
    if not STAND_IN.exists():
        raise BadEnvironment(str(STAND_IN), "is not built", "run `make tools`")


def entering(netns: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` inside a network namespace."""
    return ["nsenter", f"--net={netns}", "--", *command]


def entering_pod(netns: Path, command: Sequence[str]) -> list[str]:
    """The same with /sys of that namespace; on loan to this one command."""
    view = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", _VIEW, "pod"]
    return entering(netns, [*view, *command])


def entering_node(netns: Path, bpf_mount: Path, command: Sequence[str]) -> list[str]:
    """The same for a node: with its bpffs at /sys/fs/bpf."""
    view = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", _NODE_VIEW, "node"]
    return entering(netns, [*view, str(bpf_mount), *command])


def run(netns: Path, command: Sequence[str], text: str = "") -> str:
    """Run a short command inside and return what it prints.

    Raises:
        BadEnvironment: it failed, in its own words.
    """
    done = subprocess.run(
        entering(netns, command), input=text, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise BadEnvironment(f"{command[0]} in {netns.name}", "; ".join(words[:3]))
    return done.stdout


def ip_batch(netns: Path, lines: Sequence[str], family: Family | None = None) -> None:
    """Run lines of `ip -batch`, all or up to the first that fails."""
    if lines:
        options = [] if family is None else [f"-{int(family)}"]
        run(netns, ["ip", *options, "-batch", "-"], "\n".join(lines) + "\n")
