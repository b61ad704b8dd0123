# SPDX-License-Identifier: Apache-2.0
"""All types of Services from pods, from nodes and from hostNetwork pods, in a lab.

outside ── underlay ──┬── node-1 ── agent (host)
                      └── node-2 ── agent (host)        web is a pod of one of them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from tests.network.labs import failed, lab

EVERY_TYPE = """\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      hostNetwork: true
      containers: [{name: a, image: a, ports: [{containerPort: 9100},{containerPort: 9101, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: agent}
spec:
  type: NodePort
  selector: {app: agent}
  ports: [{name: t, port: 9100},{name: u, port: 9101, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: w, image: w, ports: [{containerPort: 8080},{containerPort: 8053, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  externalIPs: [198.51.100.77]
  selector: {app: web}
  ports: [{name: t, port: 80, targetPort: 8080},{name: u, port: 53, targetPort: 8053, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  internalTrafficPolicy: Local
  selector: {app: web}
  ports: [{name: t, port: 80, targetPort: 8080},{name: u, port: 53, targetPort: 8053, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec:
  selector: {app: nothing}
  ports: [{port: 80}]
---
"""

RANGES = {
    "outside": "172.31.0.10/32, ' fd00:172:31::/64 '",
    "pods": "10.244.0.0/16, 'fd00:10:244::/48'",
    "nodes": "172.30.0.0/16, 'fd00:172:30::/64'",
}
GUARDED = "---\n".join(
    f"""\
apiVersion: v1
kind: Service
metadata: {{name: for-{who}}}
spec:
  type: LoadBalancer
  loadBalancerSourceRanges: [{ranges}]
  selector: {{app: web}}
  ports: [{{name: t, port: 80, targetPort: 8080}},{{name: u, port: 53, targetPort: 8053, protocol: UDP}}]
"""
    for who, ranges in RANGES.items()
)


@pytest.mark.parametrize("mode", ["vxlan", "native"])
def test_nodes_and_host_pods_reach_services_of_every_type(mode: str) -> None:
    with lab(EVERY_TYPE + GUARDED, "--nodes", "2", "--mode", mode, "--family", "dual") as one:
        status, report = one.check()
    assert status == 0, failed(report)
    asked = {
        kind: {(row["type"], row["protocol"], row["family"]) for row in rows}
        for kind, rows in _by_sender(report["services"]).items()
    }
    clusterwide = {
        (type_, protocol, family)
        for type_ in ("ClusterIP", "NodePort", "LoadBalancer")
        for protocol in ("TCP", "UDP")
        for family in ("ipv4", "ipv6")
    }
    for kind in ("node", "pod", "host pod"):
        assert clusterwide <= asked[kind], kind
    why = Counter(row["why"].partition(":")[0] for row in report["services"] if row["why"])
    assert why["no usable endpoint"] == 2 * 2 * 3  # nodes, families, senders
    assert why["the Local policy leaves no endpoint here"] >= 2 * 2 * 3  # protocols, families
    # Each of three balancers is asked by outside, two pods and two nodes, and serves one kind.
    assert why["in none of loadBalancerSourceRanges"] == 2 * 2 * (3 * 5 - 5)
    served = {
        (row["name"], row["from"]["kind"])
        for row in report["services"]
        if row["name"].startswith("for-") and row["answered"] and row["to"] in balancers(report)
    }
    assert served == {("for-outside", "outside"), ("for-pods", "pod"), ("for-nodes", "node")}


def balancers(report: dict[str, Any]) -> set[str]:
    """The guarded addresses, as the lab gives them."""
    return {
        row["to"]
        for row in report["services"]
        if row["name"].startswith("for-") and row["to"].startswith(("198.51.100.", "[2001:db8:1b:"))
    }


def _by_sender(rows: Iterable[dict[str, object]]) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        source = row["from"]
        assert isinstance(source, dict)
        host = source["kind"] == "pod" and "/agent-" in source["name"]
        found.setdefault("host pod" if host else source["kind"], []).append(row)
    return found
