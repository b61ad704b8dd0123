# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's rules, one object set a row, answered by the real programs for both families.

What is expected was derived by hand from the contract. A row reads: who sends to whom, what
becomes of it, the backends that may be picked, whether the sender is hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from dataplane.model.net import Family
from tests.program.explain import sets
from tests.program.explain.conftest import Explain
from tests.program.explain.sets import (
    NODES,
    endpoint,
    hinted,
    node,
    piece,
    pod,
    service,
)

HIDDEN, SEEN = True, False
BOTH = (*NODES, service(), piece("a1", "b1"))
AWAY = (*NODES, piece("b1"))
LOCAL = {"externalTrafficPolicy": "Local"}
INSIDE = {"internalTrafficPolicy": "Local"}
DOORS = {"here:30080": "NodePort", "balancer:80": "LoadBalancer", "external:80": "external IP"}


@dataclass(frozen=True)
class Row:
    objects: tuple[sets.Object, ...]
    source: str
    to: str
    verdict: str
    backends: str = ""
    masquerade: bool = False
    protocol: str = "tcp"
    only: Family | None = None
    config: dict[str, Any] = field(default_factory=dict)


def forward(
    objects: tuple[sets.Object, ...], source: str, to: str, backends: str, masquerade: bool, **more: Any
) -> Row:  # fmt: skip
    return Row(objects, source, to, "forward", backends, masquerade, **more)


def hints(*endpoints: sets.Object, **spec: Any) -> tuple[sets.Object, ...]:
    return (*NODES, service(**spec), piece(*endpoints))


def with_config(row: Row, **config: Any) -> Row:
    return Row(**{**vars(row), "config": {**row.config, **config}})


