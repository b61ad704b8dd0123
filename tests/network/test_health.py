# SPDX-License-Identifier: Apache-2.0
"""Health ports over real sockets, while endpoints change.

node1 ── eth0 (192.0.2.1, 2001:db8::1) ── bridge ── eth0 ── outside: a load balancer that asks
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import ports
from dataplane.kernel.netns import run_in
from tests.network.cluster import AgentNode, Cluster

PORT, OTHER_PORT, NODE_PORT = 30200, 30201, 10256
V4, V6 = "192.0.2.1", "2001:db8::1"
HEADERS = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}
# A request for each line: host, port, method, path.
ASK = """
import http.client, json, sys
for line in sys.stdin:
    host, port, method, path = json.loads(line)
    try:
        c = http.client.HTTPConnection(host, port, timeout=2)
        c.request(method, path)
        r = c.getresponse()
        print(json.dumps([r.status, dict(r.getheaders()), r.read().decode()]), flush=True)
        c.close()
    except OSError as failure:
        print(json.dumps([0, {}, type(failure).__name__]), flush=True)
"""
HOLD = "import socket,time; s=socket.create_server(('', {port})); print('up', flush=True); time.sleep(600)"


class Balancer:
    """Who asks, from a namespace of its own."""

    def __init__(self, ns: str) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", ns, sys.executable, "-c", ASK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(
        self, host: str = V4, port: int = PORT, path: str = "/", method: str = "GET"
    ) -> tuple[int, dict[str, str], str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([host, port, method, path]) + "\n")
        self._process.stdin.flush()
        status, headers, body = json.loads(self._process.stdout.readline())
        return status, headers, body

    def status(self, host: str = V4, port: int = PORT, path: str = "/") -> int:
        return self.ask(host, port, path)[0]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def until(says: Callable[[], bool], what: str, seconds: float = 20) -> float:
    """Wait for it; how long it took."""
    began = time.monotonic()
    while not says():
        assert time.monotonic() < began + seconds, f"{what}: not after {seconds} s"
        time.sleep(0.005)
    took = time.monotonic() - began
    print(f"{what}: {took * 1000:.0f} ms")
    return took


def service(port: int = PORT, name: str = "cart", last: int = 1) -> Mapping[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": [f"10.96.0.{last}", f"fd00:96::{last}"],
            "clusterIP": f"10.96.0.{last}",
            "ipFamilies": ["IPv4", "IPv6"],
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port,
            "ports": [{"name": "http", "port": 80, "nodePort": 31000 + last}],
        },
    }


def pod(number: int, node: str = "node1", **conditions: bool) -> Mapping[str, Any]:
    return {"number": number, "nodeName": node, "conditions": conditions}


def slices(*pods: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One slice a family."""
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"cart-{family.lower()}",
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "cart"},
            },
            "addressType": family,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": [f"{prefix}{one['number']}"],
                    "nodeName": one["nodeName"],
                    "conditions": one["conditions"],
                }
                for one in pods
            ],
        }
        for family, prefix in (("IPv4", "10.244.1."), ("IPv6", "fd00:244:1::"))
    ]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        made.write({"services": [service()], "slices": slices(pod(11))})
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def balancer(cluster: Cluster) -> Iterator[Balancer]:
    made = Balancer(cluster.outside)
    yield made
    made.close()


@pytest.fixture
def node(cluster: Cluster, balancer: Balancer) -> AgentNode:
    """The node with one ready endpoint of the Service, and nothing else."""
    cluster.write({"services": [service()], "slices": slices(pod(11)), "nodes": _nodes(cluster)})
    until(lambda: all(balancer.status(host) == 200 for host in (V4, V6)), "made as at first")
    until(lambda: balancer.status(V4, NODE_PORT, "/healthz") == 200, "the node, too")
    return cluster.nodes[0]


