# SPDX-License-Identifier: Apache-2.0
"""Packets: throughput of a TCP stream and latency of a request, ours beside the kernel's own."""

from __future__ import annotations

from bench import load, ours, topology
from bench.load import Target
from bench.measure import Figures, Goal, Result, alternate, pick
from tests.cluster.services import cluster_ip

STREAM_SECONDS, REQUEST_SECONDS = 0.3, 0.3
THROUGHPUT = Goal("ratio", at_least=0.97)
LATENCY = Goal("ratio", at_most=1.02)
SOCKET_LATENCY = Goal("ratio", at_most=1.01)


def figures(target: Target) -> Figures:
    """One round of one side."""
    stream = load.run("tcp-stream", target, STREAM_SECONDS)
    return stream | load.run("tcp-rr", target, REQUEST_SECONDS)


def compare(name: str, mine: Target, peer: Target, latency: Goal | None = LATENCY) -> list[Result]:
    """Both measures of one path; the servers run already."""
    a, b = alternate(lambda: figures(mine), lambda: figures(peer))
    stream, request = "gbit_per_second", "p50_us"
    return [
        Result(
            f"{name}-throughput", "Gbit/s, one TCP stream", pick(a, stream), pick(b, stream),
            THROUGHPUT,
        ),
        Result(
            f"{name}-latency", "µs, TCP request p50", pick(a, request), pick(b, request), latency
        ),
    ]  # fmt: skip


def null() -> list[Result]:
    """The peer against another one like it: what this machine's noise alone makes of a ratio."""
    mtu = topology.UNDERLAY_MTU
    with (
        topology.routed(mtu) as (mine, mine_place),
        topology.routed(mtu) as (peer, peer_place),
        load.server(mine_place),
        load.server(peer_place),
    ):
        return compare("null", mine, peer)


def pod_to_pod() -> list[Result]:
    """Two pods of one node, against two veth pairs routed by a kernel without tc and netfilter."""
    return _one_node("pod-to-pod", through_service=False)


def pod_to_clusterip() -> list[Result]:
    """The same through a ClusterIP; the peer has no Service to translate."""
    return _one_node("pod-to-clusterip", through_service=True)


def _one_node(name: str, *, through_service: bool) -> list[Result]:
    objects = [ours.pod("client", "node-1"), ours.pod("server", "node-1")]
    objects.append(ours.service(1, "server"))
    with ours.lab(objects, nodes=1) as lab:
        lab.stop_stand_in("server")
        with (
            topology.routed(lab.mtu("client")) as (peer, peer_place),
            load.server(lab.place("server")),
            load.server(peer_place),
        ):
            address = cluster_ip(1) if through_service else lab.address("server")
            return compare(name, lab.target("client", address), peer)


def host_to_clusterip() -> list[Result]:
    """A process of the node by a ClusterIP, against the same process straight to the pod."""
    objects = [ours.pod("server", "node-1"), ours.service(1, "server")]
    with ours.lab(objects, nodes=1) as lab:
        lab.stop_stand_in("server")
        node = lab.files.node_netns("node-1")
        service, direct = Target(node, cluster_ip(1)), Target(node, lab.address("server"))
        with load.server(lab.place("server")):
            a, b = alternate(lambda: _requests(service), lambda: _requests(direct))
    return [
        Result(
            "host-to-clusterip-latency", "µs, TCP request p50", pick(a, "p50_us"),
            pick(b, "p50_us"), SOCKET_LATENCY,
        ),
        Result(
            "host-to-clusterip-connections", "connections/s", pick(a, "opened_per_second"),
            pick(b, "opened_per_second"), None,
        ),
    ]  # fmt: skip


def _requests(target: Target) -> Figures:
    requests = load.run("tcp-rr", target, REQUEST_SECONDS)
    opened = load.run("tcp-crr", target, REQUEST_SECONDS)
    return {"p50_us": requests["p50_us"], "opened_per_second": opened["per_second"]}


def vxlan() -> list[Result]:
    """Pods of two nodes, against the kernel's own VXLAN device and routes."""
    objects = [ours.pod("client", "node-1"), ours.pod("server", "node-2")]
    with ours.lab(objects, nodes=2) as lab:
        lab.stop_stand_in("server")
        with (
            topology.tunnelled() as (peer, peer_place),
            load.server(lab.place("server")),
            load.server(peer_place),
        ):
            return compare("vxlan", lab.target("client", lab.address("server")), peer, None)
