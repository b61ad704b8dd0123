# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's rules one by one over real sockets: who asks what, who answers, as whom it is seen.

                    ┌─ eth0 ── node1 (zone east) ── pods a, b; server host
outside ── bridge ──┤
                    └─ eth0 ── node2 (zone west) ── pods c, d; masqueradeAll

Each row has a Service of its own, all of them served from the beginning, so the rows only ask.
Outside sends balancers' addresses and ClusterIPs to node1, and has the balancer of ipMode Proxy.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dataplane.lab import inside, state
from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import SIZES, AgentNode, Cluster, sh
from tests.network.life import OUTSIDE, PORT, TARGET

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = {"TCP": STREAM, "UDP": DGRAM}
SILENCE = 0.4
# Two servers both answer in so many requests, but once in 2^23 times.
PICKS = 24
PODS = {"a": (1, 11), "b": (1, 12), "c": (2, 11), "d": (2, 12)}
NODES = {"host": 1}
HOST_PORT = 8888
# of a node's second addresses; node2 serves NodePorts there alone
SECOND_RANGE = {Family.V4: "192.0.2.96/28", Family.V6: "2001:db8::100/120"}


@dataclass(frozen=True)
class End:
    """One endpoint of a Service's slices."""

    at: str
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    placed: bool = True

    def address(self, family: Family) -> str:
        if self.at in NODES:
            return life.node_address(family, NODES[self.at])
        return life.pod_address(family, *PODS[self.at])

    def as_json(self, family: Family) -> dict[str, Any]:
        made: dict[str, Any] = {
            "addresses": [self.address(family)],
            "conditions": {
                "ready": self.ready, "serving": self.serving, "terminating": self.terminating,
            },
        }  # fmt: skip
        hints = {"forZones": [{"name": zone} for zone in self.zones]} if self.zones else {}
        hints |= {"forNodes": [{"name": node} for node in self.nodes]} if self.nodes else {}
        if hints:
            made["hints"] = hints
        if self.placed:
            number = NODES[self.at] if self.at in NODES else PODS[self.at][0]
            made["nodeName"] = f"node{number}"
        return made


def draining(at: str) -> End:
    return End(at, ready=False, terminating=True)


def ended(at: str) -> End:
    return End(at, ready=False, serving=False, terminating=True)


@dataclass(frozen=True)
class Service:
    """several: slices whose endpoints are put together. spec: more of its spec.

    labels: of the Service. ip_mode: of its balancer's addresses. protocols: of each slice's ports.
    """

    several: tuple[tuple[End, ...], ...]
    spec: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    ip_mode: str = "VIP"
    protocols: tuple[str, ...] = ()


def over(*ends: str | End, **spec: Any) -> Service:
    made = tuple(End(end) if isinstance(end, str) else end for end in ends)
    return Service((made,), spec)


EXTERNAL_LOCAL = {"externalTrafficPolicy": "Local"}
INTERNAL_LOCAL = {"internalTrafficPolicy": "Local"}


def ranges(*inside_them: str) -> dict[str, list[str]]:
    """loadBalancerSourceRanges of both families, the API's spaces around one."""
    words = {
        "outside": (f"{OUTSIDE[Family.V4]}/32 ", f"{OUTSIDE[Family.V6]}/128"),
        "pods": ("10.244.0.0/16", "fd00:244::/32"),
        "node1": ("192.0.2.1/32", "2001:db8::1/128"),
        "nobody": ("198.51.100.0/24", "2001:db8:51::/64"),
    }
    return {"loadBalancerSourceRanges": [word for name in inside_them for word in words[name]]}


