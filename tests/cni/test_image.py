# SPDX-License-Identifier: Apache-2.0
"""The image, in a containerd of its own: its commands, and the agent as the DaemonSet runs it.

pod a ─ node1 (agent in a container) ── eth0 ── bridge ── outside, with the API server
"""

from __future__ import annotations

import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.manifests import CAPABILITIES, IMAGE
from dataplane.kernel import netns
from tests import api_server
from tests.api_server import ApiServer, service, service_cidr
from tests.cni.test_containerd import BUILD, Containerd
from tests.network.cluster import PODLANE, AgentNode, Cluster, sh

TAR = BUILD / "podlane-image.tar"
# What a container has if nobody says otherwise (the runtime specification's authors' choice).
USUAL = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def containerd(cluster: Cluster) -> Iterator[Containerd]:
    made = Containerd(cluster.nodes[0])
    try:
        made.ctr(f"images import --snapshotter native {TAR}")
        yield made
    finally:
        made.close()


def podlane(containerd: Containerd, words: str) -> str:
    name = f"image-{containerd.node.ns}"
    return containerd.ctr(
        f"run --rm --read-only --snapshotter native {IMAGE} {name} /usr/local/bin/podlane {words}"
    )


def test_its_name_is_the_one_in_the_manifests_and_it_is_small(containerd: Containerd) -> None:
    assert IMAGE in containerd.ctr("images ls -q").split()
    assert TAR.stat().st_size <= 150_000_000


def test_commands_run_in_it(containerd: Containerd) -> None:
    assert "manifests" in podlane(containerd, "--help")
    here = sh(f"{PODLANE} manifests --mode native")
    assert podlane(containerd, "manifests --mode native") == here


def node_object(node: AgentNode) -> dict[str, object]:
    addresses = ("192.0.2.1", "2001:db8::1")
    return api_server.node(node.name, "10.244.1.0/24", "fd00:244:1::/64", addresses=addresses)


def probe() -> int:
    """What kubelet asks to know whether the pod is ready."""
    with urllib.request.urlopen("http://192.0.2.1:10256/livez", timeout=5) as answer:
        return int(answer.status)


class AgentContainer:
    """The agent in a container with the mounts and rights of the DaemonSet, and no others."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd, self.node = containerd, containerd.node
        self.name = f"agent-{self.node.ns}"
        folder = self.node.folder
        for one in ("run", "state", "cni/bin", "cni/conf"):
            (folder / one).mkdir(parents=True, exist_ok=True)
        binds = [(str(folder), str(folder), "rslave")]
        binds += [("/proc/sys/net", "/host/proc/sys/net", "rslave")]
        binds += [("/sys/fs/cgroup", "/host/sys/fs/cgroup", "rslave")]
        binds += [("/run/netns", "/run/netns", "rslave")]
        mounts = " ".join(
            f"--mount type=bind,src={source},dst={to},options=rbind:{how}"
            for source, to, how in binds
        )
        rights = " ".join(
            [f"--cap-drop CAP_{one}" for one in USUAL]
            + [f"--cap-add CAP_{one}" for one in CAPABILITIES]
        )
        self.run = f"run --net-host --read-only --snapshotter native {mounts} {rights}"

    def podlane(self, command: str) -> str:
        words = f"{command} --config {self.node.config} --node {self.node.name}"
        return f"{IMAGE} {self.name} /usr/local/bin/podlane {words}"

    def start(self) -> subprocess.Popen[bytes]:
        log = self.node.folder / "agent.log"
        before = log.read_text().count("node_ready") if log.exists() else 0
        words = f"ctr -a {self.containerd.socket} -n k8s.io {self.run} --rm {self.podlane('agent')}"
        command = ["nsenter", f"--net=/run/netns/{self.node.ns}", *words.split()]
        with log.open("a") as end:
            process = subprocess.Popen(command, stdout=end, stderr=end)
        until = time.monotonic() + 90
        while log.read_text().count("node_ready") == before:
            assert process.poll() is None, self.node.log()
            assert time.monotonic() < until, self.node.log()
            time.sleep(0.05)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        self.containerd.ctr(f"tasks kill -s SIGTERM {self.name}")
        return process.wait(20)

    def pid(self) -> int:
        (line,) = [
            line for line in self.containerd.ctr("tasks ls").splitlines() if self.name in line
        ]
        return int(line.split()[1])


def test_the_agent_runs_in_it_with_the_rights_of_the_daemon_set(
    cluster: Cluster, containerd: Containerd
) -> None:
    node = cluster.nodes[0]
    outside = Path("/run/netns") / cluster.outside
    api = netns.run_in(outside, lambda: ApiServer("192.0.2.100"))
    try:
        node.write_config(apiServer=api.url, serviceCIDRs=None)
        cidrs = service_cidr("kubernetes", "10.96.0.0/16", "fd00:96::/112")
        api.put(node_object(node), cidrs, service("web", "10.96.0.10"))
        agent = AgentContainer(containerd)
        containerd.ctr(f"{agent.run} --rm {agent.podlane('install')}")
        assert os.access(node.folder / "cni/bin/podlane-cni", os.X_OK)
        assert (node.folder / "cni/bin/loopback").exists()
        assert not list((node.folder / "cni/conf").iterdir())
        process = agent.start()
        assert node.status() | {"pid": 0} == {
            "state": "ready", "node": "node1", "pid": 0, "problems": []
        }  # fmt: skip
        assert (node.folder / "cni/conf/05-podlane.conflist").exists()
        assert node.run("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"
        node.add_pod("a", "10.244.1.11")
        node.in_pod("a", "ping -c1 -W2 10.244.1.1")
        node.run("ping -c1 -W2 10.244.1.11")
        assert netns.run_in(Path("/run/netns") / node.ns, probe) == 200
        memory = Path(f"/proc/{agent.pid()}/status").read_text()
        rss = next(line for line in memory.splitlines() if line.startswith("VmRSS"))
        print(rss)
        assert int(rss.split()[1]) < 120_000
        # The container goes, what it made stays; the next one finds it and changes nothing.
        assert agent.stop(process) == 0
        node.run("ping -c1 -W2 10.244.1.11")
        process = agent.start()
        last = node.log().rpartition('"event": "agent_started"')[2]
        events = re.findall(r'"event": "(\w+)"', last)
        assert events == ["programs_found", "conflist_written", "node_ready"]
        node.delete_pod("a")
        assert agent.stop(process) == 0
    finally:
        api.stop()
