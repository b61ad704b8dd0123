# SPDX-License-Identifier: Apache-2.0
"""Two nodes with an agent each, and a host outside.

pod a ─ node1 ── eth0 ─┐
pod b ─┘               ├─ bridge ── eth0 ── outside
pod c ─ node2 ── eth0 ─┘
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.network.cluster import PODLANE, AgentNode, Cluster, sh


@pytest.fixture(scope="module", params=["vxlan", "native"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(2, request.param)
    try:
        made.start()
        one, two = made.nodes
        one.add_pod("a", "10.244.1.11,fd00:244:1::11")
        one.add_pod("b", "10.244.1.12,fd00:244:1::12")
        two.add_pod("c", "10.244.2.11,fd00:244:2::11")
        yield made
    finally:
        made.close()


def network(node: AgentNode) -> dict[str, object]:
    """All that an agent puts into a namespace, with the ids of programs."""
    devices = [link["ifname"] for link in json.loads(sh(f"ip -n {node.ns} -j link"))]
    return {
        "links": sh(f"ip -n {node.ns} -o -d link"),
        "routes": sh(f"ip -n {node.ns} route") + sh(f"ip -n {node.ns} -6 route"),
        "neighbours": sh(f"ip -n {node.ns} neigh show nud permanent"),
        "filters": {
            f"{device} {way}": sh(f"tc -n {node.ns} filter show dev {device} {way}")
            for device in devices
            for way in ("ingress", "egress")
        },
        "pins": sh(f"find {node.folder}/bpf | sort"),
    }


def test_a_node_reaches_pods_of_both_nodes_by_its_router_address(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    for target in ("10.244.1.11", "fd00:244:1::11", "10.244.2.11", "fd00:244:2::11"):
        one.run(f"ping -c2 -i0.05 -W1 {target}")
    assert "src 10.244.1.1" in one.run("ip route get 10.244.2.11")
    assert "src fd00:244:1::1" in one.run("ip route get fd00:244:2::11")


def test_the_largest_packet_of_a_pod_arrives_whole(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    mtu = 1450 if one.mode == "vxlan" else 1500
    one.in_pod("a", f"ping -M do -s {mtu - 28} -c1 -W1 10.244.2.11")
    one.in_pod("a", f"ping -M do -s {mtu - 48} -c1 -W1 fd00:244:2::11")


def test_a_restart_with_nothing_to_do_changes_nothing(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    before = network(one)
    assert one.stop() == 0
    assert network(one) == before
    one.in_pod("a", "ping -c1 -W1 10.244.2.11")
    one.start(cluster.manifests)
    assert network(one) == before
    last = one.log().rpartition('"event": "agent_started"')[2]
    events = re.findall(r'"event": "(\w+)"', last)
    assert events == ["programs_found", "node_ready"]


def test_a_killed_agent_leaves_the_datapath_and_the_next_takes_it_over(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    before = network(one)
    with _ping(one, "b", "10.244.2.11") as ping:
        assert one.stop(signal.SIGKILL) == -signal.SIGKILL
        one.in_pod("a", "ping -c1 -W1 10.244.1.12")
        one.start(cluster.manifests)
        ping.send_signal(signal.SIGINT)
        words = ping.communicate()[0]
    assert " 0% packet loss" in words
    assert network(one) == before
    assert one.cni("CHECK", f"c-{one.pods['a']}", f"/run/netns/{one.pods['a']}") == {}


def test_what_was_broken_meanwhile_is_repaired_at_the_start(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    before = network(one)
    one.stop()
    veth = re.findall(r"pl[0-9a-f]{12}", sh(f"ip -n {one.ns} route show 10.244.1.11"))[0]
    sh(f"tc -n {one.ns} filter del dev {veth} ingress pref 100")
    sh(f"tc -n {one.ns} filter del dev eth0 egress pref 101")
    sh(f"ip -n {one.ns} route del 10.244.1.11")
    sh(f"ip -n {one.ns} route del 10.244.2.0/24")
    one.start(cluster.manifests)
    assert network(one) == before
    assert "repaired test/a: filter from_pod_4 is not on" in one.log()


def test_a_pod_whose_namespace_went_is_forgotten_at_the_start(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    veth = one.add_pod("gone", "10.244.1.99")["interfaces"][0]["name"]
    one.stop()
    sh(f"ip netns delete {one.pods.pop('gone')}")
    _wait(lambda: veth not in sh(f"ip -n {one.ns} link"))
    one.start(cluster.manifests)
    assert "removed test/gone" in one.log()
    endpoints = sh(f"{PODLANE} endpoints --bpffs {one.folder}/bpf -o json")
    assert "test/gone" not in endpoints
    assert one.add_pod("next", "10.244.1.99")["ips"][0]["address"] == "10.244.1.99/32"
    one.delete_pod("next")


def test_a_second_agent_refuses_and_names_the_first(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    assert one.process is not None
    status, words = _agent(one, cluster.manifests)
    assert status == 2
    assert f"another podlane (pid {one.process.pid}) has it" in words
    assert one.status()["state"] == "ready"


def test_what_is_not_served_is_in_the_status_and_the_rest_is(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    outside: dict[str, Any] = _service("outside", "10.97.0.1")
    cluster.write({"web": [_service(), _slice("10.244.1.12"), outside]})
    try:
        _wait(lambda: any("outside" in text for text in one.status()["problems"]))
        _wait(lambda: bool(one.service_ids()))
    finally:
        (cluster.manifests / "web.yaml").unlink()
    _wait(lambda: one.status()["problems"] == [])


def test_a_changed_address_or_route_of_the_node_is_followed(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    before = _routes(one)
    sh(f"ip -n {one.ns} route add 198.51.100.0/24 via 192.0.2.100")
    sh(f"ip -n {one.ns} addr add 192.0.2.201/24 dev eth0")
    sh(f"ip -n {one.ns} link set eth0 mtu 1499")
    try:
        _wait(lambda: _routes(one).get("198.51.100.0/24") == "world")
        _wait(lambda: _routes(one).get("192.0.2.201/32") == "node")
        _wait(lambda: "uplinks_changed" in one.log())
    finally:
        sh(f"ip -n {one.ns} link set eth0 mtu 1500")
        sh(f"ip -n {one.ns} addr del 192.0.2.201/24 dev eth0")
        sh(f"ip -n {one.ns} route del 198.51.100.0/24")
    _wait(lambda: _routes(one) == before)
    one.in_pod("a", "ping -c1 -W1 10.244.2.11")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"uplinks": ["eth7"]}, "uplink eth7: this node has no such device"),
        ({"uplinks": ["lo"]}, "uplink lo: has no Ethernet header"),
        ({"mtu": 9000}, "config: mtu: 9000 is more than the uplink's 1500"),
        ({"nodeName": "nobody"}, "Node nobody: podCIDRs: no pod range"),
        ({"mapSizes": {"nomap": 5}}, "mapSizes.nomap: no such map"),
        ({"bpffsDir": "/tmp"}, "is not on a bpf filesystem"),
    ],
)
def test_impossible_settings_exit_2_with_nothing_half_made(
    settings: Mapping[str, object], words: str
) -> None:
    cluster = Cluster(1)
    try:
        (node,) = cluster.nodes
        before = network(node)
        node.write_config(**settings)
        status, said = _agent(node, cluster.manifests)
        assert status == 2
        assert words in said
        assert network(node) == before
    finally:
        cluster.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "ip -n {ns} link add other type vxlan id 9 dstport 8472 remote 192.0.2.9 dev eth0",
            "UDP port 8472 is taken by VXLAN device other",
        ),
        ("ip -n {ns} link add podlane0 type bridge", "is no VXLAN device of ours (bridge)"),
        ("ip -n {ns} addr add 10.244.1.1/24 dev eth0", "router address 10.244.1.1: is on device"),
        ("tc -n {ns} qdisc add dev eth0 ingress", "an ingress qdisc, or another filter"),
    ],
)
def test_what_others_have_taken_is_named_and_nothing_is_left(command: str, words: str) -> None:
    cluster = Cluster(1)
    try:
        (node,) = cluster.nodes
        sh(command.format(ns=node.ns))
        before, settings = network(node), _settings(node)
        status, said = _agent(node, cluster.manifests)
        assert status == 2
        assert words in said
        assert network(node) == before
        assert _settings(node) == settings
    finally:
        cluster.close()


@pytest.mark.parametrize("mode", ["vxlan", "native"])
def test_uninstall_leaves_the_node_as_it_was(mode: str) -> None:
    cluster = Cluster(1, mode)
    try:
        (node,) = cluster.nodes
        before, settings = network(node), _settings(node)
        node.start(cluster.manifests)
        node.add_pod("a")
        status, words = _podlane(node, "uninstall")
        assert status == 2
        assert "another podlane" in words
        node.stop()
        assert _settings(node) != settings
        assert _podlane(node, "uninstall")[0] == 0
        assert network(node) == before
        assert _settings(node) == settings
        assert not (node.folder / "run").exists()
        assert not (node.folder / "state").exists()
        assert _podlane(node, "uninstall")[0] == 0
    finally:
        cluster.close()


# -- helpers ---------------------------------------------------------------------


def _agent(node: AgentNode, manifests: Path) -> tuple[int, str]:
    return _podlane(node, "agent", "--manifests", str(manifests))


def _podlane(node: AgentNode, command: str, *more: str) -> tuple[int, str]:
    """Run a command in the node's namespace; its exit status and what it said."""
    words = ["nsenter", f"--net=/run/netns/{node.ns}", PODLANE, command]
    words += ["--config", str(node.config), *more]
    print("$", " ".join(words))
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    print(done.stderr)
    return done.returncode, done.stderr


def _ping(node: AgentNode, pod: str, target: str) -> subprocess.Popen[str]:
    words = ["ip", "netns", "exec", node.pods[pod], "ping", "-i0.01", target]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def _routes(node: AgentNode) -> dict[str, str]:
    rows = json.loads(sh(f"{PODLANE} routes --bpffs {node.folder}/bpf -o json"))
    return {row["prefix"]: row["kind"] for row in rows}


def _settings(node: AgentNode) -> str:
    files = [
        "ipv4/ip_forward",
        "ipv4/ip_local_reserved_ports",
        "ipv4/conf/eth0/rp_filter",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/eth0/accept_ra",
    ]
    return node.run("cat " + " ".join(f"/proc/sys/net/{file}" for file in files))


def _service(name: str = "web", address: str = "10.96.0.80") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "test", "name": name},
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    }


def _slice(*addresses: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "test",
            "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


def _wait(done: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