SERVICES: dict[str, Service] = {
    "plain": over("a", "c"),
    "itself": over("a"),
    "empty": over(),
    "inside": over("a", "c", **INTERNAL_LOCAL),
    "inside, away": over("c", **INTERNAL_LOCAL),
    "outside": over("a", "c", **EXTERNAL_LOCAL),
    "outside, away": over("c", **EXTERNAL_LOCAL),
    "not placed": over(End("a", placed=False), **EXTERNAL_LOCAL),
    "unready": over(End("a", ready=False, serving=False), "c"),
    "published": over(End("a", serving=False)),
    "draining": over(draining("a"), ended("c")),
    "draining beside ready": over(draining("a"), "c"),
    "draining here": over(draining("a"), ended("b"), "c", **EXTERNAL_LOCAL),
    "serving only": over(End("a", ready=False)),
    "zones": over(End("a", zones=("east",)), End("c", zones=("west",))),
    "zones with a gap": over(End("a", zones=("east",)), "c"),
    "nodes": over(
        End("a", nodes=("node1",), zones=("west",)), End("c", nodes=("node2",), zones=("east",))
    ),
    "zones, outside": over(
        End("a", zones=("west",)), End("c", zones=("east",)), **EXTERNAL_LOCAL
    ),
    "slices": Service(((End("a"), End("a", ready=False)), (End("a"), End("c")))),
    "host": over("host"),
    "for outside": over("a", "c", **ranges("outside", "node1")),
    "for pods": over("a", "c", **ranges("pods")),
    "for pods, local": over("c", **EXTERNAL_LOCAL, **ranges("pods")),
    "for nobody": over("a", "c", **ranges("nobody")),
    "for nobody, empty": over(**ranges("nobody")),
    "for nobody, other family": over(
        "a", "c", loadBalancerSourceRanges=[" 198.51.100.0/24 "]
    ),
    "proxied": Service(((End("a"),),), ip_mode="Proxy"),
    "another's": Service(
        ((End("a"),),), labels={"service.kubernetes.io/service-proxy-name": "other"}
    ),
    "headless": Service(((End("a"),),), labels={"service.kubernetes.io/headless": ""}),
    "draining away": over(draining("c"), **EXTERNAL_LOCAL),
    "named": over(type="ExternalName", externalName="outside.example"),
    "by protocol": Service(((End("a"),), (End("c"),)), protocols=("TCP", "UDP")),
}  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(SERVICES, 1)}


def address(family: Family, door: str, name: str) -> tuple[str, int]:
    """Where a Service is asked."""
    number, v4 = NUMBERS[name], family is Family.V4
    match door:
        case "cluster IP":
            return (f"10.96.1.{number}" if v4 else f"fd00:96::{100 + number}"), PORT
        case "another port":
            return (f"10.96.1.{number}" if v4 else f"fd00:96::{100 + number}"), PORT + 1
        case "node port":
            return life.node_address(family, 1), 30100 + number
        case "balancer":
            return (f"203.0.113.{number}" if v4 else f"2001:db8:203::{number}"), PORT
        case "external":
            return (f"203.0.113.{100 + number}" if v4 else f"2001:db8:203::{100 + number}"), PORT
    raise ValueError(door)


def second_address(family: Family, number: int) -> str:
    """A node's second address, with its length."""
    return f"192.0.2.{100 + number}/24" if family is Family.V4 else f"2001:db8::10{number}/64"


def objects() -> list[Mapping[str, Any]]:
    """All Services and their slices."""
    found: list[Mapping[str, Any]] = []
    for name, one in SERVICES.items():
        metadata = f"s{NUMBERS[name]}"
        service, *pieces = life.service(
            metadata, {family: [] for family in Family}, node_port=30100 + NUMBERS[name],
            addresses={f: address(f, "cluster IP", name)[0] for f in Family},
            externalIPs=[address(f, "external", name)[0] for f in Family],
            **{"type": "LoadBalancer", **one.spec},
        )  # fmt: skip
        if one.spec.get("type") == "ExternalName":
            spec = {k: v for k, v in service["spec"].items() if not k.startswith("clusterIP")}
            found.append({**service, "spec": spec})
            continue
        balancers = [address(f, "balancer", name)[0] for f in Family]
        ingress = [{"ip": ip, "ipMode": one.ip_mode} for ip in balancers]
        labels = {"labels": dict(one.labels)}
        found.append(
            {
                **service,
                "metadata": {**service["metadata"], **labels},
                "status": {"loadBalancer": {"ingress": ingress}},
            }
        )
        for family, piece in zip(Family, pieces, strict=True):
            for number, ends in enumerate(one.several):
                slice_name = f"{piece['metadata']['name']}-{number}"
                only = one.protocols[number] if one.protocols else ""
                found.append(
                    {
                        **piece,
                        "metadata": {**piece["metadata"], "name": slice_name},
                        "ports": [p for p in piece["ports"] if only in ("", p["protocol"])],
                        "endpoints": [end.as_json(family) for end in ends],
                    }
                )
    return found


