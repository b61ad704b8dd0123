# SPDX-License-Identifier: Apache-2.0
"""Pods that come and go leave nothing: no memory of the agent, no descriptor, pin, row or link.

runtime (this test) ── socket ── agent of node1 ── kernel

PODLANE_SOAK=1: 10,000 pods and not 300.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.cni.client import request
from dataplane.kernel import netns
from dataplane.kernel.maps import Maps
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network import cni_node
from tests.network.cluster import AgentNode, Cluster

CYCLES = 10_000 if os.environ.get("PODLANE_SOAK") else 300
WARM_UP = 200
"""Pods until Python's and the C library's pools have found their sizes."""
SWEPT = 15.0
"""Seconds after which the agent has looked through all flows once, for which it needs a megabyte."""
MOST_KB = 1024
FREED = 5.0
"""Seconds within which the kernel has freed the devices that went last (a thread waits for each)."""


@pytest.fixture(scope="module")
def node() -> Iterator[AgentNode]:
    cluster = Cluster(1)
    try:
        cluster.start()
        yield cluster.nodes[0]
    finally:
        cluster.close()


def come_and_go(node: AgentNode, ns: str, first: int, count: int) -> None:
    """One pod after the other in the same namespace, each with its own names."""
    config = cni_node.config(node)
    for number in range(first, first + count):
        env = {
            "CNI_CONTAINERID": f"container-{number}",
            "CNI_NETNS": f"/run/netns/{ns}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"K8S_POD_NAMESPACE=test;K8S_POD_NAME=pod-{number}",
        }
        for command in ("ADD", "DEL"):
            answer = request(node.folder / "run/cni.sock", {**env, "CNI_COMMAND": command}, config)
            assert "code" not in answer, answer


def held(node: AgentNode) -> dict[str, object]:
    """What the agent and the node hold, but for memory."""
    assert node.process is not None
    maps = Maps(node.folder / "bpf")
    try:
        rows = {
            table.pin: len(dict(maps.items(table)))
            for table in (Table("names"), *(Table("endpoints", family) for family in Family))
        }
    finally:
        maps.close()
    return {
        "descriptors": len(os.listdir(f"/proc/{node.process.pid}/fd")),
        "threads": len(os.listdir(f"/proc/{node.process.pid}/task")),
        "pins": sorted(cni_node.pins(node)),
        "links": cni_node.lines("ip", "-n", node.ns, "-br", "link"),
        "rows": rows,
    }


def memory_kb(node: AgentNode) -> int:
    """The agent's own memory: what is neither a file nor shared."""
    assert node.process is not None
    rollup = Path(f"/proc/{node.process.pid}/smaps_rollup").read_text().splitlines()
    (line,) = [one for one in rollup if one.startswith("Pss_Anon:")]
    return int(line.split()[1])


@pytest.mark.timeout(
    120 + CYCLES // 5
)  # seconds: two hundredths are what a pod takes, ten times that is patience
def test_pods_that_come_and_go_leave_nothing(node: AgentNode) -> None:
    ns = f"{node.ns}-p"
    netns.create(Path("/run/netns") / ns)
    node.pods["p"] = ns
    begin = time.monotonic()
    come_and_go(node, ns, 0, WARM_UP)
    time.sleep(max(0.0, begin + SWEPT - time.monotonic()))
    before, memory = held(node), memory_kb(node)
    come_and_go(node, ns, WARM_UP, CYCLES)
    grown = memory_kb(node) - memory
    print(f"{CYCLES} pods after {WARM_UP}: {memory} KB and {grown:+} KB")
    settled = time.monotonic() + FREED
    while (after := held(node)) != before and time.monotonic() < settled:
        time.sleep(0.05)
    assert after == before
    assert grown <= MOST_KB
    assert cni_node.audit(node, {}, cni_node.pins(node)) == []
