# SPDX-License-Identifier: Apache-2.0
"""Network namespaces, their links, and a bpffs, which go away again. Must not know what runs in them."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface
from pathlib import Path

from dataplane.model.errors import BadEnvironment

NAMESPACES = Path("/run/netns")


class Net:
    """Namespaces under one prefix, random if none is given; links go with their namespaces."""

    def __init__(self, stack: ExitStack, prefix: str = "") -> None:
        self.prefix = prefix or f"plbench-{secrets.token_hex(3)}"
        self._stack = stack

    def path(self, name: str) -> Path:
        return NAMESPACES / f"{self.prefix}-{name}"

    def add(self, name: str) -> None:
        """A namespace with loopback up that forwards as a node does."""
        full = f"{self.prefix}-{name}"
        ip("netns", "add", full)
        self._stack.callback(ip, "netns", "delete", full)
        self.ip(name, "link", "set", "lo", "up")
        sysctl = ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        ip("netns", "exec", full, *sysctl)

    def ip(self, name: str, *words: str) -> None:
        """`ip` inside one of the namespaces."""
        ip("-n", f"{self.prefix}-{name}", *words)

    def veth(self, left: tuple[str, str], right: tuple[str, str], mtu: int) -> None:
        """A veth pair, each end as (namespace, device), up."""
        (left_name, left_device), (right_name, right_device) = left, right
        self.ip(
            left_name, "link", "add", left_device, "mtu", str(mtu), "type", "veth",
            "peer", "name", right_device, "mtu", str(mtu), "netns", f"{self.prefix}-{right_name}",
        )  # fmt: skip
        self.ip(left_name, "link", "set", left_device, "up")
        self.ip(right_name, "link", "set", right_device, "up")

    def pod(self, name: str, node: str, address: IPv4Interface, mtu: int) -> None:
        """A pod behind a node: one address, everything through the node."""
        self.add(name)
        gateway = address.network.network_address + 1
        self.veth((node, f"host-{name}"[:15]), (name, "eth0"), mtu)
        self.ip(node, "address", "add", f"{gateway}/32", "dev", f"host-{name}"[:15])
        self.ip(node, "route", "add", f"{address.ip}/32", "dev", f"host-{name}"[:15])
        self.ip(name, "address", "add", f"{address.ip}/32", "dev", "eth0")
        self.ip(name, "route", "add", f"{gateway}/32", "dev", "eth0", "scope", "link")
        self.ip(name, "route", "add", "default", "via", str(gateway))


def ip(*words: str) -> None:
    """iproute2. Raises BadEnvironment in its own words."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise BadEnvironment(f"ip {' '.join(words)}", done.stderr.strip())


def inside(place: Path, *command: str) -> list[str]:
    """A command line that runs in this network namespace."""
    return ["nsenter", f"--net={place}", "--", *command]


@contextmanager
def bpffs(folder: Path) -> Iterator[Path]:
    """A bpffs of our own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(folder)], check=True)
    try:
        yield folder / "podlane"
    finally:
        subprocess.run(["umount", str(folder)], check=True)