@dataclass(frozen=True)
class Row:
    """sender: a pod, "node1" or "outside". seen: as whom, "" if nobody is to answer."""

    sender: str
    door: str
    service: str
    pods: str = ""
    seen: str = ""
    drop: str = ""

    @property
    def entry(self) -> int:
        """The node whose programs meet it first."""
        return PODS[self.sender][0] if self.sender in PODS else 1


def by(pods: str, sender: str, door: str, service: str, seen: str = "itself") -> Row:
    return Row(sender, door, service, pods, seen)


ROWS: dict[str, Row] = {
    # ---- who is hidden behind an address of the node ----
    "a ClusterIP keeps a pod's address": by("a c", "b", "cluster IP", "plain"),
    "masqueradeAll hides a pod from a ClusterIP": by("a c", "d", "cluster IP", "plain", "node"),
    "masqueradeAll adds nothing under Local": by("a c", "d", "balancer", "outside"),
    "the Cluster policy hides who comes from outside": by(
        "a c", "outside", "node port", "plain", "node"
    ),
    "the Cluster policy hides a pod, too": by("a c", "b", "balancer", "plain", "node"),
    "at an external IP, too": by("a c", "b", "external", "plain", "node"),
    "at a NodePort, too": by("a c", "b", "node port", "plain", "node"),
    "a ClusterIP hides who comes from outside": by(
        "a c", "outside", "cluster IP", "plain", "node"
    ),
    "a pod that reaches itself is hidden": by("a", "a", "cluster IP", "itself", "node"),
    "a server of the node sees who asks from outside": by("host", "outside", "node port", "host"),
    "a server of the node sees the pod that asks": by("host", "b", "balancer", "host"),
    # ---- traffic policies ----
    "internal Local stays on the node": by("a", "b", "cluster IP", "inside"),
    "internal Local binds the node": by("a", "node1", "cluster IP", "inside", "node"),
    "internal Local binds who comes from outside": by(
        "a", "outside", "cluster IP", "inside", "node"
    ),
    "internal Local does not bind a NodePort": by(
        "a c", "outside", "node port", "inside", "node"
    ),
    "internal Local with none here drops": Row(
        "b", "cluster IP", "inside, away", drop="no_local_backend"
    ),
    "internal Local with none here drops the node's own": Row(
        "node1", "cluster IP", "inside, away", drop="no_local_backend"
    ),
    "external Local stays on the node and keeps the client": by(
        "a", "outside", "node port", "outside"
    ),
    "at a balancer's address, too": by("a", "outside", "balancer", "outside"),
    "at an external IP under Local": by("a", "outside", "external", "outside"),
    "external Local with none here drops": Row(
        "outside", "node port", "outside, away", drop="no_local_backend"
    ),
    "what drains elsewhere is something, so Local drops": Row(
        "outside", "balancer", "draining away", drop="no_local_backend"
    ),
    "external Local binds no pod": by("c", "b", "node port", "outside, away"),
    "external Local binds no node": by("c", "node1", "balancer", "outside, away", "node"),
    "external Local binds no ClusterIP": by("c", "b", "cluster IP", "outside, away"),
    "an endpoint without a node is remote": Row(
        "outside", "balancer", "not placed", drop="no_local_backend"
    ),
    # ---- states of endpoints ----
    "what is unready is not chosen": by("c", "b", "cluster IP", "unready"),
    "unready addresses that are published are": by("a", "b", "cluster IP", "published"),
    "what serves while it ends is used if nothing is ready": by("a", "b", "cluster IP", "draining"),
    "and is not if something is": by("c", "b", "cluster IP", "draining beside ready"),
    "under Local, if nothing is ready here": by("a", "outside", "node port", "draining here"),
    "what serves, but is neither ready nor ending, is never used": Row(
        "b", "cluster IP", "serving only", drop="no_backend"
    ),
    "slices are put together": by("a c", "b", "cluster IP", "slices"),
    # ---- topology ----
    "zone hints keep to the zone": by("a", "b", "cluster IP", "zones"),
    "in the other zone, too": by("c", "d", "cluster IP", "zones", "node"),
    "a gap in the hints ends them": by("a c", "b", "cluster IP", "zones with a gap"),
    "node hints come before zone hints": by("a", "b", "cluster IP", "nodes"),
    "Local ignores hints": by("a", "outside", "node port", "zones, outside"),
    # ---- nobody there ----
    **{
        f"{door} without endpoints refuses {sender}": Row(sender, door, "empty", drop="no_backend")
        for sender, door in (
            ("b", "cluster IP"), ("node1", "cluster IP"), ("outside", "node port"),
            ("outside", "balancer"), ("b", "external"),
        )
    },
    "an unknown port of a ClusterIP refuses": Row("b", "another port", "plain", drop="no_port"),
    "the node's own, too": Row("node1", "another port", "plain", drop="no_port"),
    # ---- source ranges ----
    "a client in a source range is served": by(
        "a c", "outside", "balancer", "for outside", "node"
    ),
    "a client in none is dropped": Row("outside", "balancer", "for pods", drop="source_range"),
    "a pod in a range is served": by("a c", "b", "balancer", "for pods", "node"),
    "a pod in none is dropped": Row("b", "balancer", "for outside", drop="source_range"),
    "the node in a range is served": by("a c", "node1", "balancer", "for outside", "node"),
    "the node in none is dropped": Row("node1", "balancer", "for pods", drop="source_range"),
    "ranges come before the Local policy": Row(
        "outside", "balancer", "for pods, local", drop="source_range"
    ),
    "a pod in a range takes the short cut": by("c", "b", "balancer", "for pods, local"),
    "ranges guard no NodePort": by("a c", "outside", "node port", "for nobody", "node"),
    "nor an external IP": by("a c", "outside", "external", "for nobody", "node"),
    "nor a ClusterIP": by("a c", "b", "cluster IP", "for nobody"),
    "without endpoints all are refused alike": Row(
        "outside", "balancer", "for nobody, empty", drop="no_backend"
    ),
    # ---- not ours ----
    "ipMode Proxy goes to the balancer itself": by("outside", "b", "balancer", "proxied", "uplink"),
    "an ExternalName's external IPs are the world's": by(
        "outside", "b", "external", "named", "uplink"
    ),
}  # fmt: skip
# ClusterIPs of Services that another proxy serves: here the node's stack knows a way for it.
LEFT_ALONE = ("another's", "headless")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(2)
    with ExitStack() as closing:
        closing.callback(made.close)
        for node, zone in zip(made.nodes, ("east", "west"), strict=True):
            served = [SECOND_RANGE[f] for f in Family] if zone == "west" else []
            node.write_config(
                masqueradeAll=zone == "west", mapSizes=SIZES, nodePortAddresses=served
            )
            for family in Family:
                sh(f"ip -n {node.ns} addr add {second_address(family, node.number)} dev eth0 nodad")
        zones = {"node1": "east", "node2": "west"}
        made.write({"nodes": [_in_zone(made._node(node), zones) for node in made.nodes]})
        made.write({"services": objects()})
        for network, via in (
            ("203.0.113.0/24", life.node_address(Family.V4, 1)),
            ("10.96.0.0/16", life.node_address(Family.V4, 1)),
            ("2001:db8:203::/64", life.node_address(Family.V6, 1)),
            ("fd00:96::/112", life.node_address(Family.V6, 1)),
        ):
            sh(f"ip -n {made.outside} route add {network} via {via}")
        for family in Family:
            for door, name in (
                ("balancer", "proxied"),
                ("external", "named"),
                *(("cluster IP", name) for name in LEFT_ALONE),
            ):
                sh(f"ip -n {made.outside} addr add {address(family, door, name)[0]} dev lo nodad")
        made.start()
        for name, (number, last) in PODS.items():
            made.nodes[number - 1].add_pod(name, life.both(number, last))
        places = {**{name: ns_of(made, name) for name in PODS}, "outside": made.outside}
        places["host"] = made.nodes[0].ns
        for name, ns in places.items():
            port = PORT if name == "outside" else TARGET
            closing.callback(_stop, ns)
            sh(f"ip netns exec {ns} {inside.STAND_IN} serve {name} tcp:{port} udp:{port}")
        yield made