def _nodes(cluster: Cluster, **spec: object) -> list[Mapping[str, Any]]:
    (node,) = (dict(cluster._node(one)) for one in cluster.nodes)
    return [{**node, "spec": {**node["spec"], **spec}}]


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("path", ["/", "/any/path?at=all"])
def test_a_service_with_an_endpoint_here_is_answered_for(
    node: AgentNode, balancer: Balancer, host: str, path: str
) -> None:
    status, headers, body = balancer.ask(host, PORT, path)
    assert status == 200
    assert json.loads(body) == {
        "service": {"namespace": "shop", "name": "cart"},
        "localEndpoints": 1,
        "serviceProxyHealthy": True,
    }
    assert headers.pop("Date")
    assert headers == HEADERS | {
        "X-Load-Balancing-Endpoint-Weight": "1", "Content-Length": str(len(body)),
    }  # fmt: skip


def test_every_method_is_answered(node: AgentNode, balancer: Balancer) -> None:
    assert balancer.ask(method="POST")[0] == 200
    status, headers, body = balancer.ask(method="HEAD")
    assert (status, body, headers["X-Load-Balancing-Endpoint-Weight"]) == (200, "", "1")


@pytest.mark.parametrize(
    ("pods", "status", "count"),
    [
        pytest.param([pod(11), pod(12)], 200, 2, id="two"),
        pytest.param([pod(11), pod(12, node="node2")], 200, 1, id="one here, one there"),
        pytest.param([pod(12, node="node2")], 503, 0, id="none here"),
        pytest.param([pod(11, ready=False)], 503, 0, id="not ready"),
        pytest.param(
            [pod(11, ready=False, serving=True, terminating=True)], 503, 0, id="draining only"
        ),
        pytest.param([], 503, 0, id="none anywhere"),
    ],
)
def test_the_answer_follows_the_endpoints(
    cluster: Cluster,
    node: AgentNode,
    balancer: Balancer,
    pods: list[Mapping[str, Any]],
    status: int,
    count: int,
) -> None:
    cluster.write({"slices": slices(*pods)})

    def counted(host: str) -> bool:
        return bool(json.loads(balancer.ask(host)[2])["localEndpoints"] == count)

    for host in (V4, V6):
        until(partial(counted, host), f"{host} counts {count}")
        found, headers, _ = balancer.ask(host)
        assert (found, headers["X-Load-Balancing-Endpoint-Weight"]) == (status, str(count))
    assert balancer.status(V4, NODE_PORT, "/healthz") == 200


def test_a_port_that_moves_is_closed_and_another_opened(
    cluster: Cluster, node: AgentNode, balancer: Balancer
) -> None:
    cluster.write({"services": [service(OTHER_PORT)]})
    until(lambda: balancer.status(V4, OTHER_PORT) == 200, "the new port answers")
    assert balancer.ask()[2] == "ConnectionRefusedError"
    cluster.write({"services": []})
    until(lambda: balancer.status(V4, OTHER_PORT) == 0, "the deleted Service's port is closed")


def test_only_addresses_of_node_ports_answer(node: AgentNode, balancer: Balancer) -> None:
    """The router address is the node's, too, but no NodePort is served there."""
    inside = Path("/run/netns") / node.ns
    assert run_in(inside, lambda: ports.listeners([PORT])[PORT]).startswith("podlane")
    listening = node.run(f"ss -Hltn sport = :{PORT}").split()
    assert {word for word in listening if word.endswith(f":{PORT}")} == {
        f"{V4}:{PORT}", f"[{V6}]:{PORT}",
    }  # fmt: skip


