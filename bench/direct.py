# SPDX-License-Identifier: Apache-2.0
"""Replies of a NodePort over two nodes: direct server return against the way back through node 1.

              ┌─ eth0 ── node 1 (asked; no pod of the Service)
outside ── bridge
              └─ eth0 ── node 2 ── server pod

Twice, one with each loadBalancerMode; all else is the same.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

from bench import load
from bench.load import Target
from bench.measure import Figures, Goal, Result, alternate, pick
from dataplane.agent.config import DSR, SNAT
from dataplane.model.net import Family
from tests.cluster.net import inside
from tests.network import life
from tests.network.cluster import Cluster
from tests.network.life import NODE_PORT, TARGET

SECONDS = 0.3
LAST = 11


def direct_return() -> list[Result]:
    """Throughput and latency of replies, and new connections."""
    with ExitStack() as stack:
        (direct, near), (back, other) = (stack.enter_context(_nodes(mode)) for mode in (DSR, SNAT))
        a, b = alternate(lambda: _figures(direct), lambda: _figures(back))
        for pod in (near, other):
            off = inside(pod, "ethtool", "-K", "eth0", "tso", "off", "gso", "off")
            subprocess.run(off, check=True, capture_output=True)
        c, d = alternate(lambda: _fetched(direct), lambda: _fetched(back))
    gbit, goal = "gbit_per_second", Goal("ratio", at_least=1.3)
    return [
        Result(
            "direct-return-segments", "Gbit/s of replies, sent in segments of 1,450 bytes",
            pick(c, gbit), pick(d, gbit), goal,
        ),
        Result(
            "direct-return-throughput", "Gbit/s of replies, one TCP stream",
            pick(a, gbit), pick(b, gbit), goal,
        ),
        Result(
            "direct-return-latency", "µs, TCP request p50", pick(a, "p50_us"), pick(b, "p50_us"),
            None,
        ),
        Result(
            "direct-return-connections", "connections/s", pick(a, "opened"), pick(b, "opened"), None
        ),
    ]  # fmt: skip


def _figures(target: Target) -> Figures:
    requests = load.run("tcp-rr", target, SECONDS)
    opened = load.run("tcp-crr", target, SECONDS)["per_second"]
    return _fetched(target) | requests | {"opened": opened}


def _fetched(target: Target) -> Figures:
    return load.run("tcp-fetch", target, SECONDS)


@contextmanager
def _nodes(mode: str) -> Iterator[tuple[Target, Path]]:
    """The NodePort at node 1, asked from outside; the pod that serves it."""
    with closing(Cluster(2)) as made:
        backend = life.pod_address(Family.V4, 2, LAST)
        objects = life.service("web", {Family.V4: [backend], Family.V6: []})
        for one in objects:
            for endpoint in one.get("endpoints", ()):
                endpoint["nodeName"] = "node2"
        made.write({"web": objects})
        for node in made.nodes:
            node.write_config(loadBalancerMode=mode, mapSizes={})
        made.start()
        made.nodes[1].add_pod("c", life.both(2, LAST))
        address = life.node_address(Family.V4, 1)
        pod = Path("/run/netns", made.nodes[1].pods["c"])
        with load.server(pod, TARGET):
            life.wait(life.serves(made.outside, Family.V4, address, NODE_PORT), 20, "to be served")
            yield Target(Path("/run/netns", made.outside), ip_address(address), NODE_PORT), pod
