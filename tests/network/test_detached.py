# SPDX-License-Identifier: Apache-2.0
"""Programs that somebody takes off the node's devices are put back; until then health says so.

node1 ─ eth0 ─ bridge ─ outside: asks for a Service and for the node's health
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataplane.agent.facts import OVERLAY_NAME
from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import SIZES, AgentNode, Cluster
from tests.network.life import NODE_PORT, TARGET

HEALTH_PORT = 10256


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        (node,) = made.nodes
        node.write_config(mapSizes=SIZES)
        backends = {family: [life.pod_address(family, 1, 11)] for family in Family}
        made.write({"web": life.service("web", backends)})
        made.start()
        node.add_pod("a", life.both(1, 11))
        with life.bulk_server(node.pods["a"], Family.V4, TARGET):
            life.wait(lambda: serves(made), 20, "for the Service")
            yield made
    finally:
        made.close()


def serves(cluster: Cluster) -> bool:
    return life.serves(cluster.outside, Family.V4, life.node_address(Family.V4, 1), NODE_PORT)()


def health(cluster: Cluster, page: str) -> bytes:
    """The status that the node's own health port answers with."""
    at = life.node_address(Family.V4, 1)
    with life.connect(cluster.outside, Family.V4, at, HEALTH_PORT) as asking:
        asking.sendall(f"GET /{page} HTTP/1.0\r\n\r\n".encode())
        return asking.recv(4096).split()[1]


@pytest.mark.parametrize("device", ["eth0", OVERLAY_NAME])
def test_programs_that_were_taken_off_a_device_come_back(cluster: Cluster, device: str) -> None:
    (node,) = cluster.nodes
    node.run(f"tc qdisc del dev {device} clsact")
    life.wait(lambda: attached(node, device), 10, f"for the programs on {device}")
    life.wait(lambda: serves(cluster), 10, "for the Service")


def attached(node: AgentNode, device: str) -> bool:
    return "from_" in node.run(f"tc filter show dev {device} ingress", check=False)


def test_health_says_so_while_they_cannot(cluster: Cluster) -> None:
    (node,) = cluster.nodes
    assert health(cluster, "healthz") == b"200"
    # An ingress qdisc of somebody else, which has clsact's place.
    node.run("sh -c 'tc qdisc del dev eth0 clsact && tc qdisc add dev eth0 ingress'")
    named = "device eth0: filter from_uplink_4: uplinks: the kernel refused it"

    def told() -> bool:
        return any(one.startswith(named) for one in node.status()["problems"])

    life.wait(told, 10, "for the problem")
    assert (health(cluster, "healthz"), health(cluster, "livez")) == (b"503", b"503")
    node.run("tc qdisc del dev eth0 ingress")
    life.wait(lambda: health(cluster, "healthz") == b"200", 10, "for health")
    assert serves(cluster)
    assert not node.status()["problems"]
