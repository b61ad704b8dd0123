# SPDX-License-Identifier: Apache-2.0
"""Direct server return over real sockets: who asks node 1 is answered by node 2, where the pod is.

              ┌─ eth0 ── node1 (asked; no pod of the Service)
outside ── bridge
              └─ eth0 ── node2 ── pod c (serves)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.lab import inside, state
from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import SIZES, Cluster, sh
from tests.network.life import NODE_PORT, OUTSIDE, PORT, TARGET

BALANCER = {Family.V4: "203.0.113.80", Family.V6: "2001:db8:99::80"}
BULK_PORT, BULK = 8081, 2 << 20
KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
families = pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module", params=["vxlan", "native"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(2, request.param)
    pod = ""
    try:
        for node in made.nodes:
            node.write_config(loadBalancerMode="dsr", mapSizes=SIZES)
        put(made, "c")
        made.start()
        made.nodes[1].add_pod("c", life.both(2, 11))
        pod = made.nodes[1].pods["c"]
        sh(f"ip netns exec {pod} {inside.STAND_IN} serve c tcp:{TARGET} udp:{TARGET}")
        for family, address in BALANCER.items():
            sh(f"ip -n {made.outside} route add {address} via {life.node_address(family, 1)}")
            at = life.node_address(family, 1)
            life.wait(life.serves(made.outside, family, at, NODE_PORT), 20, "for the Service")
        yield made
    finally:
        for pid in state.processes(Path("/run/netns") / pod) if pod else ():
            os.kill(pid, signal.SIGKILL)
        made.close()


def put(cluster: Cluster, *pods: str, port: int = TARGET) -> None:
    """The Service with its endpoint, or without."""
    backends = {family: [life.pod_address(family, 2, 11)] if pods else [] for family in Family}
    objects: list[Any] = life.service("web", backends, externalIPs=list(BALANCER.values()))
    for one in objects:
        for endpoint in one.get("endpoints", ()):
            endpoint["nodeName"] = "node2"
        if "endpoints" in one:
            one["ports"] = [{**asked, "port": port} for asked in one["ports"]]
    cluster.write({"web": objects})


def carried(cluster: Cluster, number: int) -> int:
    """Bytes that a node has sent out by its uplink."""
    counted = sh(
        f"ip netns exec {cluster.nodes[number - 1].ns} cat /sys/class/net/eth0/statistics/tx_bytes"
    )
    return int(counted)


@families
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("at", ["node port", "external address"])
def test_the_pod_sees_its_client_and_the_client_whom_it_asked(
    cluster: Cluster, family: Family, kind: str, at: str
) -> None:
    target = (life.node_address(family, 1), NODE_PORT)
    if at == "external address":
        target = (BALANCER[family], PORT)
    # connected: no answer of another address would be heard
    for _ in range(4):
        with life.connect(cluster.outside, family, *target, KINDS[kind]) as client:
            client.send(b"who\n")
            answer = json.loads(client.recv(4096))
        assert (answer["pod"], answer["client"]) == ("c", OUTSIDE[family])


@families
def test_replies_go_past_the_node_that_was_asked(cluster: Cluster, family: Family) -> None:
    """Full segments there, which must fit into the overlay, and as many bytes straight back."""
    pod, asked = cluster.nodes[1].pods["c"], life.node_address(family, 1)
    with life.bulk_server(pod, family, BULK_PORT):
        put(cluster, "c", port=BULK_PORT)
        life.wait(lambda: _accepts(cluster, family, asked), 20, "for the other port")
        before = carried(cluster, 1), carried(cluster, 2)
        life.bulk(life.connect(cluster.outside, family, asked, NODE_PORT), BULK)
        one, two = carried(cluster, 1) - before[0], carried(cluster, 2) - before[1]
    print(f"{BULK} bytes each way: node 1 sent {one}, node 2 {two}")
    put(cluster, "c")
    # Node 1 sends the client's bytes on, and none of the answer.
    assert BULK < one < 1.3 * BULK
    assert BULK < two < 1.3 * BULK


def _accepts(cluster: Cluster, family: Family, asked: str) -> bool:
    """Whether the bulk server answers: to no byte it says the digest of nothing."""
    with (
        contextlib.suppress(OSError),
        life.make(cluster.outside, family, socket.SOCK_STREAM) as client,
    ):
        client.settimeout(1)
        client.connect((asked, NODE_PORT))
        client.shutdown(socket.SHUT_WR)
        return len(client.recv(4096)) == 32
    return False


@families
def test_a_connection_to_a_removed_pod_is_reset_by_its_node(
    cluster: Cluster, family: Family
) -> None:
    put(cluster, "c")
    asked = life.node_address(family, 1)
    life.wait(life.serves(cluster.outside, family, asked, NODE_PORT), 20)
    with life.connect(cluster.outside, family, asked, NODE_PORT) as client:
        client.send(b"who\n")
        assert json.loads(client.recv(4096))["pod"] == "c"
        put(cluster)

        def refused() -> bool:
            try:
                life.connect(cluster.outside, family, asked, NODE_PORT).close()
            except ConnectionRefusedError:
                return True
            return False

        life.wait(refused, 20, "for the Service to be empty")
        # Node 2 may be later than node 1, and goes on till then.
        life.wait(lambda: reset(client), 20, "for the reset")
    put(cluster, "c")
    life.wait(life.serves(cluster.outside, family, asked, NODE_PORT), 20)


def reset(client: socket.socket) -> bool:
    """Whether the connection is ended with a reset."""
    try:
        client.send(b"who\n")
        client.recv(4096)
    except ConnectionResetError:
        return True
    return False
