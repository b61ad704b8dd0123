# SPDX-License-Identifier: Apache-2.0
"""Programs that somebody takes off a node's devices: the status names them, and health says so.

node1 ─ eth0 ─ bridge ─ outside: asks for a Service and for the node's health
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from dataplane.agent.facts import OVERLAY_NAME
from dataplane.agent.main import CARE_SECONDS
from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import Cluster
from tests.network.greeters import ask_once, serving

HEALTH_PORT = 10256
TAKE_OFF = "tc filter del dev eth0 ingress pref 100"


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


def wait_for(cluster: Cluster, status: bytes) -> None:
    """Until /healthz and /livez answer this, and go on to."""

    def is_so() -> bool:
        return {health(cluster, page) for page in ("healthz", "livez")} == {status}

    life.wait(is_so, 10, "for health")
    time.sleep(CARE_SECONDS)
    assert is_so()


def problems(cluster: Cluster) -> list[str]:
    return list(cluster.nodes[0].status()["problems"])


def restart(cluster: Cluster) -> None:
    (node,) = cluster.nodes
    node.stop()
    node.start(cluster.manifests)
    wait_for(cluster, b"200")
    assert problems(cluster) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (TAKE_OFF, "device eth0: tc filters: from_uplink_4: missing"),
        (
            f"tc qdisc del dev {OVERLAY_NAME} clsact",
            f"device {OVERLAY_NAME}: tc filters: from_overlay_4, from_overlay_6, to_overlay_4,"
            " to_overlay_6: missing",
        ),
        (f"ip link delete {OVERLAY_NAME}", f"device {OVERLAY_NAME}: device: is gone"),
    ],
)
def test_what_was_taken_off_is_named_until_a_start_puts_it_back(
    cluster: Cluster, command: str, words: str
) -> None:
    (node,) = cluster.nodes

    def serves() -> str:
        at = life.node_address(Family.V4, 1)
        return ask_once(cluster.outside, Family.V4, at, life.NODE_PORT)

    with serving(node, "a"):
        life.wait(serves, 20, "for the Service")
        node.run(command)
        wait_for(cluster, b"503")
        assert [one for one in problems(cluster) if one.startswith(words)]
        restart(cluster)
        assert serves()


def test_a_program_put_back_by_hand_ends_it(cluster: Cluster) -> None:
    (node,) = cluster.nodes
    pin = node.folder / "bpf" / "v1" / "prog" / "from_uplink_4"
    node.run(TAKE_OFF)
    wait_for(cluster, b"503")
    node.run(
        "tc filter add dev eth0 ingress protocol ip pref 100 handle 0x706c"
        f" bpf direct-action object-pinned {pin}"
    )
    wait_for(cluster, b"200")
    assert problems(cluster) == []


def test_an_uplink_that_takes_no_programs_is_named_until_it_does(cluster: Cluster) -> None:
    (node,) = cluster.nodes
    node.run("tc qdisc del dev eth0 clsact")
    node.run("tc qdisc add dev eth0 ingress")
    node.run("ip link set eth0 mtu 1499")  # another than before: followed
    try:
        wait_for(cluster, b"503")
        assert [one for one in problems(cluster) if "an ingress qdisc, or another" in one]
    finally:
        node.run("tc qdisc del dev eth0 ingress")  # of which the agent hears nothing
    wait_for(cluster, b"200")
    assert problems(cluster) == []
    node.run("ip link set eth0 mtu 1500")


def test_a_lost_uplink_hides_no_other(cluster: Cluster) -> None:
    (node,) = cluster.nodes
    node.stop()
    node.run("ip link add spare type veth peer name spare-end")
    node.write_config(uplinks=["eth0", "spare"], nodePortAddresses=["192.0.2.0/24"])
    node.start(cluster.manifests)
    node.run("ip link delete spare")
    lost = "uplink spare: uplinks: this node has no such device"
    life.wait(lambda: problems(cluster) == [lost], 10, "for the loss to be named")
    wait_for(cluster, b"200")
    node.run("ip addr add 192.0.2.201/24 dev eth0")  # addresses are followed all the same
    with serving(node, "a"):
        ask = partial(ask_once, cluster.outside, Family.V4, "192.0.2.201", life.NODE_PORT)
        life.wait(ask, 20, "for the Service at the new address")
    node.run("ip addr del 192.0.2.201/24 dev eth0")
    node.run(TAKE_OFF)
    wait_for(cluster, b"503")
    node.write_config()
    restart(cluster)
