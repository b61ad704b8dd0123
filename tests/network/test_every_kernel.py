# SPDX-License-Identifier: Apache-2.0
"""What every kernel is asked with real devices and sockets: `make test-vm` runs these in its guests.

pod a ─ node1 ── eth0 ─┐
pod b ─┘               ├─ bridge ── eth0 ── outside
pod c ─ node2 ── eth0 ─┘
pod d ─┘

One pair of agents a mode for all tests, and few processes: under emulation a start of Python takes
seconds, and a start of an agent a minute.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import Cluster
from tests.network.greeters import answers, ask_once, serving

PODS = {"a": (1, 11), "b": (1, 12), "c": (2, 11), "d": (2, 12)}
ROUTER = (1, 1)
SCTP = socket.IPPROTO_SCTP


@pytest.fixture(scope="module", params=["vxlan", "native"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(2, request.param)
    try:
        made.start()
        for name, (node, number) in PODS.items():
            made.nodes[node - 1].add_pod(name, life.both(node, number))
        yield made
    finally:
        made.close()


def test_pods_of_two_nodes_reach_each_other(cluster: Cluster) -> None:
    one, two = cluster.nodes
    for family in Family:
        for target in (life.pod_address(family, 2, 11), life.pod_address(family, 2, 1)):
            one.in_pod("a", f"ping -c1 -W2 {target}")
        two.in_pod("c", f"ping -c1 -W2 {life.pod_address(family, 1, 11)}")


def test_a_service_is_followed_from_manifests(cluster: Cluster) -> None:
    one, two = cluster.nodes

    def seen() -> list[set[str]]:
        return [answers(one.pods["a"], family, life.CLUSTER_IP[family]) for family in Family]

    def follow(*pods: str) -> None:
        addresses = {f: [life.pod_address(f, *PODS[pod]) for pod in pods] for f in Family}
        cluster.write({"web": life.service("web", addresses, protocols=["TCP"])})
        life.wait(lambda: seen() == [set(pods)] * 2, 60)

    with serving(one, "a", "b"), serving(two, "c", "d"):
        follow("c", "b")
        follow("c", "a")  # itself among them
        follow("d")
        before = one.service_ids()
        one.stop(signal.SIGKILL)
        try:
            assert seen() == [{"d"}] * 2
        finally:
            one.start(cluster.manifests)
        assert one.service_ids() == before
        for family in Family:
            address = life.node_address(family, 1)
            assert answers(cluster.outside, family, address, life.NODE_PORT) == {"d"}
        (cluster.manifests / "web.yaml").unlink()
        life.wait(lambda: not one.service_ids(), 120)
        assert not any(seen())


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_an_association_reaches_its_service_by_translated_ports(
    cluster: Cluster, family: Family
) -> None:
    """From a pod by the ClusterIP and from outside by a NodePort; both ways have checksums."""
    try:
        socket.socket(life.FAMILIES[family], socket.SOCK_STREAM, SCTP).close()
    except OSError as error:
        pytest.skip(f"the kernel has no SCTP: {error.strerror}")
    one = cluster.nodes[0]
    backends = {one: [life.pod_address(one, *PODS["c"])] for one in Family}
    cluster.write({"calls": life.service("calls", backends, protocols=["SCTP"])})
    with serving(cluster.nodes[1], "c", families=(family,), protocol=SCTP):

        def from_pod() -> str:
            return ask_once(one.pods["a"], family, life.CLUSTER_IP[family], life.PORT, SCTP)

        def from_outside() -> str:
            address = life.node_address(family, 1)
            return ask_once(cluster.outside, family, address, life.NODE_PORT, SCTP)

        for ask, client in ((from_pod, PODS["a"]), (from_outside, ROUTER)):
            life.wait(ask, 60)
            assert ask() == f"c {life.pod_address(family, *client)}"
