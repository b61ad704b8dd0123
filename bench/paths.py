# SPDX-License-Identifier: Apache-2.0
"""Packets: throughput of a TCP stream and latency of a request, ours beside the kernel's own."""

from __future__ import annotations

from bench import load, topology
from bench.load import Target
from bench.measure import Figures, Goal, Result, alternate, pick

STREAM_SECONDS, REQUEST_SECONDS = 1.5, 1.0
THROUGHPUT = Goal("ratio", at_least=0.97)
LATENCY = Goal("ratio", at_most=1.02)


def figures(target: Target) -> Figures:
    """One round of one side."""
    stream = load.run("tcp-stream", target, STREAM_SECONDS)
    return stream | load.run("tcp-rr", target, REQUEST_SECONDS)


def compare(name: str, ours: Target, peer: Target) -> list[Result]:
    """Both measures of one path; the servers run already."""
    a, b = alternate(lambda: figures(ours), lambda: figures(peer))
    stream, request = "gbit_per_second", "p50_us"
    return [
        Result(
            f"{name}-throughput", "Gbit/s, one TCP stream", pick(a, stream), pick(b, stream),
            THROUGHPUT,
        ),
        Result(
            f"{name}-latency", "µs, TCP request p50", pick(a, request), pick(b, request), LATENCY
        ),
    ]  # fmt: skip


def null() -> list[Result]:
    """The peer against another one like it: what this machine's noise alone makes of a ratio."""
    mtu = topology.UNDERLAY_MTU
    with (
        topology.routed(mtu) as (ours, ours_place),
        topology.routed(mtu) as (peer, peer_place),
        load.server(ours_place),
        load.server(peer_place),
    ):
        return compare("null", ours, peer)
