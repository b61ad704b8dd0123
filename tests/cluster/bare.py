# SPDX-License-Identifier: Apache-2.0
"""podlane on a cluster that has no network yet, put there by what its README says and no more.

`python -m tests.cluster.bare`: an IPv4 cluster whose nodes' names have dots. A node is deleted
from it and comes back, with another range for its pods.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from tests.cluster import podlane
from tests.cluster.cluster import Cluster
from tests.cluster.hosts import wait_for
from tests.cluster.images import AGNHOST
from tests.cluster.places import Host, Places

READY_SECONDS = 30.0
PORT = 8080


def main() -> int:
    """The story; the exit status."""
    podlane.image()  # which the nodes get
    cluster = Cluster(Places("bare", 2, family="ipv4", domain="example.com"))
    first, second = cluster.places.nodes
    cluster.up("none")
    try:
        _nodes_turn_ready(cluster)
        cluster.name_server()
        cluster.await_name_server()
        _make_pod(cluster, "client", first, "pause")
        _make_pod(cluster, "server", second, "netexec", f"--http-port={PORT}")
        cluster.control.kubectl(f"expose pod server --port {PORT}")
        _reaches(cluster, "server")
        print("bare: a pod of one node reaches one of the other by its Service's name", flush=True)
        _a_node_is_deleted_and_comes_back(cluster, second)
    finally:
        cluster.down()
    return 0


def _nodes_turn_ready(cluster: Cluster) -> None:
    """The image is on the nodes; one `kubectl apply` is all the rest."""
    began = time.monotonic()
    podlane.install(cluster.control, "vxlan")
    cluster.await_nodes(READY_SECONDS)
    print(f"bare: nodes Ready {time.monotonic() - began:.1f} s after kubectl apply", flush=True)


def _a_node_is_deleted_and_comes_back(cluster: Cluster, node: Host) -> None:
    """Its pods are gone with it, and kubelet registers it anew when it starts."""
    kubectl = cluster.control.kubectl
    before = _ranges(cluster, node)
    kubectl(f"drain {node.name} --ignore-daemonsets --force --timeout 60s")
    kubectl(f"delete node {node.name}")
    other = cluster.places.nodes[0]
    wait_for(
        lambda: before[0] not in cluster.hosts.run_on(other, "ip route"), 10,
        f"{other.name} without a route to {before[0]}",
    )  # fmt: skip
    cluster.restart_kubelet(node)
    wait_for(lambda: _ranges(cluster, node), 60, f"{node.name} with a range")
    now = _ranges(cluster, node)
    # The agent's pod outlives its Node's record for a while; then it names what it can't follow.
    for pod in _agents(cluster, node):
        if before != now:
            words = f"was {before[0]} and is {now[0]} now"
            wait_for(_says_or_is_gone(cluster, node, pod, words), 60, f"log of {pod}: {words!r}")
        kubectl(f"-n podlane delete pod {pod} --ignore-not-found")
    wait_for(lambda: _agents(cluster, node), 60, f"an agent on {node.name}")
    kubectl("-n podlane rollout status daemonset/podlane --timeout 60s")
    cluster.await_nodes(60)
    _make_pod(cluster, "again", node, "netexec", f"--http-port={PORT}")
    kubectl(f"expose pod again --port {PORT}")
    _reaches(cluster, "again")
    print(
        f"bare: {node.name} was deleted and is back, its pods in {now} after {before}", flush=True
    )


def _ranges(cluster: Cluster, node: Host) -> list[str]:
    words = f"get node {node.name} -o jsonpath={{.spec.podCIDRs[*]}}"
    return cluster.control.kubectl(words, check=False).split()


def _agents(cluster: Cluster, node: Host) -> list[str]:
    """Names of the agent's pods on a node that are not on their way out."""
    found = json.loads(cluster.control.kubectl("-n podlane get pods -o json"))["items"]
    return [
        one["metadata"]["name"]
        for one in found
        if one["spec"].get("nodeName") == node.name and "deletionTimestamp" not in one["metadata"]
    ]


def _says_or_is_gone(cluster: Cluster, node: Host, pod: str, words: str) -> Callable[[], bool]:
    def holds() -> bool:
        said = cluster.control.kubectl(f"-n podlane logs {pod}", check=False)
        return words in said or pod not in _agents(cluster, node)

    return holds


def _make_pod(cluster: Cluster, name: str, node: Host, *words: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"run": name}},
        "spec": {
            "nodeName": node.name,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {"name": "main", "image": AGNHOST, "imagePullPolicy": "Never", "args": list(words)}
            ],
        },
    }
    cluster.control.kubectl("apply -f -", stdin=json.dumps(pod))
    cluster.control.kubectl(f"wait --for condition=Ready pod/{name} --timeout 60s")


def _reaches(cluster: Cluster, name: str) -> None:
    """By the name of its Service, which a server's pod answers with its own."""
    url = f"http://{name}.default.svc.cluster.local:{PORT}/hostname"
    command = f"exec client -- curl -s -m 5 {url}"
    wait_for(
        lambda: cluster.control.kubectl(command, check=False) == name, 20, f"{url} from client"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, RuntimeError) as failure:
        sys.exit(f"bare: {failure}")
