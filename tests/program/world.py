# SPDX-License-Identifier: Apache-2.0
"""The cluster that the tests' packets travel: who is where, under which names.

    client ──┐                                             ┌── remote
    neighbour┤ node "here" ─── overlay (VXLAN) or by ─── node "there"
             │ router        next hop, on the uplink       │ router-there
             │   ├ uplink ───────── switch ─────────────┘ uplink
             │   └ uplink2 ──┐          │
                             └──── outside, outside2

Each name is an address of either family, so one table of packets serves both. Services
are in SERVICES. Must not know the programs: only what an agent would write for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from dataplane.model.constants import BackendFlag, FrontendKind, RouteFlag, RouteKind, ServiceFlag
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import RouteKey, RouteRow

TCP, UDP, SCTP = 6, 17, 132

# ---- addresses: name to (IPv4, IPv6) ----
CAST = {
    # pods
    "client": ("10.244.1.10", "fd00:244:1::10"),
    "neighbour": ("10.244.1.11", "fd00:244:1::11"),
    "remote": ("10.244.2.10", "fd00:244:2::10"),
    # nodes, as the underlay knows them, and their router addresses
    "here": ("192.0.2.1", "2001:db8:2::1"),
    "here2": ("198.51.100.1", "2001:db8:5::1"),
    "there": ("192.0.2.2", "2001:db8:2::2"),
    "router": ("10.244.1.1", "fd00:244:1::1"),
    "router-there": ("10.244.2.1", "fd00:244:2::1"),
    # the world
    "outside": ("203.0.113.9", "2001:db8:9::9"),
    "outside2": ("203.0.113.10", "2001:db8:9::10"),
    "kept-world": ("198.18.0.7", "2001:db8:18::7"),  # in nonMasqueradeCIDRs
    "lan": ("172.17.0.5", "fd00:17::5"),  # behind a bridge of the node that is not ours
    # where nobody is
    "ghost": ("10.244.1.99", "fd00:244:1::99"),  # in this node's range, no pod has it
    "nowhere": ("10.244.9.9", "fd00:244:9::9"),  # in the cluster's range, no node has it
    "no-service": ("10.96.0.250", "fd00:96::250"),
    # special
    "gateway": ("169.254.1.1", "fe80::1"),
    "unspecified": ("0.0.0.0", "::"),
    "loopback": ("127.0.0.1", "::1"),
    "group": ("224.0.0.251", "ff02::fb"),
    "broadcast": ("255.255.255.255", "ff02::1"),
    # Services
    "near": ("10.96.0.1", "fd00:96::1"),
    "far": ("10.96.0.2", "fd00:96::2"),
    "self": ("10.96.0.3", "fd00:96::3"),
    "empty": ("10.96.0.4", "fd00:96::4"),
    "twin": ("10.96.0.5", "fd00:96::5"),
    "kept": ("10.96.0.7", "fd00:96::7"),
    "away": ("10.96.0.8", "fd00:96::8"),
    "inside": ("10.96.0.9", "fd00:96::9"),
    "pair": ("10.96.0.10", "fd00:96::10"),
    "daemon": ("10.96.0.12", "fd00:96::12"),
    "guarded": ("10.96.0.15", "fd00:96::15"),
    "balancer": ("203.0.113.100", "2001:db8:9::100"),
    "external": ("203.0.113.101", "2001:db8:9::101"),
}


def addresses(family: Family) -> dict[str, IPAddress]:
    return {name: ip_address(pair[family is Family.V6]) for name, pair in CAST.items()}


# ---- devices ----
CLIENT, NEIGHBOUR, REMOTE, STRANGER = 101, 102, 201, 199
UPLINK, UPLINK2, OVERLAY = 111, 112, 113
UPLINK_THERE, OVERLAY_THERE = 211, 213

PODS = {"client": CLIENT, "neighbour": NEIGHBOUR, "remote": REMOTE}  # by host veth
POD_IDS = {"client": 1, "neighbour": 2, "remote": 3}

GATEWAY_MAC = bytes.fromhex("0a706c000002")  # of every host veth
OVERLAY_MAC = bytes.fromhex("0a706c000001")
SWITCH_MAC = bytes.fromhex("02000000fe01")
STRANGER_MAC = bytes.fromhex("02000000fe99")


def mac_of(device: int) -> bytes:
    """Of a pod's side of its veth, or of an uplink."""
    return bytes.fromhex("0200000000") + bytes([device])


DEVICE_MACS = {
    **dict.fromkeys((CLIENT, NEIGHBOUR, REMOTE, STRANGER), GATEWAY_MAC),
    **{device: mac_of(device) for device in (UPLINK, UPLINK2, UPLINK_THERE)},
    **dict.fromkeys((OVERLAY, OVERLAY_THERE), OVERLAY_MAC),
}

