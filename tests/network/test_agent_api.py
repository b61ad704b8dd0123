# SPDX-License-Identifier: Apache-2.0
"""Agents that run from an API server, which may be away, refuse, and be back.

pod a ─ node1 ── eth0 ─┐
                       ├─ bridge ── eth0 ── outside, with the API server (192.0.2.100)
pod c ─ node2 ── eth0 ─┘
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import netns
from dataplane.kernel.compiler import compile_bundle
from dataplane.kernel.source import bundle_path
from dataplane.model.net import Family
from tests import api_server
from tests.api_server import ApiServer, endpoints, service, service_cidr
from tests.network.cluster import PODLANE, AgentNode, Cluster, sh
from tests.network.greeters import answers, serving


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def node(number: int, *cidrs: str) -> dict[str, Any]:
    found = cidrs or (f"10.244.{number}.0/24", f"fd00:244:{number}::/64")
    addresses = (f"192.0.2.{number}", f"2001:db8::{number}")
    return api_server.node(f"node{number}", *found, addresses=addresses)


@pytest.fixture
def api_and_cluster() -> Iterator[tuple[ApiServer, Cluster]]:
    compile_bundle(bundle_path())
    cluster = Cluster(2)
    outside = Path("/run/netns") / cluster.outside
    api = netns.run_in(outside, lambda: ApiServer("192.0.2.100"))
    try:
        for one in cluster.nodes:
            one.write_config(apiServer=api.url, serviceCIDRs=None)
        yield api, cluster
    finally:
        cluster.close()
        api.stop()


def problems(agent: AgentNode) -> str:
    return " ".join(agent.status().get("problems", ()))


def events(agent: AgentNode, name: str) -> int:
    return len(re.findall(rf'"event": "{name}"', agent.log()))


def written(agent: AgentNode) -> list[int]:
    """Entries of each write."""
    lines = [json.loads(line) for line in agent.log().splitlines() if "tables_written" in line]
    return [line["entries"] for line in lines]


def fill(api: ApiServer) -> None:
    api.put(
        node(1), node(2), service_cidr("kubernetes", "10.96.0.0/16", "fd00:96::/112"),
        service("web", "10.96.0.10"), endpoints("web", "10.244.2.11", node="node2"),
    )  # fmt: skip


def fetch(agent: AgentNode, pod: str) -> set[str]:
    """Who answers a few connections to the Service; nobody if one fails."""
    return answers(agent.pods[pod], Family.V4, "10.96.0.10")


def test_a_cluster_runs_from_the_api_and_goes_on_without_it(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one, two = cluster.nodes
    # The node waits for its own Node, then for its range.
    api.put(service_cidr("kubernetes", "10.96.0.0/16"))
    one.start(None, wait=False)
    until(lambda: "is not known to the API server" in problems(one), "no Node is named")
    assert one.status()["state"] == "starting"
    assert not (one.folder / "run/cni.sock").exists()
    bare = node(1)
    bare["spec"] = {}
    api.put(bare)
    until(lambda: "spec.podCIDRs: has no range yet" in problems(one), "no range is named")
    fill(api)
    one.wait_ready()
    two.start(None)
    assert problems(one) == ""

    one.add_pod("a", "10.244.1.11")
    two.add_pod("c", "10.244.2.11")
    two.add_pod("d", "10.244.2.12")
    with serving(two, "c", "d", families=(Family.V4,)):
        until(lambda: fetch(one, "a") == {"c"}, "the Service does not answer")
        ranges = json.loads(sh(f"{PODLANE} routes --bpffs {one.folder}/bpf -o json"))
        assert {"10.96.0.0/16", "fd00:96::/112"} <= {row["prefix"] for row in ranges}

        # A slice that changes is followed.
        api.put(endpoints("web", "10.244.2.12", node="node2"))
        until(lambda: fetch(one, "a") == {"d"}, "the change is not followed")

        # The server goes: all goes on, and status says so.
        api.stop()
        until(lambda: "can't be reached: connection refused" in problems(one), "not named")
        assert one.status()["state"] == "ready"
        assert fetch(one, "a") == {"d"}
        one.add_pod("later", "10.244.1.12")
        one.in_pod("later", "ping -c1 -W2 10.244.2.11")
        api.put(endpoints("web", "10.244.2.11", node="node2"), service("other", "10.96.0.11"))

        # An agent that starts meanwhile waits, and takes nothing away.
        assert one.stop() == 0
        one.start(None, wait=False)
        until(lambda: one.status().get("state") == "starting" and "reached" in problems(one), "")
        assert fetch(one, "a") == {"d"}
        assert two.log().count("tables_written") == 2

        # It is back: only differences are written.
        netns.run_in(Path("/run/netns") / cluster.outside, api.start)
        one.wait_ready()
        until(lambda: fetch(one, "a") == {"c"}, "the change is not followed")
        until(
            lambda: problems(two) == "" and two.log().count("tables_written") > 2, "no difference"
        )
        assert sum(written(two)[2:]) < 20


# What a server may do instead of a watch of slices, and the words for it in log and status.
FAULTS: dict[str, tuple[api_server.Fault, str]] = {
    "expired credentials": (
        api_server.refuse(401, "Unauthorized"),
        "watch endpointslices: the credentials are refused (401",
    ),
    "no right": (
        api_server.forbid("watch", "EndpointSlice"),
        "podlane may not watch endpointslices (403",
    ),
    "too much to do": (
        api_server.refuse(429, "too many requests", Retry_After="1"),
        "watch endpointslices: the server has too much to do (429)",
    ),
    "failed": (
        api_server.refuse(500, "etcd is away"),
        "watch endpointslices: the server failed (500: etcd is away)",
    ),
    "broken off": (
        api_server.stream(b'{"type": "MODIFIED", "object": {"metada', end=True),
        "watch endpointslices: the server broke off in the middle of an object",
    ),
    "garbage": (
        api_server.stream(b"<html>\n"),
        "watch endpointslices: the server answered with what is no endpointslices",
    ),
}


def test_each_fault_of_the_server_is_named_while_packets_go_on(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one = cluster.nodes[0]
    fill(api)
    one.start(None)
    for name, number in (("a", 11), ("b", 12), ("c", 13)):
        one.add_pod(name, f"10.244.1.{number}")
    places = {"b": "10.244.1.12", "c": "10.244.1.13"}
    with serving(one, *places, families=(Family.V4,)):
        api.put(endpoints("web", places["b"]))
        until(lambda: fetch(one, "a") == {"b"}, "the Service does not answer")
        now, other = "b", "c"
        for name, (fault, words) in FAULTS.items():
            before = len(written(one))
            api.fault("EndpointSlice", "watch", fault, times=2)
            api.break_watches()
            until(lambda words=words: words in problems(one), f"{name}: not in status")  # type: ignore[misc]
            # Meanwhile packets go where they went, and what changes waits.
            api.put(endpoints("web", places[other]))
            assert one.status()["state"] == "ready"
            assert set() < fetch(one, "a") <= {now, other}
            until(lambda: problems(one) == "", f"{name}: stays in status")
            until(lambda other=other: fetch(one, "a") == {other}, f"{name}: no change")  # type: ignore[misc]
            assert len(written(one)) == before + 1, name
            assert words in one.log(), name
            now, other = other, now
        assert all(entries < 8 for entries in written(one)[-len(FAULTS) :])


def test_a_server_that_falls_silent_is_named_and_followed_again(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one = cluster.nodes[0]
    fill(api)
    one.start(None)
    until(lambda: len(api.watching) == len(api_server.PATHS), "not every kind is watched")
    # No packet of the server comes any more, and no word that it went: as when its machine dies.
    outside = f"ip -n {cluster.outside}"
    sh(f"{outside} route add blackhole 192.0.2.1/32")
    until(lambda: "silent" in problems(one) or "can't be reached" in problems(one), "", 60)
    assert one.status()["state"] == "ready"
    api.put(endpoints("web", "10.244.2.12", node="node2"))
    sh(f"{outside} route del blackhole 192.0.2.1/32")
    until(lambda: problems(one) == "", "stays in status", 60)
    rows = f"{PODLANE} backends --bpffs {one.folder}/bpf -o json"
    until(lambda: "10.244.2.12" in sh(rows), "the change is not followed")


def test_an_ipv4_cluster_of_dotted_names_and_an_older_server_is_served(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one, two = cluster.nodes
    api.missing.add("ServiceCIDR")
    names = ("node-1.example.com", "node-2.example.com")
    for number, (agent, name) in enumerate(zip(cluster.nodes, names, strict=True), 1):
        address = (f"192.0.2.{number}",)
        api.put(api_server.node(name, f"10.244.{number}.0/24", addresses=address))
        agent.write_config(nodeName=name, apiServer=api.url, serviceCIDRs=None)
    api.put(service("web", "10.96.0.10"), endpoints("web", "10.244.2.11", node=names[1]))
    for agent in cluster.nodes:
        agent.start(None)
    assert "give `serviceCIDRs` in the config" in problems(one)
    made = one.add_pod("a", "10.244.1.11")
    assert [ip["address"] for ip in made["ips"]] == ["10.244.1.11/32"]
    two.add_pod("c", "10.244.2.11")
    with serving(two, "c", families=(Family.V4,)):
        until(lambda: fetch(one, "a") == {"c"}, "the Service does not answer")


def test_nodes_that_go_and_change_are_followed_or_named(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one = cluster.nodes[0]
    fill(api)
    one.start(None)
    assert "10.244.2.0/24" in one.run("ip route")
    api.delete(("Node", "", "node2"))
    until(lambda: "10.244.2.0/24" not in one.run("ip route"), "the route stays")
    api.put(node(2, "10.244.3.0/24"))
    until(lambda: "10.244.3.0/24" in one.run("ip route"), "no new route")
    api.put(node(2, "10.244.1.128/25"))
    until(lambda: "10.244.1.128/25 overlaps 10.244.1.0/24 of Node node1" in problems(one), "")
    api.put(node(2))
    # Its own range can't be followed, and its own Node may go.
    api.put(node(1, "10.244.9.0/24"))
    until(
        lambda: "was 10.244.1.0/24, fd00:244:1::/64 and is 10.244.9.0/24 now" in problems(one), ""
    )
    refused = one.add_pod("unreachable")
    assert refused["code"] == 11
    assert refused["msg"].startswith("pod range 10.244.1.0/24: this node's Node object has another")
    api.delete(("Node", "", "node1"))
    until(lambda: "Node node1: metadata.name: is gone" in problems(one), "")
    assert "10.244.2.0/24" in one.run("ip route")
    api.put(node(1))
    until(lambda: problems(one) == "", "problems stay")
    assert "ips" in one.add_pod("reachable")
    # The Node has another address now: NodePorts and masquerading follow.
    one.run("ip addr add 192.0.2.51/24 dev eth0")
    moved = node(1)
    moved["status"]["addresses"][0]["address"] = "192.0.2.51"
    api.put(moved)
    until(lambda: events(one, "node_addresses_changed"), "the address is not followed")
    assert one.stop() == 0


@pytest.mark.parametrize("mode", ["vxlan", "native"])
def test_an_agent_that_starts_anew_with_other_ranges_keeps_nothing_of_the_old(
    api_and_cluster: tuple[ApiServer, Cluster], mode: str
) -> None:
    """The Node was deleted and made again, and another node has its ranges now."""
    api, cluster = api_and_cluster
    one = cluster.nodes[0]
    one.write_config(apiServer=api.url, serviceCIDRs=None, mode=mode)
    fill(api)
    one.start(None)
    one.stop()
    api.put(node(1, "10.244.9.0/24", "fd00:244:9::/64"))
    api.put(node(2, "10.244.1.0/24", "fd00:244:1::/64"))
    one.start(None)
    assert problems(one) == ""
    addresses = one.run("ip -o addr")
    assert "10.244.9.1/" in addresses
    assert "fd00:244:9::1/" in addresses
    assert "10.244.1.1/" not in addresses
    assert "fd00:244:1::1/" not in addresses
    rows = json.loads(sh(f"{PODLANE} routes --bpffs {one.folder}/bpf -o json"))
    kinds = {row["prefix"]: row["kind"] for row in rows}
    assert kinds["fd00:244:1::/64"] == ("tunnel" if mode == "vxlan" else "native")
    assert not {"10.244.1.1/32", "fd00:244:1::1/128"} & kinds.keys()
    one.add_pod("a", "10.244.9.11")
    one.in_pod("a", "ping -c1 -W2 10.244.9.1")


def test_an_agent_that_waits_stops_at_once_and_leaves_nothing(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one = cluster.nodes[0]
    api.fault("Service", "list", api_server.forbid("list", "Service"), times=1000)
    one.write_config(apiServer=api.url, serviceCIDRs=None, takeover=True)
    one.start(None, wait=False)
    until(lambda: "podlane may not list services (403" in problems(one), "the right is not named")
    assert "config: takeover: this version" in problems(one)
    began = time.monotonic()
    assert one.stop() == 0
    assert time.monotonic() - began < 3
    assert sh(f"find {one.folder}/bpf -mindepth 1 -type d") == ""
    assert "podlane0" not in one.run("ip link")


def test_a_node_without_a_default_route_has_ways_to_service_ranges(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one = cluster.nodes[0]
    fill(api)
    one.run("ip route del default")
    one.start(None)
    assert "dev podlane0 proto" in one.run("ip route show 10.96.0.0/16")
    assert one.run("ip -6 route show fd00:96::/112") == ""  # that family has a default route
    one.run("ip route add default via 192.0.2.100")
    until(lambda: one.run("ip route show 10.96.0.0/16") == "", "our route stays")
    api.put(service_cidr("more", "10.97.0.0/16"))
    one.run("ip route del default")
    until(lambda: one.run("ip route show 10.97.0.0/16"), "no way to the new range")
    api.delete(("ServiceCIDR", "", "more"))
    until(lambda: one.run("ip route show 10.97.0.0/16") == "", "the way to a range that is gone")


def test_a_second_agent_on_a_node_is_refused_by_name(
    api_and_cluster: tuple[ApiServer, Cluster],
) -> None:
    api, cluster = api_and_cluster
    one = cluster.nodes[0]
    fill(api)
    one.start(None)
    assert one.process is not None
    done = subprocess.run(
        [PODLANE, "agent", "--config", str(one.config)], text=True, capture_output=True
    )
    assert done.returncode == 2
    assert f"another podlane (pid {one.process.pid}) has it" in done.stderr
