# SPDX-License-Identifier: Apache-2.0
"""The rules by name: what each says, and whose it is.

`proxy` is Kubernetes' pkg/proxy, `docs` are Kubernetes' Services, networking pages. Must not
apply any rule.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a name for people and tests, what it says, and its source."""

    name: str
    words: str
    source: str


# ---- forwarded ----
CLUSTER_POLICY = Rule(
    "cluster-policy",
    "any ready endpoint of the Service, wherever it is",
    "docs: Service, traffic policies; proxy/topology.go",
)
NODE_HINTS = Rule(
    "node-hints",
    "the ready endpoints hinted to this node, since all have node hints and one names it",
    "KEP-3015; proxy/topology.go",
)
ZONE_HINTS = Rule(
    "zone-hints",
    "the ready endpoints hinted to this zone, since all have zone hints and one names it",
    "KEP-2433; proxy/topology.go",
)
TERMINATING = Rule(
    "terminating-endpoints",
    "no endpoint is ready: those that serve while they terminate",
    "KEP-1669; proxy/topology.go",
)
INTERNAL_LOCAL = Rule(
    "internal-traffic-policy-local",
    "the ready endpoints of this node, for internalTrafficPolicy is Local",
    "KEP-2086; docs: Service internal traffic policy",
)
EXTERNAL_LOCAL = Rule(
    "external-traffic-policy-local",
    "the ready endpoints of this node, for externalTrafficPolicy is Local",
    "docs: Service, external traffic policy",
)
LOCAL_TERMINATING = Rule(
    "local-terminating-endpoints",
    "no endpoint of this node is ready: those of it that serve while they terminate",
    "KEP-1669; proxy/topology.go",
)
HOST_PORT = Rule(
    "host-port",
    "a pod's hostPort: that pod",
    "docs: Pod, ports; CNI portmap",
)
AFFINITY = Rule(
    "session-affinity",
    "the endpoint that this client's last flow to this Service port went to, while it is usable",
    "docs: Service, session affinity",
)

# ---- refused ----
NO_ENDPOINTS = Rule(
    "no-endpoints",
    "the Service has no usable endpoint on any node",
    "docs: virtual IPs; proxy/iptables/proxier.go, REJECT",
)
NO_SUCH_PORT = Rule(
    "no-such-port",
    "the ClusterIP has no such port",
    "proxy/nftables/proxier.go, cluster-ips-check",
)
UNKNOWN_FLOW = Rule(
    "unknown-flow",
    "a TCP segment to a Service that opens nothing and belongs to no known flow",
    "docs/architecture.md",
)

# ---- dropped ----
INTERNAL_LOCAL_EMPTY = Rule(
    "internal-traffic-policy-local-empty",
    "internalTrafficPolicy is Local and no endpoint of this node is usable",
    "KEP-2086; proxy/iptables/proxier.go, DROP",
)
EXTERNAL_LOCAL_EMPTY = Rule(
    "external-traffic-policy-local-empty",
    "externalTrafficPolicy is Local and no endpoint of this node is usable",
    "docs: Service, external traffic policy; proxy/iptables/proxier.go, DROP",
)
SOURCE_RANGES = Rule(
    "load-balancer-source-ranges",
    "the client is in none of loadBalancerSourceRanges",
    "docs: Service; proxy/iptables/proxier.go, firewall chain",
)
UNASSIGNED = Rule(
    "unassigned-cluster-ip",
    "no Service has this address of the Service range",
    "proxy/nftables/proxier.go, cluster-ips-check",
)
IMPOSSIBLE_ADDRESS = Rule(
    "impossible-address",
    "loopback, unspecified, the gateway's, or a group's as sender: no packet here may have it",
    "RFC 1122 3.2.1.3; RFC 4291 2.5",
)
MULTICAST = Rule(
    "multicast",
    "multicast or broadcast beyond the pod's own link",
    "docs/architecture.md: pods have no multicast",
)
NO_SUCH_POD = Rule(
    "no-such-pod",
    "no pod has this address of the node's pod range",
    "docs/architecture.md",
)
NO_SUCH_NODE = Rule(
    "no-such-node",
    "no node has a pod range with this address",
    "docs/architecture.md",
)
OVERLAY_PORT = Rule(
    "pod-encapsulates",
    "pods may not send to a node's overlay port, nor anybody else by a Service",
    "docs/architecture.md",
)
MASQUERADE_PORT = Rule(
    "masquerade-port",
    "a masquerade port of this node without a flow, which its stack would reset;"
    " a process that listens there, of which explain knows none, gets it",
    "docs/architecture.md",
)

# ---- passed ----
HOST = Rule("host", "an address of this node: its own stack answers", "docs/architecture.md")
LINK = Rule("link", "an address of the link: the node's stack knows it", "docs/architecture.md")
POD = Rule("pod", "straight to a pod", "docs: cluster networking")
OTHER_PROXY = Rule(
    "other-proxy",
    "the ClusterIP of a Service that another proxy serves: the node's stack has it",
    "docs: service.kubernetes.io/service-proxy-name",
)
NETWORK = Rule("network", "outside the cluster", "docs: cluster networking")

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