def test_a_taken_port_is_named_with_its_process_and_tried_again(
    cluster: Cluster, node: AgentNode, balancer: Balancer
) -> None:
    holder = subprocess.Popen(
        ["ip", "netns", "exec", node.ns, sys.executable, "-c", HOLD.format(port=OTHER_PORT)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        cluster.write({"services": [service(OTHER_PORT)]})
        words = f"Service shop/cart: spec.healthCheckNodePort: {V4}:{OTHER_PORT} is taken by "

        def named() -> bool:
            return any(
                one.startswith(words) and f"(pid {holder.pid})" in one
                for one in node.status()["problems"]
            )

        until(named, "the process is named")
        # IPv6 is free: there it answers.
        assert balancer.status(V6, OTHER_PORT) == 200
    finally:
        holder.kill()
        holder.wait()
    until(lambda: balancer.status(V4, OTHER_PORT) == 200, "it answers when the port is free")
    until(lambda: not node.status()["problems"], "and the problem is gone")


def test_of_two_services_with_one_port_the_second_is_named(
    cluster: Cluster, node: AgentNode, balancer: Balancer
) -> None:
    cluster.write({"services": [service(), service(name="late", last=2)]})
    words = (
        f"Service shop/late: spec.healthCheckNodePort: {V4}:{PORT} is taken by Service shop/cart"
    )
    until(lambda: words in node.status()["problems"], "it is named")
    assert json.loads(balancer.ask()[2])["service"]["name"] == "cart"


# ---- the node's own port ----
@pytest.mark.parametrize("host", [V4, V6, "10.244.1.1"])
def test_the_node_answers_on_all_its_addresses(
    node: AgentNode, balancer: Balancer, host: str
) -> None:
    if host.startswith("10.244"):
        code = f"import urllib.request as u; print(u.urlopen('http://{host}:{NODE_PORT}/livez').status)"
        assert node.run(f'{sys.executable} -c "{code}"').strip() == "200"
        return
    status, headers, body = balancer.ask(host, NODE_PORT, "/healthz")
    assert (status, json.loads(body).keys()) == (
        200, {"lastUpdated", "currentTime", "nodeEligible", "healthy", "status"},
    )  # fmt: skip
    assert headers.items() >= HEADERS.items()
    status, _, body = balancer.ask(host, NODE_PORT, "/livez")
    assert (status, json.loads(body).keys()) == (
        200, {"lastUpdated", "currentTime", "healthy", "status"},
    )  # fmt: skip
    assert json.loads(body)["status"].keys() == {"IPv4", "IPv6"}
    assert balancer.ask(host, NODE_PORT, "/metrics")[0::2] == (404, "404 page not found\n")


def test_a_node_that_is_being_deleted_wants_no_traffic(
    cluster: Cluster, node: AgentNode, balancer: Balancer
) -> None:
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    cluster.write({"nodes": _nodes(cluster, taints=[taint])})
    until(lambda: balancer.status(V4, NODE_PORT, "/healthz") == 503, "/healthz says so")
    assert json.loads(balancer.ask(V4, NODE_PORT, "/healthz")[2])["nodeEligible"] is False
    assert balancer.status(V4, NODE_PORT, "/livez") == 200
    assert balancer.status() == 200  # a Service's health does not look at it
    cluster.write({"nodes": []})
    until(lambda: any("is gone" in one for one in node.status()["problems"]), "the Node is gone")
    assert balancer.status(V4, NODE_PORT, "/healthz") == 503


def test_a_dead_agent_answers_nothing_and_the_next_one_all(
    cluster: Cluster, node: AgentNode, balancer: Balancer
) -> None:
    node.stop(signal.SIGKILL)
    for port in (PORT, NODE_PORT):
        assert balancer.ask(V4, port)[2] == "ConnectionRefusedError"
    node.start(cluster.manifests)
    assert balancer.status() == 200
    assert balancer.status(V4, NODE_PORT, "/healthz") == 200


def test_another_address_for_the_nodes_health(
    cluster: Cluster, node: AgentNode, balancer: Balancer
) -> None:
    node.stop()
    try:
        node.write_config(healthzAddress=f"[{V6}]:10300")
        node.start(cluster.manifests)
        assert balancer.status(V6, 10300, "/healthz") == 200
        assert balancer.ask(V4, 10300)[2] == "ConnectionRefusedError"
        assert balancer.ask(V6, NODE_PORT)[2] == "ConnectionRefusedError"
        node.stop()
    finally:
        node.write_config()
        node.start(cluster.manifests)
