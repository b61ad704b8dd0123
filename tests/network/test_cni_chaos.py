# SPDX-License-Identifier: Apache-2.0
"""Random calls of the plugin while agent and plugin are killed in the middle; then an audit.

runtime (this test) ── podlane-cni ── socket ── agent of node1 ── kernel

PODLANE_CNI_OPERATIONS says how many calls (250), PODLANE_CNI_SEED which (printed).
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel import bpf, netns
from dataplane.kernel.maps import Maps
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network import cni_node
from tests.network.cluster import AgentNode, Cluster, sh

OPERATIONS = int(os.environ.get("PODLANE_CNI_OPERATIONS", "250"))
SEED = int(os.environ.get("PODLANE_CNI_SEED") or secrets.randbits(32))
MOST_PODS = 25


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        made.start()
        yield made
    finally:
        made.close()


class Runtime:
    """What a container runtime knows: which sandboxes live, which it has still to remove."""

    def __init__(self, cluster: Cluster, dice: random.Random) -> None:
        self.cluster, self.node, self.dice = cluster, cluster.nodes[0], dice
        self.live: dict[str, str] = {}
        self.to_remove: dict[str, str] = {}
        self.number = 0
        self.config = cni_node.config(self.node)

    def path(self, ns: str) -> str:
        return f"/run/netns/{ns}"

    def maybe_kill(self) -> tuple[bool, bool]:
        """(agent, plugin) to be killed in the middle of this call."""
        roll = self.dice.random()
        return roll < 0.03, 0.03 <= roll < 0.1

    def call(self, command: str, container: str, ns: str, given: object = None) -> cni_node.Answer:
        kill_agent, kill_plugin = self.maybe_kill()
        path = self.path(ns) if ns else ""
        process = cni_node.start(
            command, container, path, given if isinstance(given, dict) else self.config
        )
        if kill_agent or kill_plugin:
            time.sleep(self.dice.random() * 0.03)
        if kill_agent:
            self.node.stop(signal.SIGKILL)
            self.node.start(self.cluster.manifests, wait=False)
        if kill_plugin:
            process.kill()
        return cni_node.end(process)

    def add(self) -> None:
        self.number += 1
        container, ns = f"c{self.number}", f"{self.node.ns}-c{self.number}"
        netns.create(Path(self.path(ns)))
        self.node.pods[container] = ns
        answer = self.call("ADD", container, ns)
        if answer.status == 0:
            assert answer.json["ips"], answer
            self.live[container] = ns
        else:
            self.to_remove[container] = ns

    def remove(self, container: str, ns: str) -> None:
        answer = self.call("DEL", container, ns if self.dice.random() < 0.8 else "")
        self.live.pop(container, None)
        if answer.status:
            self.to_remove[container] = ns
            return
        self.to_remove.pop(container, None)
        netns.delete(Path(self.path(ns)))
        self.node.pods.pop(container, None)

    def check(self, container: str, ns: str) -> None:
        answer = self.call("CHECK", container, ns)
        assert answer.status in (0, -signal.SIGKILL) or answer.code == 11, answer

    def collect(self) -> None:
        valid = [{"containerID": c, "ifname": "eth0"} for c in {**self.live, **self.to_remove}]
        given = {**self.config, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}
        answer = self.call("GC", "", "", given)
        assert answer.status in (0, -signal.SIGKILL) or answer.code == 11, answer

    def step(self) -> None:
        roll = self.dice.random()
        pods = sorted(self.live.items())
        if self.to_remove and roll < 0.15:
            self.remove(*self.dice.choice(sorted(self.to_remove.items())))
        elif not pods or (roll < 0.5 and len(pods) < MOST_PODS):
            self.add()
        elif roll < 0.8:
            self.remove(*self.dice.choice(pods))
        elif roll < 0.95:
            self.check(*self.dice.choice(pods))
        else:
            self.collect()


def settle(runtime: Runtime) -> None:
    """The runtime's second tries, and the agent's."""
    runtime.node.wait_ready()
    while runtime.to_remove:
        runtime.remove(*min(runtime.to_remove.items()))
        runtime.node.wait_ready()
    until = time.monotonic() + 15
    releases = runtime.node.folder / "state/releases"
    while releases.is_dir() and list(releases.glob("[!.]*")) and time.monotonic() < until:
        time.sleep(0.1)
    for unfinished in releases.glob(".*") if releases.is_dir() else ():
        os.utime(unfinished, (0, 0))  # of a plugin that was killed a minute ago
    while releases.is_dir() and list(releases.iterdir()) and time.monotonic() < until:
        time.sleep(0.1)


def rows(node: AgentNode, table: Table) -> int:
    maps = Maps(node.folder / "bpf")
    try:
        return len(dict(maps.items(table)))
    finally:
        maps.close()


def test_nothing_is_lost_or_given_twice_whatever_dies(cluster: Cluster) -> None:
    print(f"seed {SEED}, {OPERATIONS} operations")
    known = cni_node.pins(cluster.nodes[0])
    runtime = Runtime(cluster, random.Random(SEED))
    try:
        for _ in range(OPERATIONS):
            runtime.step()
        settle(runtime)
        assert cni_node.audit(runtime.node, runtime.live, known) == []
        for family in Family:
            assert rows(runtime.node, Table("endpoints", family)) == len(runtime.live)
        for container, ns in list(runtime.live.items()):
            assert cni_node.call("CHECK", container, runtime.path(ns), runtime.config).status == 0
        while runtime.live:
            runtime.remove(*min(runtime.live.items()))
        settle(runtime)
        assert cni_node.audit(runtime.node, {}, known) == []
    finally:
        print(f"seed {SEED}: {runtime.number} pods were asked for")


@pytest.fixture
def pod(cluster: Cluster) -> Iterator[tuple[AgentNode, str, str]]:
    """A node with one pod: node, container, namespace."""
    node = cluster.nodes[0]
    node.wait_ready()
    ns = f"{node.ns}-planted"
    netns.create(Path("/run/netns") / ns)
    node.pods["planted"] = ns
    config = cni_node.config(node)
    assert cni_node.call("ADD", "planted", f"/run/netns/{ns}", config).status == 0
    yield node, "planted", ns
    cni_node.call("DEL", "planted", f"/run/netns/{ns}", config)
    netns.delete(Path("/run/netns") / ns)
    del node.pods["planted"]


def test_the_audit_finds_one_stray_of_each_kind(pod: tuple[AgentNode, str, str]) -> None:
    node, container, ns = pod
    known, live = cni_node.pins(node), {container: ns}
    assert cni_node.audit(node, live, known) == []

    sh(f"ip -n {node.ns} link add pl00000000beef type veth peer name beef")
    assert "link pl00000000beef is stray" in cni_node.audit(node, live, known)
    sh(f"ip -n {node.ns} link del pl00000000beef")

    with sqlite3.connect(node.folder / "state/pods.db") as database:
        database.execute(
            "INSERT INTO attachments VALUES ('ghost', 'eth0', 'plghost', 99, x'', '', '', 0, 1)"
        )
        database.execute("INSERT INTO addresses VALUES ('10.244.1.200', 'ghost', 'eth0')")
    found = cni_node.audit(node, live, known)
    assert "address 10.244.1.200 is lost to ghost" in found
    assert "row of ghost is stray" in found
    with sqlite3.connect(node.folder / "state/pods.db") as database:
        database.execute("DELETE FROM addresses WHERE container_id = 'ghost'")
        database.execute("DELETE FROM attachments WHERE container_id = 'ghost'")

    pin = node.folder / "bpf/v1/map/stray"
    fd = bpf.map_create("stray", bpf.MAP_ARRAY, 4, 4, 1)
    bpf.obj_pin(fd, pin)
    os.close(fd)
    assert f"pin {pin} is stray" in cni_node.audit(node, live, known)
    pin.unlink()

    release = node.folder / "state/unknown"
    release.touch()
    assert f"file {release} is stray" in cni_node.audit(node, live, known)
    release.unlink()

    other = f"{node.ns}-twice"
    netns.create(Path("/run/netns") / other)
    try:
        (address,) = [
            word for line in cni_node.lines("ip", "-n", ns, "-4", "-o", "addr", "show", "dev", "eth0")
            for word in line.split() if word.startswith("10.244.")
        ]  # fmt: skip
        sh(
            f"ip -n {other} link add eth0 type veth peer name eth1"
            f" && ip -n {other} addr add {address} dev eth0"
        )
        twice = cni_node.audit(node, {**live, "other": other}, known)
        assert f"address {address.split('/')[0]} is given twice" in twice
    finally:
        netns.delete(Path("/run/netns") / other)

    sh(
        f"tc -n {node.ns} filter add dev eth0 egress pref 7 protocol ip bpf bytecode '1,6 0 0 0' flowid 1:1"
    )
    assert "3 filters and not 2 at egress of eth0" in cni_node.audit(node, live, known)
    sh(f"tc -n {node.ns} filter del dev eth0 egress pref 7")
    assert cni_node.audit(node, live, known) == []
