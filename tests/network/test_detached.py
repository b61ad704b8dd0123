# SPDX-License-Identifier: Apache-2.0
"""Programs that somebody takes off a node's devices: the status names them, and health says so.

node1 ─ eth0 ─ bridge ─ outside: asks for a Service and for the node's health
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataplane.agent.facts import OVERLAY_NAME
from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import Cluster
from tests.network.greeters import ask_once, serving

HEALTH_PORT = 10256


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        (node,) = made.nodes
        backends = {family: [life.pod_address(family, 1, 11)] for family in Family}
        made.write({"web": life.service("web", backends, protocols=["TCP"])})
        made.start()
        node.add_pod("a", life.both(1, 11))
        yield made
    finally:
        made.close()


def health(cluster: Cluster, page: str) -> bytes:
    """The status that the node's own health port answers with."""
    at = life.node_address(Family.V4, 1)
    with life.connect(cluster.outside, Family.V4, at, HEALTH_PORT) as asking:
        asking.sendall(f"GET /{page} HTTP/1.0\r\n\r\n".encode())
        return asking.recv(4096).split()[1]


@pytest.mark.parametrize(
    ("device", "command", "names"),
    [
        ("eth0", "tc filter del dev eth0 ingress pref 100", "from_uplink_4"),
        (
            OVERLAY_NAME,
            f"tc qdisc del dev {OVERLAY_NAME} clsact",
            "from_overlay_4, from_overlay_6, to_overlay_4, to_overlay_6",
        ),
    ],
)
def test_programs_that_were_taken_off_are_named_until_a_start_puts_them_back(
    cluster: Cluster, device: str, command: str, names: str
) -> None:
    (node,) = cluster.nodes

    def pages() -> set[bytes]:
        return {health(cluster, page) for page in ("healthz", "livez")}

    def serves() -> str:
        at = life.node_address(Family.V4, 1)
        return ask_once(cluster.outside, Family.V4, at, life.NODE_PORT)

    with serving(node, "a"):
        life.wait(serves, 20, "for the Service")
        assert pages() == {b"200"}
        node.run(command)
        life.wait(lambda: pages() == {b"503"}, 10, "for health")
        words = f"device {device}: tc filters: {names}: not there any more"
        assert [one[: len(words)] for one in node.status()["problems"]] == [words]
        node.stop()
        node.start(cluster.manifests)
        life.wait(lambda: pages() == {b"200"}, 10, "for health")
        assert serves()
        assert node.status()["problems"] == []
