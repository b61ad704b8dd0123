# SPDX-License-Identifier: Apache-2.0
"""A hundred pods made at once until the last is Ready, on a real cluster of two nodes.

Ours and the peer's cluster (kube-proxy, bridge and host-local) are made one after the other:
two at a time would share the processors.
"""

from __future__ import annotations

import json
import time

from bench.measure import Goal, Result
from dataplane.model.errors import BadEnvironment
from tests.cluster.cluster import Cluster
from tests.cluster.control import Control
from tests.cluster.images import PAUSE
from tests.cluster.places import Places

COUNT, ROUNDS = 100, 3
_PATIENCE = "--timeout=180s"


def pods_ready() -> list[Result]:
    """Seconds from `kubectl create` of a hundred pods to the last that is Ready."""
    try:
        ours, peer = _rounds("podlane"), _rounds("peer")
    except RuntimeError as failure:
        raise BadEnvironment("bench pods-ready", str(failure)) from failure
    unit = f"s, {COUNT} pods made at once until all are Ready"
    return [Result("pods-ready", unit, ours, peer, Goal("ratio", at_most=0.95))]


def _rounds(network: str) -> tuple[float, ...]:
    """The first round, in which each node starts its first pods, does not count."""
    cluster = Cluster(Places("bench-pods", 2))
    cluster.up(network)
    try:
        return tuple(_round(cluster.control) for _ in range(ROUNDS + 1))[1:]
    finally:
        cluster.down()


def _round(control: Control) -> float:
    pods = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*map(_pod, range(COUNT))]})
    began = time.monotonic()
    control.kubectl("create -f -", stdin=pods)
    control.kubectl(f"wait --for condition=Ready pods -l app=many {_PATIENCE}")
    seconds = time.monotonic() - began
    control.kubectl(f"delete pods -l app=many --wait {_PATIENCE}")
    return seconds


def _pod(number: int) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "labels": {"app": "many"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": PAUSE, "imagePullPolicy": "Never"}],
        },
    }