def _in_zone(node: Mapping[str, Any], zones: Mapping[str, str]) -> Mapping[str, Any]:
    metadata = node["metadata"]
    labels = {"topology.kubernetes.io/zone": zones[metadata["name"]]}
    return {**node, "metadata": {**metadata, "labels": labels}}


def _stop(ns: str) -> None:
    for pid in state.processes(Path("/run/netns") / ns):
        os.kill(pid, signal.SIGKILL)


def ns_of(cluster: Cluster, sender: str) -> str:
    """The namespace of who asks."""
    if sender == "outside":
        return cluster.outside
    if sender == "node1":
        return cluster.nodes[0].ns
    return cluster.nodes[PODS[sender][0] - 1].pods[sender]


def seen_as(row: Row, family: Family) -> set[str]:
    """The client addresses that a server may see."""
    router, uplink = life.pod_address(family, row.entry, 1), life.node_address(family, row.entry)
    match row.seen:
        case "node":
            return {router, uplink}
        case "uplink":
            return {uplink}
    if row.sender == "outside":
        return {OUTSIDE[family]}
    return {life.pod_address(family, *PODS[row.sender])}


def ask(ns: str, family: Family, kind: str, to: tuple[str, int], seconds: float = 5) -> Any:
    """One request by a connected socket: the answer, or the error that came."""
    try:
        with life.make(ns, family, KINDS[kind]) as client:
            client.settimeout(seconds)
            client.connect(to)
            client.send(b"who\n")
            return json.loads(client.recv(4096))
    except OSError as error:
        return error


