# SPDX-License-Identifier: Apache-2.0
"""A lab leaves the machine as it was: its network always, all else once it is down.

machine (a namespace of the test's, with FORWARD DROP and bridge rules as Docker's)
   └── lab: underlay, outside, nodes, pods, in namespaces of their own
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel import netns
from tests.network.labs import PODLANE, SHOP, TWO_WEB, failed, lab, new_name, podlane

LABS = Path("/run/podlane-lab")
Within = tuple[str, ...]
DOCKER = """\
ip link set lo up
ip link add docker0 type bridge
sysctl -qw net.ipv6.conf.docker0.accept_dad=0
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1
iptables -P FORWARD DROP
ip6tables -P FORWARD DROP
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""
NETWORK = """\
ip -j link; ip -j address; ip -j route show table all; ip -j -6 route show table all
ip -j rule; ip -j neighbour show nud permanent
for device in $(ip -br link | sed 's/[@ ].*//'); do
  tc qdisc show dev $device
  tc filter show dev $device ingress; tc filter show dev $device egress
done
iptables -S; iptables -t nat -S; ip6tables -S; nft -s list ruleset
grep -r . /proc/sys/net 2>/dev/null | grep -v -e random -e conntrack_count | sort
"""


def network(machine: Within) -> str:
    """All that a machine's own network is made of."""
    done = subprocess.run(
        [*machine, "sh", "-c", NETWORK], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def machine() -> Iterator[Within]:
    """A command that runs others on a machine of the test's own."""
    path = Path(f"/run/podlane-machine-{secrets.token_hex(4)}")
    netns.create(path)
    within = ("nsenter", f"--net={path}", "--")
    try:
        subprocess.run([*within, "sh", "-ec", DOCKER], check=True)
        yield within
    finally:
        netns.delete(path)


def leftovers(name: str) -> list[str]:
    """What mentions a lab: its folder, its mounts, its processes."""
    found = [str(path) for path in LABS.glob(f"{name}*")] if LABS.exists() else []
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    found += [mount for mount in mounts if f"/podlane-lab/{name}" in mount]
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found += [words] if f"/podlane-lab/{name}/" in words else []
    return found


def test_the_machines_network_is_never_touched(machine: Within) -> None:
    before = network(machine)
    with lab(SHOP.read_text(), within=machine) as one:
        assert network(machine) == before
        status, report = one.check()
        assert status == 0, failed(report)
        assert network(machine) == before
    assert network(machine) == before
    assert not leftovers(one.name)


def test_two_labs_live_side_by_side() -> None:
    with lab(TWO_WEB, "--nodes", "1") as first, lab(TWO_WEB, "--nodes", "1") as second:
        for one in (first, second):
            status, report = one.check()
            assert status == 0, failed(report)
        podlane("lab", "down", "--name", first.name)
        assert not leftovers(first.name)
        assert second.check()[0] == 0


def started(name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(PODLANE), "lab", "up", "--name", name, "-f", str(SHOP)],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], step: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if step in line:
            return
    raise AssertionError(f"no step '{step}'")


STEPS = ["nodes, outside", "agents", "waiting until"]


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_leaves_nothing(step: str) -> None:
    name = new_name()
    process = started(name)
    wait_for(process, step)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not leftovers(name)


def test_what_a_killed_up_left_is_gone_after_the_next_down() -> None:
    name = new_name()
    process = started(name)
    wait_for(process, "wiring")
    process.kill()
    process.communicate()
    assert leftovers(name)
    assert podlane("lab", "check", "--name", name).returncode == 2
    assert podlane("lab", "down", "--name", name).returncode == 0
    time.sleep(0.2)  # a child that was about to enter a namespace ends now
    assert not leftovers(name)


def test_what_a_killed_up_left_does_not_stop_the_next_up() -> None:
    name = new_name()
    process = started(name)
    wait_for(process, "agents")
    process.kill()
    process.communicate()
    try:
        assert podlane("lab", "up", "--name", name, "-f", str(SHOP)).returncode == 0
        assert podlane("lab", "check", "--name", name).returncode == 0
        again = podlane("lab", "up", "--name", name, "-f", str(SHOP))
        assert (again.returncode, "is up already" in again.stderr) == (2, True)
    finally:
        podlane("lab", "down", "--name", name)
    assert not leftovers(name)


def test_down_of_nothing_is_done() -> None:
    assert podlane("lab", "down", "--name", new_name()).returncode == 0