# ---- numbers of a node ----
VNI = 7000
VXLAN_PORT = 8472
MASQUERADE_MIN, MASQUERADE_MAX = 61000, 64999
POD_MTU = 1450
HASH_SEED = 0x5EED

# ---- ranges ----
POD_RANGE = {
    "here": ("10.244.1.0/24", "fd00:244:1::/64"),
    "there": ("10.244.2.0/24", "fd00:244:2::/64"),
}
CLUSTER_RANGE = ("10.244.0.0/16", "fd00:244::/32")
SERVICE_RANGE = ("10.96.0.0/16", "fd00:96::/112")
KEPT_RANGE = ("198.18.0.0/15", "2001:db8:18::/48")
LAN_RANGE = ("172.17.0.0/16", "fd00:17::/64")
EVERYWHERE = ("0.0.0.0/0", "::/0")

# ---- Services ----
USABLE = int(BackendFlag.LISTED | BackendFlag.SERVING | BackendFlag.SELECTABLE)
RETAINED = int(BackendFlag.LISTED)
DRAINING = int(BackendFlag.LISTED | BackendFlag.SERVING)
GONE = 0


@dataclass(frozen=True, slots=True)
class Backend:
    id: int
    pod: str
    port: int

    @property
    def generation(self) -> int:
        return 1000 + self.id


@dataclass(frozen=True, slots=True)
class Service:
    """One Service port: frontends are (address, port, kind). ranges are of its list that flags
    names."""

    id: int
    protocol: int
    frontends: tuple[tuple[str, int, FrontendKind], ...]
    backends: tuple[Backend, ...] = ()
    flags: ServiceFlag = field(default=ServiceFlag(0))
    affinity_seconds: int = 0
    ranges: tuple[tuple[str, str], ...] = ()  # loadBalancerSourceRanges of each family


def _cluster(name: str, port: int) -> tuple[str, int, FrontendKind]:
    return name, port, FrontendKind.CLUSTER_IP


def _node(port: int) -> tuple[str, int, FrontendKind]:
    return "here", port, FrontendKind.NODE_PORT


NEAR = Service(
    1,
    TCP,
    (
        _cluster("near", 80),
        _node(30080),
        ("balancer", 80, FrontendKind.LOAD_BALANCER),
        ("external", 80, FrontendKind.EXTERNAL_IP),
    ),
    (Backend(1, "neighbour", 8080),),
)
FAR = Service(2, TCP, (_cluster("far", 80), _node(30081)), (Backend(2, "remote", 8080),))
SELF = Service(3, TCP, (_cluster("self", 80),), (Backend(3, "client", 8080),))
EMPTY = Service(4, TCP, (_cluster("empty", 80), _node(30084)))
EMPTY_UDP = Service(5, UDP, (_cluster("empty", 53), _node(30054)))
NEAR_UDP = Service(6, UDP, (_cluster("near", 53), _node(30053)), (Backend(6, "neighbour", 5353),))
KEPT = Service(  # externalTrafficPolicy: Local, with an endpoint on this node
    7,
    TCP,
    (_cluster("kept", 80), _node(30087), ("balancer", 8087, FrontendKind.LOAD_BALANCER)),
    (Backend(7, "neighbour", 8087),),
    ServiceFlag.EXTERNAL_LOCAL,
)
AWAY = Service(  # externalTrafficPolicy: Local, no endpoint on this node
    8, TCP, (_cluster("away", 80), _node(30088)), (Backend(8, "remote", 8088),),
    ServiceFlag.EXTERNAL_LOCAL,
)  # fmt: skip
INSIDE = Service(  # internalTrafficPolicy: Local, no endpoint on this node
    9, TCP, (_cluster("inside", 80),), (Backend(9, "remote", 8089),), ServiceFlag.INTERNAL_LOCAL
)
PAIR = Service(
    10, TCP, (_cluster("pair", 80),), (Backend(10, "neighbour", 9080), Backend(11, "remote", 9080))
)
PAIR_UDP = Service(
    11, UDP, (_cluster("pair", 53),), (Backend(12, "neighbour", 9053), Backend(13, "remote", 9053))
)
DAEMON = Service(  # its endpoint is in the node's own namespace (hostNetwork)
    12, TCP, (_cluster("daemon", 80), _node(30092)), (Backend(14, "here", 10250),)
)
TWIN = Service(  # another Service with NEAR's very backend
    13, TCP, (_cluster("twin", 80),), (Backend(15, "neighbour", 8080),)
)
HOST_PORT = Service(
    14, TCP, (("here", 8888, FrontendKind.HOST_PORT),), (Backend(16, "neighbour", 8888),)
)
GUARDED = Service(  # loadBalancerSourceRanges: outside, client and the balancer's own address
    15,
    TCP,
    (
        _cluster("guarded", 80),
        _node(30015),
        ("balancer", 8015, FrontendKind.LOAD_BALANCER),
        ("external", 8015, FrontendKind.EXTERNAL_IP),
    ),
    (Backend(17, "neighbour", 8015),),
    ServiceFlag.SOURCE_RANGES | ServiceFlag.RANGES_ODD,
    ranges=(
        ("203.0.113.8/31", "2001:db8:9::8/127"),
        ("10.244.1.10/32", "fd00:244:1::10/128"),
        ("203.0.113.100/32", "2001:db8:9::100/128"),
    ),
)
GUARDED_EMPTY = Service(  # and no endpoint
    16,
    TCP,
    (("balancer", 8016, FrontendKind.LOAD_BALANCER),),
    (),
    ServiceFlag.SOURCE_RANGES,
    ranges=(("203.0.113.8/31", "2001:db8:9::8/127"),),
)
NEAR_SCTP = Service(
    17, SCTP, (_cluster("near", 80), _node(30080)), (Backend(18, "neighbour", 3868),)
)
FAR_SCTP = Service(18, SCTP, (_cluster("far", 80), _node(30081)), (Backend(19, "remote", 80),))
SERVICES = (
    NEAR, FAR, SELF, EMPTY, EMPTY_UDP, NEAR_UDP, KEPT, AWAY, INSIDE, PAIR, PAIR_UDP, DAEMON, TWIN,
    HOST_PORT, GUARDED, GUARDED_EMPTY, NEAR_SCTP, FAR_SCTP,
)  # fmt: skip
SLOTS_PER_SERVICE = 32
EPOCH = 1