def dropped(node: AgentNode, before: Counter[str]) -> Counter[str]:
    """Packets by reason since then, but for the groups that a pod's kernel joins by itself."""
    found = life.drops(node) - before
    del found["multicast"]
    return found


def answers_of(
    ns: str, family: Family, kind: str, to: tuple[str, int], number: int
) -> list[dict[str, Any]]:
    """So many requests, each of which must be answered."""
    found: list[dict[str, Any]] = []
    for _ in range(number):
        answer = ask(ns, family, kind, to)
        assert isinstance(answer, dict), f"after {len(found)} answers: {answer}"
        found.append(answer)
    return found


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("name", list(ROWS))
def test_the_rule_holds(cluster: Cluster, name: str, family: Family, kind: str) -> None:
    row = ROWS[name]
    ns, to = ns_of(cluster, row.sender), address(family, row.door, row.service)
    node = cluster.nodes[row.entry - 1]
    before = life.drops(node)
    if row.pods:
        pods = set(row.pods.split())
        answers = answers_of(ns, family, kind, to, PICKS if len(pods) > 1 else 3)
        assert {answer["pod"] for answer in answers} == pods
        assert {answer["client"] for answer in answers} <= seen_as(row, family)
        assert not dropped(node, before)
        return
    refused = row.drop in ("no_backend", "no_port")
    answer = ask(ns, family, kind, to, 5 if refused else SILENCE)
    if refused:
        assert isinstance(answer, ConnectionRefusedError)
    elif row.sender == "node1":  # at the system call nothing can be silent
        assert isinstance(answer, PermissionError)
    else:
        assert isinstance(answer, TimeoutError)
    assert dropped(node, before) == {row.drop: 1}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_a_pod_of_several_is_hidden_from_itself_alone(
    cluster: Cluster, family: Family, kind: str
) -> None:
    to = address(family, "cluster IP", "plain")
    answers = answers_of(ns_of(cluster, "a"), family, kind, to, PICKS)
    seen = {(answer["pod"], answer["client"]) for answer in answers}
    assert seen == {("a", life.pod_address(family, 1, 1)), ("c", life.pod_address(family, 1, 11))}


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_one_port_of_two_protocols_has_two_sets_of_endpoints(
    cluster: Cluster, family: Family
) -> None:
    to = address(family, "cluster IP", "by protocol")
    for kind, pod in (("TCP", "a"), ("UDP", "c")):
        answers = answers_of(ns_of(cluster, "b"), family, kind, to, 6)
        assert {answer["pod"] for answer in answers} == {pod}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_a_node_port_is_served_on_the_addresses_that_are_said(
    cluster: Cluster, family: Family, kind: str
) -> None:
    """On the primary one alone by default; on others in nodePortAddresses' place."""
    port = address(family, "node port", "plain")[1]
    answers: dict[tuple[int, str], Any] = {}
    for number in (1, 2):
        second = second_address(family, number).partition("/")[0]
        for name, own in (("first", life.node_address(family, number)), ("second", second)):
            answers[number, name] = ask(cluster.outside, family, kind, (own, port))
    served = {which for which, answer in answers.items() if isinstance(answer, dict)}
    assert served == {(1, "first"), (2, "second")}
    others = [answer for which, answer in answers.items() if which not in served]
    assert all(isinstance(one, ConnectionRefusedError) for one in others)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_another_proxys_cluster_ip_is_the_stacks(
    cluster: Cluster, name: str, family: Family, kind: str
) -> None:
    node, to = cluster.nodes[0], address(family, "cluster IP", name)
    pod = life.pod_address(family, *PODS["b"])
    before = life.drops(node)
    with ExitStack() as undo:
        for ns, network, via in (
            (node.ns, to[0], OUTSIDE[family]),
            (cluster.outside, pod, life.node_address(family, 1)),
        ):
            sh(f"ip -n {ns} route add {network} via {via}")
            undo.callback(sh, f"ip -n {ns} route del {network} via {via}")
        by_pod = ask(ns_of(cluster, "b"), family, kind, to)
        by_node = ask(node.ns, family, kind, to)
    assert (by_pod["pod"], by_pod["client"]) == ("outside", pod)
    assert by_node["pod"] == "outside"
    assert not dropped(node, before)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_family_without_a_source_range_is_open(cluster: Cluster, kind: str) -> None:
    for family, opens in ((Family.V4, False), (Family.V6, True)):
        to = address(family, "balancer", "for nobody, other family")
        answer = ask(cluster.outside, family, kind, to, 5 if opens else SILENCE)
        assert isinstance(answer, dict if opens else TimeoutError)


