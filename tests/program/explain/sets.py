# SPDX-License-Identifier: Apache-2.0
"""Object sets for `podlane explain`, as manifests; each of one family.

    here (zone east)   pods a1 a2   10.244.1.0/24      outside, friend: beyond the uplink
    there (zone west)  pods b1 b2   10.244.2.0/24      stray: on there, in here's range
    nobody: an endpoint without a node's name          lost: on a node that has no Node

Names stand for addresses of either family. Must not know what is right: the tables say it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataplane.model.net import Family

CAST = {
    "here": ("192.0.2.1", "2001:db8:2::1"),
    "here2": ("192.0.2.11", "2001:db8:2::11"),
    "public": ("198.51.100.1", "2001:db8:51::1"),  # here's ExternalIP, in some sets
    "there": ("192.0.2.2", "2001:db8:2::2"),
    "third": ("192.0.2.3", "2001:db8:2::3"),
    "router": ("10.244.1.1", "fd00:244:1::1"),
    "a1": ("10.244.1.10", "fd00:244:1::10"),
    "a2": ("10.244.1.11", "fd00:244:1::11"),
    "b1": ("10.244.2.10", "fd00:244:2::10"),
    "b2": ("10.244.2.11", "fd00:244:2::11"),
    "c1": ("10.244.3.10", "fd00:244:3::10"),
    "stray": ("10.244.1.200", "fd00:244:1::200"),
    "nobody": ("10.244.9.9", "fd00:244:9::9"),
    "lost": ("10.244.8.8", "fd00:244:8::8"),
    "far": ("198.18.0.5", "2001:db8:18::5"),  # an endpoint outside the cluster
    "ghost": ("10.244.1.99", "fd00:244:1::99"),
    "outside": ("203.0.113.9", "2001:db8:9::9"),
    "friend": ("198.51.100.9", "2001:db8:51::9"),
    "group": ("224.0.0.5", "ff02::5"),
    "loopback": ("127.0.0.1", "::1"),
    "loopback2": ("127.8.9.10", "::1"),
    "any": ("0.0.0.0", "::"),
    "web": ("10.96.0.1", "fd00:96::1"),
    "other": ("10.96.0.2", "fd00:96::2"),
    "unassigned": ("10.96.0.250", "fd00:96::250"),
    "balancer": ("203.0.113.100", "2001:db8:9::100"),
    "external": ("203.0.113.101", "2001:db8:9::101"),
}
RANGES = {
    "pods-here": ("10.244.1.0/24", "fd00:244:1::/64"),
    "pods-there": ("10.244.2.0/24", "fd00:244:2::/64"),
    "pods-third": ("10.244.3.0/24", "fd00:244:3::/64"),
    "cluster": ("10.244.0.0/16", "fd00:244::/32"),
    "services": ("10.96.0.0/16", "fd00:96::/112"),
    "friends": ("198.51.100.0/24", "2001:db8:51::/48"),
    "only-here": ("192.0.2.1/32", "2001:db8:2::1/128"),
    "only-here2": ("192.0.2.11/32", "2001:db8:2::11/128"),
    "all": ("0.0.0.0/0", "::/0"),
    "loopbacks": ("127.0.0.0/8", "::1/128"),
    "nodes": ("192.0.2.0/24", "2001:db8:2::/64"),
}
_WORDS = CAST | RANGES
FAMILY = "@family"

Object = dict[str, Any]


def said(value: Any, family: Family) -> Any:
    """A value with names as addresses of one family; "name:port" becomes address:port."""
    if isinstance(value, Mapping):
        return {key: said(one, family) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [said(one, family) for one in value]
    if isinstance(value, str) and value.startswith("@"):
        if value == FAMILY:
            return f"IPv{family:d}"
        name, colon, port = value[1:].partition(":")
        other = name.startswith("^")
        address = _WORDS[name.lstrip("^")][(family is Family.V6) ^ other]
        if not colon:
            return address
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return value


# ---- objects; "@name" is an address or range, "@^name" one of the other family ----
def node(name: str, zone: str | None, *, pods: str = "", addresses: tuple[str, ...] = ()) -> Object:
    labels = {} if zone is None else {"topology.kubernetes.io/zone": zone}
    spec = {"podCIDRs": [pods]} if pods else {}
    listed = [{"type": "InternalIP", "address": one} for one in addresses or (f"@{name}",)]
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "spec": spec, "status": {"addresses": listed},
    }  # fmt: skip


HERE = node("here", "east", pods="@pods-here", addresses=("@here", "@here2"))
THERE = node("there", "west", pods="@pods-there")
NODES = (HERE, THERE)


def service(name: str = "web", **spec: Any) -> Object:
    """A Service of type LoadBalancer with all its doors, unless told otherwise."""
    labels, created = spec.pop("labels", {}), spec.pop("created", "2026-01-01T00:00:00Z")
    ingress = spec.pop("ingress", [{"ip": "@balancer"}])
    full = {
        "type": "LoadBalancer",
        "clusterIP": f"@{name}" if name in CAST else "",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        "externalIPs": ["@external"],
        **spec,
    }
    meta = {"name": name, "namespace": "shop", "labels": labels, "creationTimestamp": created}
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": full,
        "status": {"loadBalancer": {"ingress": ingress}},
    }  # fmt: skip


_AT = {
    **dict.fromkeys(("here", "a1", "a2"), "here"),
    **dict.fromkeys(("there", "b1", "b2", "stray"), "there"),
    "c1": "third",
    "lost": "gone",
}


def endpoint(name: str, state: str = "ready", **more: Any) -> Object:
    """state: ready, unsaid, unready, serving (not ready), draining."""
    conditions = {
        "ready": {"ready": True},
        "unsaid": {},
        "unready": {"ready": False, "serving": False},
        "serving": {"ready": False, "serving": True},
        "draining": {"ready": False, "serving": True, "terminating": True},
        "dying": {"ready": False, "serving": False, "terminating": True},
    }[state]
    made: Object = {"addresses": [f"@{name}"], "conditions": conditions}
    if name in _AT:
        made["nodeName"] = _AT[name]
    return {**made, **more}


def hinted(name: str, *zones: str, nodes: tuple[str, ...] = (), state: str = "ready") -> Object:
    hints: Object = {"forZones": [{"name": one} for one in zones]} if zones else {}
    if nodes:
        hints["forNodes"] = [{"name": one} for one in nodes]
    return endpoint(name, state, **({"hints": hints} if hints else {}))


def piece(*endpoints: Object | str, name: str = "web-1", **more: Any) -> Object:
    """An EndpointSlice of Service web."""
    labels = {"kubernetes.io/service-name": more.pop("service", "web")}
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "addressType": FAMILY,
        "ports": more.pop("ports", [{"name": "http", "port": 8080}]),
        "endpoints": [endpoint(one) if isinstance(one, str) else one for one in endpoints],
    }  # fmt: skip


def pod(name: str, *ports: Object, at: str = "", **spec: Any) -> Object:
    """A Pod with an address of its own, on its node unless `at` names another."""
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": at or _AT[name],
                 "containers": [{"name": "c", "image": "i", "ports": list(ports)}], **spec},
        "status": {"podIPs": [{"ip": f"@{name}"}]},
    }  # fmt: skip


def service_cidrs(*cidrs: str, name: str = "kubernetes") -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs)},
    }  # fmt: skip


def write(objects: tuple[Object, ...], family: Family, folder: Path) -> Path:
    """The manifests of a set in one file; its name."""
    items = [said(one, family) for one in objects]
    path = folder / "objects.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return path