# ---- routes of one node ----
@dataclass(frozen=True, slots=True)
class Underlay:
    """How nodes reach each other; outer: family of the tunnel."""

    vxlan: bool = True
    outer: Family = Family.V4


def routes(
    node: str, family: Family, underlay: Underlay, uplinks: tuple[int, ...]
) -> dict[RouteKey, RouteRow]:
    """What the agent would write of one family, for `here` or `there`."""
    at = family is Family.V6
    other = "there" if node == "here" else "here"
    names, rows = addresses(family), {}

    def put(
        prefix: str,
        kind: RouteKind,
        flags: int = 0,
        ifindex: int = 0,
        hop: IPAddress | None = None,
    ) -> None:
        network = ip_network(prefix)
        rows[RouteKey(network.prefixlen, network.network_address)] = RouteRow(
            int(kind), int(flags), ifindex, hop
        )

    put(EVERYWHERE[at], RouteKind.WORLD, RouteFlag.MASQUERADE, uplinks[0])
    put(KEPT_RANGE[at], RouteKind.WORLD, 0, uplinks[0])
    put(LAN_RANGE[at], RouteKind.STACK)
    put(CLUSTER_RANGE[at], RouteKind.UNREACHABLE, RouteFlag.CLUSTER)
    put(SERVICE_RANGE[at], RouteKind.SERVICE)
    put(POD_RANGE[node][at], RouteKind.LOCAL, RouteFlag.CLUSTER)
    if underlay.vxlan:
        hop = addresses(underlay.outer)[other]
        put(POD_RANGE[other][at], RouteKind.TUNNEL, RouteFlag.CLUSTER, 0, hop)
        put(str(names[other]), RouteKind.WORLD, RouteFlag.MASQUERADE, uplinks[0], hop)
    else:
        put(POD_RANGE[other][at], RouteKind.NATIVE, RouteFlag.CLUSTER, uplinks[0], names[other])
        put(str(names[other]), RouteKind.WORLD, 0, uplinks[0])
    own = ("here", "here2", "router") if node == "here" else ("there", "router-there")
    for name in own:
        put(str(names[name]), RouteKind.NODE)
    return rows


def host_route(address: IPAddress) -> RouteKey:
    """The key of a route to one address."""
    return RouteKey(address.max_prefixlen, address)


def masqueraded(device: int) -> RouteRow:
    """A route to the world by an uplink."""
    return RouteRow(int(RouteKind.WORLD), int(RouteFlag.MASQUERADE), device)


def logs(number: int, pod: str) -> Service:
    """A Service at the load balancer's address, which was nobody's or another's before."""
    door = (("balancer", 514, FrontendKind.LOAD_BALANCER),)
    return Service(number, UDP, door, (Backend(2 * number, pod, 514),))