@contextmanager
def published(
    cluster: Cluster, name: str, number: int, protocol: str, **more: str
) -> Iterator[None]:
    """A pod of node1 that serves there at HOST_PORT."""
    node = cluster.nodes[0]
    port = {"hostPort": HOST_PORT, "containerPort": TARGET, "protocol": protocol, **more}
    answer = node.add_pod(name, life.both(1, number), runtime={"portMappings": [port]})
    assert "code" not in answer
    ns = node.pods[name]
    try:
        sh(f"ip netns exec {ns} {inside.STAND_IN} serve {name} {protocol}:{TARGET}")
        yield
    finally:
        _stop(ns)
        node.delete_pod(name)


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_a_host_port_with_an_address_is_served_there_alone_and_keeps_the_client(
    cluster: Cluster, family: Family
) -> None:
    own, name = life.node_address(family, 1), f"held{int(family)}"
    with published(cluster, name, 20 + int(family), "tcp", hostIP=own):
        from_outside = ask(cluster.outside, family, "TCP", (own, HOST_PORT))
        from_pod = ask(ns_of(cluster, "b"), family, "TCP", (own, HOST_PORT))
        assert (from_outside["pod"], from_outside["client"]) == (name, OUTSIDE[family])
        assert (from_pod["pod"], from_pod["client"]) == (name, life.pod_address(family, 1, 12))
        other = Family.V6 if family is Family.V4 else Family.V4
        elsewhere = (life.node_address(other, 1), HOST_PORT)
        assert isinstance(ask(cluster.outside, other, "TCP", elsewhere), ConnectionRefusedError)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_host_port_is_on_the_nodes_own_localhost(cluster: Cluster, kind: str) -> None:
    name = f"local{kind.lower()}"
    with published(cluster, name, 30, kind.lower()):
        there = ask(cluster.nodes[0].ns, Family.V4, kind, ("127.0.0.1", HOST_PORT))
        # a node's socket that is not bound has the router's address towards a pod
        assert (there["pod"], there["client"]) == (name, life.pod_address(Family.V4, 1, 1))
        for elsewhere in (cluster.nodes[1].ns, ns_of(cluster, "b"), cluster.outside):
            got = ask(elsewhere, Family.V4, kind, ("127.0.0.1", HOST_PORT))
            assert isinstance(got, ConnectionRefusedError)
    got = ask(cluster.nodes[0].ns, Family.V4, kind, ("127.0.0.1", HOST_PORT))
    assert isinstance(got, ConnectionRefusedError)
