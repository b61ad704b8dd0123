# SPDX-License-Identifier: Apache-2.0
"""A narrow path between nodes that have IPv6 alone: pods of both families, by VXLAN over it.

pod a ── node1 ── eth0 ── bridge ── eth0 ── outside ┬─ node2 ─── pod c
                                    (narrow, to     └─ far
                                     the nodes)

Routers do not fragment IPv6, and Linux does not fragment what it encapsulates in it, so pods
are told what fits. 1,350 bytes are what their own IPv6 needs with 70 around it. Without an
IPv4 address of its own a node has no IPv4 NodePort, and hides no IPv4 pod: to Services and
pods of other nodes they get all the same.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from dataplane.model.net import Family
from tests.network import life
from tests.network import test_life_path as path
from tests.network.cluster import Cluster
from tests.network.life import TARGET

WIDE = path.NARROW + 70
IPV4_WAYS = ["pod to ClusterIP, served on another node", "pod to pod on another node"]
WAYS = [(WIDE, Family.V6, way) for way in path.WAYS]
WAYS += [(mtu, Family.V4, way) for mtu in (WIDE, path.NARROW) for way in IPV4_WAYS]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Its parameter: bytes that the path takes."""
    with life.two_nodes(underlay=[Family.V6]) as made:
        path.narrow(made, request.param)
        backends = {family: [life.pod_address(family, 2, 11)] for family in Family}
        made.write({"web": life.service("web", backends)})
        for family in Family:
            for node in made.nodes:
                path.await_route(made, node.pods["a" if node.number == 1 else "d"], family)
        yield made


@pytest.mark.parametrize(
    ("cluster", "family", "way"),
    WAYS,
    indirect=["cluster"],
    ids=[f"{mtu} bytes-IPv{int(family)}-{way}" for mtu, family, way in WAYS],
)
def test_bulk_goes_through_a_narrow_path(cluster: Cluster, family: Family, way: str) -> None:
    path.goes_through(cluster, family, way)


@pytest.mark.parametrize("cluster", [path.NARROW], indirect=True, ids=["1280 bytes"])
def test_what_can_not_go_is_named(cluster: Cluster) -> None:
    """The least that a pod must be able to send over IPv6, and no room for 70 bytes more."""
    one = cluster.nodes[0]
    peer = life.pod_address(Family.V6, 2, 11)
    with life.connect(one.pods["a"], Family.V6, peer, TARGET, socket.SOCK_DGRAM) as client:
        before = life.drops(one)["too_big"]

        def named() -> bool:
            with contextlib.suppress(OSError):  # refused by the pod, or told that it was too big
                client.send(bytes(path.NARROW - 48))
            return life.drops(one)["too_big"] > before

        life.wait(named, what="for the drop")