ROWS: dict[str, Row] = {
    # ---- doors, and who is hidden behind an address of the node ----
    "a pod to a ClusterIP": forward(BOTH, "a2", "web:80", "a1 b1", SEEN),
    "outside to a ClusterIP": forward(BOTH, "outside", "web:80", "a1 b1", HIDDEN),
    **{f"outside to {d}": forward(BOTH, "outside", to, "a1 b1", HIDDEN) for to, d in DOORS.items()},
    **{f"a pod to {d}": forward(BOTH, "a2", to, "a1 b1", HIDDEN) for to, d in DOORS.items()},
    "a pod that reaches itself": forward(
        (*NODES, service(), piece("a1")), "a1", "web:80", "a1", HIDDEN
    ),
    "a pod that may reach itself": forward(BOTH, "a1", "web:80", "a1 b1", SEEN),
    "masqueradeAll hides pods from a ClusterIP": with_config(
        forward(BOTH, "a2", "web:80", "a1 b1", HIDDEN), masqueradeAll=True
    ),
    "masqueradeAll adds nothing under Local": with_config(
        forward((*NODES, service(**LOCAL), piece("a1", "b1")), "a2", "balancer:80", "a1 b1", SEEN),
        masqueradeAll=True,
    ),
    "an unknown port of a ClusterIP": Row(BOTH, "a2", "web:81", "reject"),
    "an unknown port of a ClusterIP from outside": Row(BOTH, "outside", "web:81", "reject"),
    "a sender that nobody can be": Row(BOTH, "group", "web:80", "drop"),
    "another protocol of a ClusterIP": Row(BOTH, "a2", "web:80", "reject", protocol="udp"),
    "an unknown port of a load balancer's address": Row(BOTH, "outside", "balancer:81", "pass"),
    "an unknown port of an external IP": Row(BOTH, "a2", "external:81", "pass"),
    "an unknown NodePort": Row(BOTH, "outside", "here:30081", "pass"),
    "a ClusterIP that no Service has": with_config(
        Row(BOTH, "a2", "unassigned:80", "drop"), serviceCIDRs=["@services"]
    ),
    "from outside, a ClusterIP that no Service has": with_config(
        Row(BOTH, "outside", "unassigned:80", "drop"), serviceCIDRs=["@services"]
    ),
    "a pod to a pod": Row(BOTH, "a1", "b1:8080", "pass"),
    "a pod to a pod that no manifest names": Row(BOTH, "a1", "ghost:8080", "pass"),
    "a pod to the world": Row(BOTH, "a1", "outside:443", "pass"),
    "outside to a pod": Row(BOTH, "outside", "a1:8080", "pass"),
    "outside to another node": Row(BOTH, "outside", "there:30080", "pass"),
    # ---- the node itself, at its sockets ----
    "the node to a ClusterIP": forward(BOTH, "here", "web:80", "a1 b1", HIDDEN),
    "the node at its other address": forward(BOTH, "here2", "web:80", "a1 b1", HIDDEN),
    "the node at its router address": forward(BOTH, "router", "web:80", "a1 b1", SEEN),
    "the node at loopback": forward(BOTH, "loopback", "web:80", "a1 b1", HIDDEN),
    **{f"the node to {d}": forward(BOTH, "here", to, "a1 b1", HIDDEN) for to, d in DOORS.items()},
    "the node to an unknown port of a ClusterIP": Row(BOTH, "here", "web:81", "reject"),
    "the node to a Service without endpoints": Row((*NODES, service()), "here", "web:80", "reject"),
    "the node to itself": Row(BOTH, "here", "here:22", "pass"),
    "the node to a pod": Row(BOTH, "here", "b1:8080", "pass"),
    "the node to the world, over UDP": Row(BOTH, "here", "outside:53", "pass", protocol="udp"),
    # ---- Services that are left alone ----
    **{
        f"a Service labelled {label}": Row(
            (*NODES, service(labels={f"service.kubernetes.io/{label}": ""}), piece("a1")),
            "a2", "web:80", "pass",
        )
        for label in ("service-proxy-name", "headless")
    },
    **{
        f"its ClusterIP stays {who}'s to ask, in a known Service range": Row(
            (*NODES, service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
             piece("a1"), sets.service_cidrs("@services")),
            sender, "web:80", "pass",
        )
        for sender, who in (("a2", "a pod"), ("here", "the node"), ("outside", "an outsider"))
    },
    "a headless Service": Row(
        (*NODES, service(type="ClusterIP", clusterIP="None", ports=[{"name": "http", "port": 80}]),
         piece("a1")),
        "a2", "external:80", "pass",
    ),
    "an ExternalName Service": Row(
        (*NODES, service(type="ExternalName", clusterIP="", externalName="example.org",
                         ports=[{"name": "http", "port": 80}]), piece("a1")),
        "a2", "external:80", "pass",
    ),
    "an ingress address of mode Proxy": Row(
        (*NODES, service(ingress=[{"ip": "@balancer", "ipMode": "Proxy"}]), piece("a1")),
        "outside", "balancer:80", "pass",
    ),
    "an ingress address of mode VIP": forward(
        (*NODES, service(ingress=[{"hostname": "lb"}, {"ip": "@balancer", "ipMode": "VIP"}]),
         piece("a1")),
        "outside", "balancer:80", "a1", HIDDEN,
    ),
    # ---- slices ----
    "the number in the slice counts, and the name joins": forward(
        (*NODES, service(ports=[{"name": "http", "port": 80}, {"name": "admin", "port": 81}]),
         piece("a1", ports=[{"name": "admin", "port": 9}, {"name": "http", "port": 8081}])),
        "a2", "web:81", "a1:9", SEEN,
    ),
    "a port of another name does not join": Row(
        (*NODES, service(), piece("a1", ports=[{"name": "https", "port": 8080}])),
        "a2", "web:80", "reject",
    ),
    "a port of another protocol does not join": Row(
        (*NODES, service(), piece("a1", ports=[{"name": "http", "port": 8080, "protocol": "UDP"}])),
        "a2", "web:80", "reject",
    ),
    "a port without a name joins one without": forward(
        (*NODES, service(ports=[{"port": 80}]), piece("a1", ports=[{"port": 8080}])),
        "a2", "web:80", "a1", SEEN,
    ),
    "addresses[0] alone": forward(
        (*NODES, service(), piece({**endpoint("a1"), "addresses": ["@a1", "@b1"]})),
        "a2", "web:80", "a1", SEEN,
    ),
    "slices are united and duplicates count once": forward(
        (*NODES, service(), piece("a1", "b1"), piece("b1", "b2", name="web-2")),
        "a2", "web:80", "a1 b1 b2", SEEN,
    ),
    "another Service's slice": forward(
        (*NODES, service(), piece("a1"), piece("b1", name="x", service="other")),
        "a2", "web:80", "a1", SEEN,
    ),
    "an endpoint without a node's name is elsewhere": forward(
        (*NODES, service(**LOCAL), piece("a1", "nobody")), "outside", "balancer:80", "a1", SEEN
    ),
    "endpoints elsewhere, whatever the ranges say": forward(
        (*NODES, service(), piece("stray", "nobody", "lost", "far")),
        "a2", "web:80", "stray nobody lost far", SEEN,
    ),
    # ---- which endpoints ----
    "absent conditions mean ready": forward(
        (*NODES, service(), piece(endpoint("a1", "unsaid"), endpoint("b1", "unready"))),
        "a2", "web:80", "a1", SEEN,
    ),
    "ready ones go before draining ones": forward(
        (*NODES, service(), piece("b1", endpoint("a1", "draining"))), "a2", "web:80", "b1", SEEN
    ),
    "none is ready: those that serve while they terminate": forward(
        (*NODES, service(),
         piece(endpoint("a1", "draining"), endpoint("b1", "draining"), endpoint("b2", "dying"))),
        "a2", "web:80", "a1 b1", SEEN,
    ),
    "serving but neither ready nor terminating is never used": Row(
        (*NODES, service(), piece(endpoint("a1", "serving"))), "a2", "web:80", "reject"
    ),
    "no endpoint": Row((*NODES, service()), "outside", "here:30080", "reject"),
    "no endpoint, over UDP": Row(
        (*NODES, service(ports=[{"name": "dns", "port": 53, "protocol": "UDP"}])),
        "a2", "web:53", "reject", protocol="udp",
    ),
    # ---- topology ----
    "zone hints": forward(
        hints(hinted("a1", "east"), hinted("b1", "west")), "a2", "web:80", "a1", SEEN
    ),
    "zone hints bind outside senders too": forward(
        hints(hinted("a1", "west"), hinted("b1", "east")), "outside", "here:30080", "b1", HIDDEN
    ),
    "an endpoint without a hint: none counts": forward(
        hints(hinted("a1", "east"), hinted("b1")), "a2", "web:80", "a1 b1", SEEN
    ),
    "no hint names this zone: none counts": forward(
        hints(hinted("a1", "north"), hinted("b1", "west")), "a2", "web:80", "a1 b1", SEEN
    ),
    "an unready endpoint without a hint does not matter": forward(
        hints(hinted("a1", "east"), hinted("b1", "west"), hinted("b2", state="draining")),
        "a2", "web:80", "a1", SEEN,
    ),
    "node hints go before zone hints": forward(
        hints(hinted("a1", "east", nodes=("there",)), hinted("b1", "west", nodes=("here",))),
        "a2", "web:80", "b1", SEEN,
    ),
    "node hints that name others leave it to zone hints": forward(
        hints(hinted("a1", "west", nodes=("there",)), hinted("b1", "east", nodes=("there",))),
        "a2", "web:80", "b1", SEEN,
    ),
    "an empty zone label is none": forward(
        (node("here", "", pods="@pods-here"), sets.THERE, service(),
         piece(hinted("a1", "east"), hinted("b1", ""))),
        "a2", "web:80", "a1 b1", SEEN,
    ),
    "a Local policy ignores hints": forward(
        hints(hinted("a1", "west"), hinted("b1", "east"), **LOCAL),
        "outside", "balancer:80", "a1", SEEN,
    ),
    # ---- traffic policies ----
    "internalTrafficPolicy Local binds pods": forward(
        (*NODES, service(**INSIDE), piece("a1", "b1")), "a2", "web:80", "a1", SEEN
    ),
    "internalTrafficPolicy Local binds outside senders": forward(
        (*NODES, service(**INSIDE), piece("a1", "b1")), "outside", "web:80", "a1", HIDDEN
    ),
    "internalTrafficPolicy Local without an endpoint here": Row(
        (*AWAY, service(**INSIDE)), "a2", "web:80", "drop"
    ),
    "internalTrafficPolicy Local without any endpoint": Row(
        (*NODES, service(**INSIDE)), "a2", "web:80", "reject"
    ),
    "internalTrafficPolicy does not bind other doors": forward(
        (*AWAY, service(**INSIDE)), "outside", "here:30080", "b1", HIDDEN
    ),
    **{
        f"externalTrafficPolicy Local from outside to {d}": forward(
            (*NODES, service(**LOCAL), piece("a1", "b1")), "outside", to, "a1", SEEN
        )
        for to, d in DOORS.items()
    },
    **{
        f"externalTrafficPolicy Local without an endpoint here, {d}": Row(
            (*AWAY, service(**LOCAL)), "outside", to, "drop"
        )
        for to, d in DOORS.items()
    },
    **{
        f"externalTrafficPolicy Local: pods take the short cut to {d}": forward(
            (*NODES, service(**LOCAL), piece("a1", "b1")), "a2", to, "a1 b1", SEEN
        )
        for to, d in DOORS.items()
    },
    **{
        f"externalTrafficPolicy Local: the node takes the short cut to {d}": forward(
            (*NODES, service(**LOCAL), piece("a1", "b1")), "here", to, "a1 b1", HIDDEN
        )
        for to, d in DOORS.items()
    },
    "internalTrafficPolicy Local binds the node": forward(
        (*NODES, service(**INSIDE), piece("a1", "b1")), "here", "web:80", "a1", HIDDEN
    ),
    "internalTrafficPolicy Local, the node, no endpoint here": Row(
        (*AWAY, service(**INSIDE)), "here", "web:80", "drop"
    ),
    "externalTrafficPolicy Local does not bind the ClusterIP": forward(
        (*AWAY, service(**LOCAL)), "outside", "web:80", "b1", HIDDEN
    ),
    "externalTrafficPolicy Local without any endpoint": Row(
        (*NODES, service(**LOCAL)), "outside", "balancer:80", "reject"
    ),
    "externalTrafficPolicy Local: draining endpoints elsewhere exist": Row(
        (*NODES, service(**LOCAL), piece(endpoint("b1", "draining"))),
        "outside", "balancer:80", "drop",
    ),
    "externalTrafficPolicy Local: draining ones here, though another is ready": forward(
        (*NODES, service(**LOCAL), piece(endpoint("a1", "draining"), "b1")),
        "outside", "balancer:80", "a1", SEEN,
    ),
}  # fmt: skip
RANGES = (*NODES, service(loadBalancerSourceRanges=["@friends"]), piece("a1"))
OTHERS = (*NODES, service(loadBalancerSourceRanges=["@^friends"]), piece("a1"))
NODE_RANGE = (*NODES, service(loadBalancerSourceRanges=["@only-here"]), piece("a1"))
OTHER_RANGE = (*NODES, service(loadBalancerSourceRanges=["@only-here2"]), piece("a1"))
PORTS = [
    {"name": "tcp", "port": 53, "nodePort": 30053},
    {"name": "udp", "port": 53, "nodePort": 30053, "protocol": "UDP"},
    {"name": "sctp", "port": 53, "nodePort": 30053, "protocol": "SCTP"},
]
THREE = (
    *NODES,
    service(ports=PORTS),
    piece("a1", ports=[{"name": "tcp", "port": 1}, {"name": "udp", "port": 2, "protocol": "UDP"},
                       {"name": "sctp", "port": 3, "protocol": "SCTP"}]),
)  # fmt: skip
TWO = (  # the younger first
    *NODES,
    service("other", created="2026-02-01T00:00:00Z", ports=[{"name": "http", "port": 80}], ingress=[]),
    service(ports=[{"name": "http", "port": 80}]),
    piece("a1"),
    piece("b1", name="other-1", service="other"),
)  # fmt: skip
PUBLIC = {"type": "ExternalIP", "address": "@public"}
SEEN_FROM_AFAR = (
    {**sets.HERE, "status": {"addresses": [PUBLIC, *sets.HERE["status"]["addresses"]]}},
    sets.THERE, service(), piece("a1"),
)  # fmt: skip
PUBLISHED = (
    *NODES,
    pod("a1", {"containerPort": 81, "hostPort": 8888},
        {"containerPort": 53, "hostPort": 8888, "protocol": "UDP"},
        {"containerPort": 82, "hostPort": 9999, "hostIP": "@here2"}),
    pod("b1", {"containerPort": 81, "hostPort": 7777}),
    pod("a2", {"containerPort": 6666, "hostPort": 6666}, hostNetwork=True),
)  # fmt: skip
# a hand-made slice, or a selector that finds a hostNetwork pod
OVERLAY_PORTS = [{"name": "http", "port": 80, "protocol": "UDP", "nodePort": 30080}]
OVERLAY_SLICE: dict[str, Any] = {"ports": [{"name": "http", "port": 8472, "protocol": "UDP"}]}
THEIR_OVERLAY = (*NODES, service(ports=OVERLAY_PORTS), piece("there", **OVERLAY_SLICE))
OWN_OVERLAY = (*NODES, service(ports=OVERLAY_PORTS), piece("here", **OVERLAY_SLICE))
ASKED = (  # by hostIP
    *NODES,
    pod("a1", {"containerPort": 81, "hostPort": 1111, "hostIP": "@loopback"},
        {"containerPort": 82, "hostPort": 2222, "hostIP": "@loopback2"},
        {"containerPort": 83, "hostPort": 3333, "hostIP": "@any"},
        {"containerPort": 84, "hostPort": 4444, "hostIP": "@^any"},
        {"containerPort": 53, "hostPort": 53, "hostIP": "@outside"},
        {"containerPort": 53, "hostPort": 53, "hostIP": "@there", "protocol": "UDP"}),
)  # fmt: skip
OWN_8472 = (pod("a1", {"containerPort": 8472, "hostPort": 8472, "protocol": "UDP"}),)
BARE = (node("here", "east"), node("there", "west"), service(), piece("a1", "b1"))
ROWS |= {
    "source ranges admit": forward(RANGES, "friend", "balancer:80", "a1", HIDDEN),
    "source ranges keep others out": Row(RANGES, "outside", "balancer:80", "drop"),
    "source ranges admit the node's sockets by its primary address": forward(
        NODE_RANGE, "here2", "balancer:80", "a1", HIDDEN
    ),
    "source ranges of the node's other address admit none of its sockets": Row(
        OTHER_RANGE, "here2", "balancer:80", "drop"
    ),
    "source ranges keep pods out": Row(RANGES, "a2", "balancer:80", "drop"),
    "source ranges do not guard the NodePort": forward(RANGES, "outside", "here:30080", "a1", HIDDEN),
    "source ranges do not guard external IPs": forward(RANGES, "outside", "external:80", "a1", HIDDEN),
    "source ranges do not guard the ClusterIP": forward(RANGES, "a2", "web:80", "a1", SEEN),
    "source ranges of the other family leave this one open": forward(
        OTHERS, "outside", "balancer:80", "a1", HIDDEN
    ),
    "source ranges, and no endpoint": Row(
        (*NODES, service(loadBalancerSourceRanges=["@friends"])), "outside", "balancer:80", "reject"
    ),
    "source ranges that admit, and no endpoint": Row(
        (*NODES, service(loadBalancerSourceRanges=["@friends"])), "friend", "balancer:80", "reject"
    ),
    # ---- ports and protocols ----
    **{
        f"one port for three protocols: {protocol}": forward(
            THREE, "a2", "web:53", f"a1:{number}", SEEN, protocol=protocol
        )
        for number, protocol in enumerate(("tcp", "udp", "sctp"), start=1)
    },
    "the node over UDP": forward(THREE, "here", "web:53", "a1:2", HIDDEN, protocol="udp"),
    "the node over UDP to a port without a Service": Row(
        THREE, "here", "web:54", "reject", protocol="udp"
    ),
    # ---- by a Service, too, nobody sends what a node unpacks as another's ----
    **{
        f"{sender} to {whose} overlay port by a Service": Row(
            objects, source, to, "drop", protocol="udp"
        )
        for sender, source, to in (("outside", "outside", "here:30080"), ("a pod", "a2", "web:80"))
        for whose, objects in (("another node's", THEIR_OVERLAY), ("its node's", OWN_OVERLAY))
    },
    "in native mode the port is a Service's like any other": with_config(
        forward((*NODES, *OWN_8472), "outside", "here:8472", "a1:8472", SEEN, protocol="udp"),
        mode="native",
    ),
    "with an overlay it is the node's": Row(
        (*NODES, *OWN_8472), "outside", "here:8472", "pass", protocol="udp"
    ),
    "another node to where nodes send encapsulated packets": Row(
        BOTH, "there", "here:8472", "pass", protocol="udp"
    ),
    "another node to where they do not": Row(BOTH, "there", "here2:8472", "drop", protocol="udp"),
    "two Services ask for one external IP: the older has it": forward(
        TWO, "outside", "external:80", "a1", HIDDEN
    ),
    "the other is served at its ClusterIP": forward(TWO, "a2", "other:80", "b1", SEEN),
    # ---- where NodePorts are served ----
    "a NodePort is not on another address by default": Row(BOTH, "outside", "here2:30080", "pass"),
    "nodePortAddresses": with_config(
        forward(BOTH, "outside", "here2:30080", "a1 b1", HIDDEN), nodePortAddresses=["@nodes"]
    ),
    "nodePortAddresses of the other family count for that one": with_config(
        forward(BOTH, "outside", "here:30080", "a1 b1", HIDDEN), nodePortAddresses=["@^nodes"]
    ),
    "nodePortAddresses without this node's address": with_config(
        Row(BOTH, "outside", "here:30080", "pass"), nodePortAddresses=["@friends"]
    ),
    "localhostNodePorts, on IPv4 loopback": with_config(
        forward(BOTH, "loopback", "loopback:30080", "a1 b1", HIDDEN, only=Family.V4),
        nodePortAddresses=["@loopbacks", "@nodes"], localhostNodePorts=True,
    ),
    "localhostNodePorts, on IPv6 loopback never": with_config(
        Row(BOTH, "loopback", "loopback:30080", "pass", only=Family.V6),
        nodePortAddresses=["@loopbacks", "@nodes"], localhostNodePorts=True,
    ),
    "loopback has no NodePort by default": with_config(
        Row(BOTH, "here", "loopback:30080", "pass"), nodePortAddresses=["@all"]
    ),
    "a Node's ExternalIP is an address of it, but not its primary one": Row(
        SEEN_FROM_AFAR, "outside", "public:30080", "pass"
    ),
    "nodePortAddresses, on a Node's ExternalIP": with_config(
        forward(SEEN_FROM_AFAR, "outside", "public:30080", "a1", HIDDEN),
        nodePortAddresses=["@all"],
    ),
    "the node at its ExternalIP": forward(SEEN_FROM_AFAR, "public", "web:80", "a1", HIDDEN),
    # ---- host ports of pods in the manifests ----
    "a host port": forward(PUBLISHED, "outside", "here:8888", "a1:81", SEEN),
    "a host port, on another address": forward(PUBLISHED, "outside", "here2:8888", "a1:81", SEEN),
    "a host port over UDP": forward(
        PUBLISHED, "outside", "here:8888", "a1:53", SEEN, protocol="udp"
    ),
    "a host port, asked by a pod": forward(PUBLISHED, "a2", "here:8888", "a1:81", SEEN),
    "a host port, asked by its pod": forward(PUBLISHED, "a1", "here:8888", "a1:81", HIDDEN),
    "a host port, asked by the node": forward(PUBLISHED, "here", "here:8888", "a1:81", SEEN),
    "a host port with a hostIP": forward(PUBLISHED, "outside", "here2:9999", "a1:82", SEEN),
    "a hostIP is the only address": Row(PUBLISHED, "outside", "here:9999", "pass"),
    "a host port, on the node's loopback": forward(
        PUBLISHED, "here", "loopback:8888", "a1:81", SEEN, only=Family.V4
    ),
    "a host port, from loopback": forward(
        PUBLISHED, "loopback", "loopback:8888", "a1:81", SEEN, only=Family.V4
    ),
    "a host port over UDP, on the node's loopback": forward(
        PUBLISHED, "here", "loopback:8888", "a1:53", SEEN, only=Family.V4, protocol="udp"
    ),
    "a host port is on IPv6 loopback if it asks for it alone": Row(
        PUBLISHED, "here", "loopback:8888", "pass", only=Family.V6
    ),
    **{
        f"a host port on loopback is not for {who}": Row(PUBLISHED, who, "loopback:8888", "drop")
        for who in ("a1", "a2", "outside")
    },
    "a hostIP that is not loopback is not there": Row(PUBLISHED, "here", "loopback:9999", "pass"),
    "a hostIP on loopback": forward(ASKED, "here", "loopback:1111", "a1:81", SEEN),
    "a hostIP on loopback, from there": forward(ASKED, "loopback", "loopback:1111", "a1:81", SEEN),
    "a hostIP on loopback is there alone": Row(ASKED, "here", "here:1111", "pass"),
    "a hostIP on another address of loopback": forward(
        ASKED, "here", "loopback2:2222", "a1:82", SEEN
    ),
    "a hostIP on another address of loopback is not on the first": Row(
        ASKED, "here", "loopback:2222", "pass", only=Family.V4
    ),
    **{
        f"the unspecified hostIP is every address of its family: {name}": forward(
            ASKED, "here", f"{name}:3333", "a1:83", SEEN
        )
        for name in ("here", "here2")
    },
    "the unspecified hostIP, from outside": forward(ASKED, "outside", "here:3333", "a1:83", SEEN),
    "the unspecified hostIP, on the node's loopback": forward(
        ASKED, "here", "loopback:3333", "a1:83", SEEN, only=Family.V4
    ),
    **{
        f"the unspecified hostIP is not of the other family, asked by {who}": Row(
            ASKED, who, "here:4444", "pass"
        )
        for who in ("here", "a2", "outside")
    },
    **{
        f"a hostIP beyond the node takes nothing over: {to} asked by {who}": Row(
            ASKED, who, to, "pass", protocol=protocol
        )
        for to, protocol in (("outside:53", "tcp"), ("there:53", "udp"))
        for who in ("a1", "a2", "here", "friend")
    },
    "another node's pod has its host port there": Row(PUBLISHED, "outside", "here:7777", "pass"),
    "on the node's own network nothing is translated": Row(
        PUBLISHED, "outside", "here:6666", "pass"
    ),
    "a host port and an ExternalIP: the Service has it": forward(
        (*NODES, service(externalIPs=["@here"]), piece("a2"),
         pod("a1", {"containerPort": 81, "hostPort": 80})),
        "outside", "here:80", "a2", HIDDEN,
    ),
    # ---- backends that are nodes: the rules ask neither who they are ----
    **{
        f"outside to {door}, the backend being {who}": forward(
            (*NODES, service(), piece(*ends)), "outside", to, " ".join(ends), HIDDEN
        )
        for to, door in {**DOORS, "web:80": "ClusterIP"}.items()
        for ends, who in ((("here",), "the node itself"), (("here", "there"), "each node"))
    },
    "a pod to a ClusterIP, the backend being the node itself": forward(
        (*NODES, service(), piece("here")), "a1", "web:80", "here", SEEN
    ),
    "masqueradeAll, the backend being the node itself": with_config(
        forward((*NODES, service(), piece("here")), "a1", "web:80", "here", HIDDEN),
        masqueradeAll=True,
    ),
    "the node to a Service that is the node itself": forward(
        (*NODES, service(), piece("here")), "here", "web:80", "here", HIDDEN
    ),
    "externalTrafficPolicy Local, the backend being the node itself": forward(
        (*NODES, service(**LOCAL), piece("here", "there")), "outside", "here:30080", "here", SEEN
    ),
    "direct server return, the backend being the node itself": with_config(
        forward((*NODES, service(), piece("here")), "outside", "here:30080", "here", SEEN),
        loadBalancerMode="dsr",
    ),
    # ---- ServiceCIDR manifests ----
    **{
        f"a ServiceCIDR's address that no Service has, asked by {who}": Row(
            (*BOTH, sets.service_cidrs("@services")), who, "unassigned:80", "drop"
        )
        for who in ("a2", "here", "outside")
    },
    "the config's serviceCIDRs go before ServiceCIDR manifests": with_config(
        Row((*BOTH, sets.service_cidrs("@services")), "outside", "unassigned:80", "pass"),
        serviceCIDRs=["@friends"],
    ),
    "a ClusterIP outside every ServiceCIDR is not served": Row(
        (*BOTH, sets.service_cidrs("@friends")), "a2", "web:80", "pass"
    ),
    # ---- addresses that are the node's own in a cluster of ours ----
    "a pod that somebody gave the router's address": forward(
        (*NODES, service(), piece(endpoint("router", nodeName="here"))),
        "outside", "here:30080", "router", HIDDEN,
    ),
    "such a pod as client": forward(
        (*NODES, service(**LOCAL), piece(endpoint("router", nodeName="here"), "b1")),
        "router", "balancer:80", "router b1", SEEN,
    ),
    # ---- direct server return ----
    "direct server return hides nobody outside": with_config(
        forward(BOTH, "outside", "here:30080", "a1 b1", SEEN), loadBalancerMode="dsr"
    ),
    "direct server return changes nothing for a ClusterIP": with_config(
        forward(BOTH, "outside", "web:80", "a1 b1", HIDDEN), loadBalancerMode="dsr"
    ),
    # ---- nodes that lack something ----
    "Nodes without podCIDRs, a pod": forward(BARE, "a2", "web:80", "a1 b1", SEEN),
    "Nodes without podCIDRs, outside": forward(BARE, "outside", "here:30080", "a1 b1", HIDDEN),
    "no range of pods at all: everybody is outside": with_config(
        forward(BARE, "a1", "web:80", "a1 b1", HIDDEN), clusterCIDRs=None
    ),
    "a Service of a family that the node lacks": Row(
        (node("here", "east", addresses=("@^here",)), service(), piece("a1")), "a2", "web:80", "pass"
    ),
    "native routing": with_config(
        forward(BOTH, "outside", "here:30080", "a1 b1", HIDDEN), mode="native"
    ),
    "native routing, endpoints anywhere": with_config(
        forward((*NODES, service(), piece("stray", "nobody", "lost", "far")),
                "a2", "web:80", "stray nobody lost far", SEEN),
        mode="native",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rule(name: str, explain: Explain, family: Family) -> None:
    row = ROWS[name]
    if row.only not in (None, family):
        return
    found = explain(row.objects, row.source, row.to, row.protocol, **row.config)
    places = (place if ":" in place else f"{place}:8080" for place in row.backends.split())
    wanted = sorted(sets.said(f"@{place}", family) for place in places)
    answer = found.answer
    assert found.differences == ()
    assert (answer.verdict, sorted(answer.backends), answer.masquerade) == (
        row.verdict, wanted, row.masquerade,
    ), "\n".join(answer.steps)  # fmt: skip
    assert answer.service.startswith("shop/") or row.verdict != "forward"
    assert answer.reason
