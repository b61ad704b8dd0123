# SPDX-License-Identifier: Apache-2.0
"""The plugin on a node with no room: state folder full or read-only, maps full.

runtime (this test) ── podlane-cni ── socket ── agent of node1 ── kernel
                                                   └── state folder: a tmpfs of 512 KB
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.cni import protocol
from dataplane.kernel import netns
from tests.network import cni_node
from tests.network.cluster import SIZES, AgentNode, Cluster, sh
from tests.network.cni_node import Answer, audit

ENDPOINTS = 4
"""Places in the maps of endpoints; the first is nobody's."""
FRONTENDS = 4
"""Two pods with a hostPort: in IPv4 each is at the node's address and at 127.0.0.1."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    node = made.nodes[0]
    state = node.folder / "state"
    state.mkdir()
    sh(f"mount -t tmpfs -o size=512k tmpfs {state}")
    try:
        node.write_config(mapSizes={**SIZES, "endpoints": ENDPOINTS, "frontends": FRONTENDS})
        made.start()
        yield made
    finally:
        made.close()
        sh(f"umount -l {state}", check=False)
        sh(f"rm -rf {made.folder}")


class Calls:
    """Calls of one test, and what is to be there after them."""

    def __init__(self, node: AgentNode) -> None:
        self.node, self.pins = node, cni_node.pins(node)
        self.live: dict[str, str] = {}

    def ask(self, command: str, name: str, **more: Any) -> Answer:
        ns = f"{self.node.ns}-{name}"
        if name not in self.node.pods:
            netns.create(Path("/run/netns") / ns)
            self.node.pods[name] = ns
        given = cni_node.config(self.node, "1.1.0", **more)
        args = f"K8S_POD_NAMESPACE=test;K8S_POD_NAME={name}"
        answer = cni_node.call(command, name, f"/run/netns/{ns}", given, args)
        if answer.status == 0 and command == "ADD":
            self.live[name] = ns
        if answer.status == 0 and command == "DEL":
            self.live.pop(name, None)
        return answer

    def faults(self) -> list[str]:
        return audit(self.node, self.live, self.pins)


@pytest.fixture
def calls(cluster: Cluster) -> Iterator[Calls]:
    made = Calls(cluster.nodes[0])
    yield made
    for name in list(made.live):
        assert made.ask("DEL", name).status == 0
    for name in list(made.node.pods):
        netns.delete(Path("/run/netns") / made.node.pods.pop(name))
    assert made.faults() == []


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The folder's filesystem without a byte left."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        yield
    finally:
        filler.unlink(missing_ok=True)


def test_a_full_state_folder_refuses_new_pods_and_holds_no_old_one(calls: Calls) -> None:
    assert calls.ask("ADD", "before").status == 0
    with filled(calls.node.folder / "state"):
        refused = calls.ask("ADD", "a")
        assert refused.code == protocol.IO_FAILED
        assert "pods.db: database or disk is full" in refused.json["msg"]
        assert "has room" in refused.json["details"]
        status = calls.ask("STATUS", "before")
        assert status.code == protocol.NOT_AVAILABLE
        assert "disk is full" in status.json["msg"]
        assert calls.ask("CHECK", "before").status == 0
        # a pod must not hang for it: its row goes when there is room
        assert calls.ask("DEL", "before").status == 0
        assert "pl" not in {link[:2] for link in veths(calls.node)}
    assert calls.ask("ADD", "a").status == 0
    assert calls.faults() == []


def veths(node: AgentNode) -> list[str]:
    shown = cni_node.lines("ip", "-n", node.ns, "-br", "link", "show", "type", "veth")
    return [line.split("@")[0] for line in shown]


def test_a_read_only_state_folder_is_told_by_agent_and_plugin(
    cluster: Cluster, calls: Calls
) -> None:
    node, state = calls.node, calls.node.folder / "state"
    assert calls.ask("ADD", "a").status == 0
    node.stop(signal.SIGKILL)
    sh(f"mount -o remount,ro {state}")
    try:
        refused = calls.ask("DEL", "a")
        assert refused.code == protocol.IO_FAILED
        assert f"{state}/releases" in refused.json["msg"]
        assert "Read-only file system" in refused.json["msg"]
        node.start(cluster.manifests, wait=False)
        assert node.process is not None
        assert node.process.wait(30) == 2
        assert f"state {state}/pods.db" in node.log()
    finally:
        sh(f"mount -o remount,rw {state}")
    node.start(cluster.manifests)
    assert calls.faults() == []
    assert calls.ask("CHECK", "a").status == 0


def test_a_state_folder_of_no_size_is_told_at_the_start(cluster: Cluster, calls: Calls) -> None:
    node = calls.node
    tiny = node.folder / "tiny"
    tiny.mkdir()
    sh(f"mount -t tmpfs -o size=64k tmpfs {tiny}")
    node.stop(signal.SIGTERM)
    try:
        with filled(tiny):
            node.write_config(
                mapSizes={**SIZES, "endpoints": ENDPOINTS, "frontends": FRONTENDS},
                stateDir=str(tiny),
            )
            node.start(cluster.manifests, wait=False)
            assert node.process is not None
            assert node.process.wait(30) == 2
            assert f"state {tiny}/pods.db" in node.log()
            assert "see that its folder is writable and has room" in node.log()
    finally:
        sh(f"umount -l {tiny}")
        tiny.rmdir()
        node.write_config(mapSizes={**SIZES, "endpoints": ENDPOINTS, "frontends": FRONTENDS})
        node.start(cluster.manifests)


def test_a_full_map_of_endpoints_is_named_with_its_key(calls: Calls) -> None:
    for number in range(1, ENDPOINTS):
        assert calls.ask("ADD", f"p{number}").status == 0
    full = calls.ask("ADD", "more")
    assert full.code == protocol.TRY_LATER
    assert "pod test/more: all 3 places of map endpoints are taken" in full.json["msg"]
    assert "mapSizes.endpoints" in full.json["details"]
    assert calls.ask("STATUS", "p1").code == protocol.NOT_AVAILABLE
    assert calls.faults() == []


def test_a_full_map_of_frontends_is_named_and_leaves_nothing(calls: Calls) -> None:
    def ports(number: int) -> dict[str, Any]:
        mapping = {"hostPort": number, "containerPort": 80, "protocol": "tcp"}
        return {"portMappings": [mapping]}

    answers = [calls.ask("ADD", f"h{n}", runtimeConfig=ports(8000 + n)) for n in (1, 2, 3)]
    assert [one.status for one in answers[:2]] == [0, 0]
    refused = answers[2]
    assert refused.code == protocol.TRY_LATER, refused
    assert "frontends" in refused.json["msg"] + refused.json["details"]
    assert calls.faults() == []


def test_status_names_a_program_that_running_pods_lack(cluster: Cluster, calls: Calls) -> None:
    assert calls.ask("STATUS", "any").status == 0
    sh(f"tc -n {calls.node.ns} filter del dev eth0 ingress pref 100")
    try:
        suffering = calls.ask("STATUS", "any")
        assert suffering.code == protocol.PODS_SUFFER
        assert "device eth0: tc filters: from_uplink_4: missing" in suffering.json["msg"]
    finally:
        calls.node.stop(signal.SIGTERM)
        calls.node.start(cluster.manifests)
    assert calls.ask("STATUS", "any").status == 0
