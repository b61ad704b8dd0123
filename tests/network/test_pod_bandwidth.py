# SPDX-License-Identifier: Apache-2.0
"""Pods with limits: what enters is shaped at the host veth, what leaves at the pod's eth0.

    limited ── veth [shaper, programs] ── node1 ── veth ── other
                 outside ── bridge ── eth0 ──┘

Amounts are judged by the time that they took, whatever that was: a bucket lets no more
through than its burst and its rate times that time.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import netns
from dataplane.model.net import Family
from tests.network import cni_node
from tests.network.cluster import AgentNode, Cluster, sh
from tests.network.life import make, node_address, pod_address

PORT = 7000
RATE = 16_000_000  # bits a second
SECONDS = 0.8
BURST_BYTES = 64 << 10  # the agent's own choice for such a rate
LIMITED, OTHER = 10, 11
LIMITS = {"ingressRate": RATE, "ingressBurst": 0, "egressRate": RATE, "egressBurst": 0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[AgentNode]:
    made = cluster.nodes[0]
    pins = cni_node.pins(made)
    for name, number, limits in (("limited", LIMITED, LIMITS), ("other", OTHER, None)):
        ns = f"{made.ns}-{name}"
        netns.create(Path("/run/netns") / ns)
        made.pods[name] = ns
        ips = [f"{pod_address(family, 1, number)}" for family in Family]
        runtime = {"ips": ips, **({"bandwidth": limits} if limits else {})}
        answer = ask(made, "ADD", name, runtimeConfig=runtime)
        assert answer.status == 0, answer
    yield made
    for name in ("limited", "other"):
        assert ask(made, "DEL", name).status == 0
        netns.delete(Path("/run/netns") / made.pods.pop(name))
    assert cni_node.audit(made, {}, pins) == []


def ask(node: AgentNode, command: str, name: str, **more: Any) -> cni_node.Answer:
    config = cni_node.config(node, **more)
    return cni_node.call(command, name, f"/run/netns/{node.ns}-{name}", config)


def passed(family: Family, source: str, sink: str, address: str) -> tuple[int, float]:
    """Bytes of one TCP connection between two namespaces, and the seconds that they took."""
    with make(sink, family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", PORT))
        listener.listen()
        with make(source, family, socket.SOCK_STREAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 << 10)
            client.connect((address, PORT))
            server, _ = listener.accept()
            begin = time.monotonic()
            sender = threading.Thread(target=_send, args=(client,))
            sender.start()
            with server:
                got = 0
                while data := server.recv(1 << 18):
                    got += len(data)
            took = time.monotonic() - begin
            sender.join()
    print(f"{source} to {sink}: {got} bytes in {took:.2f} s, {got * 8 / took / 1e6:.1f} Mbit/s")
    return got, took


def _send(client: socket.socket) -> None:
    chunk, until = bytes(1 << 16), time.monotonic() + SECONDS
    while time.monotonic() < until:
        client.sendall(chunk)
    client.shutdown(socket.SHUT_WR)


def ways(cluster: Cluster, family: Family) -> dict[str, tuple[str, str, str]]:
    """Source, sink and address of what is limited, by name."""
    node = cluster.nodes[0]
    limited, other = (f"{node.ns}-{name}" for name in ("limited", "other"))
    mine, its = pod_address(family, 1, LIMITED), pod_address(family, 1, OTHER)
    return {
        "from a pod": (other, limited, mine),
        "from the node": (node.ns, limited, mine),
        "to a pod": (limited, other, its),
        "to the node": (limited, node.ns, node_address(family, 1)),
    }


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("way", ["from a pod", "from the node", "to a pod", "to the node"])
def test_a_limit_holds_on_every_way(
    cluster: Cluster, node: AgentNode, family: Family, way: str
) -> None:
    got, took = passed(family, *ways(cluster, family)[way])
    most = BURST_BYTES + took * RATE / 8
    assert got < 1.1 * most
    assert got > 0.3 * most, "shaped to less than was asked for"


@pytest.mark.parametrize("family", list(Family))
def test_a_pod_without_limits_has_none(cluster: Cluster, node: AgentNode, family: Family) -> None:
    got, took = passed(family, node.ns, f"{node.ns}-other", pod_address(family, 1, OTHER))
    assert got > 5 * (BURST_BYTES + took * RATE / 8)


def host_veth(node: AgentNode) -> str:
    (row,) = cni_node.lines(
        "sqlite3", str(node.folder / "state/pods.db"),
        "SELECT veth FROM attachments WHERE container_id = 'limited'",
    )  # fmt: skip
    return row


def shapers(node: AgentNode) -> list[str]:
    """The kind and rate at the root of both ends."""
    found = []
    for ns, device in ((node.ns, host_veth(node)), (f"{node.ns}-limited", "eth0")):
        shown = json.loads(sh(f"tc -n {ns} -j qdisc show dev {device} root"))
        found += [f"{q['kind']} {q.get('options', {}).get('rate')}" for q in shown]
    return found


def test_check_and_a_new_agent_know_the_limits(cluster: Cluster, node: AgentNode) -> None:
    both = [f"tbf {RATE // 8}"] * 2
    assert shapers(node) == both
    assert ask(node, "CHECK", "limited").status == 0
    sh(f"tc -n {node.ns}-limited qdisc del dev eth0 root")
    assert "shaper of eth0 is missing" in ask(node, "CHECK", "limited").json["msg"]
    sh(f"tc -n {node.ns}-limited qdisc add dev eth0 root tbf rate 1mbit burst 64k latency 50ms")
    assert "shaper of eth0 is missing or other" in ask(node, "CHECK", "limited").json["msg"]
    sh(f"tc -n {node.ns} qdisc del dev {host_veth(node)} root")
    assert f"shaper of {host_veth(node)}" in ask(node, "CHECK", "limited").json["msg"]
    node.stop(signal.SIGKILL)
    node.start(cluster.manifests)
    # The agent repairs what is the node's. A pod's own side was another's doing.
    assert shapers(node)[0] == both[0]
    assert f"shaper of {host_veth(node)} is missing" in node.log()
    sh(f"tc -n {node.ns}-limited qdisc del dev eth0 root")


def test_limits_are_known_again_when_the_database_is_lost(
    cluster: Cluster, node: AgentNode
) -> None:
    assert ask(node, "DEL", "limited").status == 0
    runtime = {"bandwidth": LIMITS, "ips": [pod_address(f, 1, LIMITED) for f in Family]}
    assert ask(node, "ADD", "limited", runtimeConfig=runtime).status == 0
    node.stop(signal.SIGKILL)
    for file in (node.folder / "state").glob("pods.db*"):
        file.unlink()
    node.start(cluster.manifests)
    assert ask(node, "CHECK", "limited").status == 0
    sh(f"tc -n {node.ns}-limited qdisc del dev eth0 root")
    assert "shaper of eth0" in ask(node, "CHECK", "limited").json["msg"]
