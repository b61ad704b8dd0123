# SPDX-License-Identifier: Apache-2.0
"""Narrow paths, hop limits and ICMP errors, with real sockets and both families.

pod a ─┐                                             ┌─ node2 ─┬─ pod c
pod b ─┴─ node1 ── eth0 ── bridge ── eth0 ── outside ┤         └─ pod d
                                      (routes,       └─ far  (a server of the world,
                                       1,280 bytes             behind a link of 1,280)
                                       to the nodes)

The nodes reach each other by way of `outside`, which takes 1,280 bytes in that direction.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import Cluster, sh
from tests.network.life import CLUSTER_IP, NODE_PORT, PORT, TARGET

FAR = {Family.V4: "198.51.100.2", Family.V6: "2001:db8:f::2"}
PODS = {Family.V4: "10.244.0.0/16", Family.V6: "fd00:244::/32"}
NARROW = 1280
MEGABYTE = 1 << 20


@pytest.fixture(scope="module", params=["vxlan", "native"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with life.two_nodes(request.param) as made:
        narrow(made)
        backends = {family: [life.pod_address(family, 2, 11)] for family in Family}
        made.write({"web": life.service("web", backends)})
        for family in Family:
            for node in made.nodes:
                await_route(made, node.pods["a" if node.number == 1 else "d"], family)
        yield made


def narrow(cluster: Cluster, mtu: int = NARROW) -> None:
    """Bytes of IP that `outside` takes to the nodes, and far."""
    outside = cluster.outside
    far = cluster._namespace("far")
    sh(f"ip -n {outside} link add far mtu {mtu} type veth peer name eth0 mtu {mtu} netns {far}")
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        sh(f"ip netns exec {outside} sysctl -qw net/{path}=1")
    for path in ("all", "eth0"):
        sh(f"ip netns exec {outside} sysctl -qw net/ipv4/conf/{path}/send_redirects=0")
    # It redirects nodes that go by it to each other, which its errors to them must not wait for.
    sh(f"ip netns exec {outside} sysctl -qw net/ipv6/icmp/ratelimit=0")
    # What it complains of to a Service comes back to it on the way to the client.
    sh(f"ip netns exec {outside} sysctl -qw net/ipv4/conf/eth0/accept_local=1")
    for ns, device, end in ((outside, "far", 1), (far, "eth0", 2)):
        sh(f"ip -n {ns} addr add 198.51.100.{end}/24 dev {device}")
        sh(f"ip -n {ns} addr add 2001:db8:f::{end}/64 dev {device} nodad")
        sh(f"ip -n {ns} link set {device} up")
    # It tells its peers of larger segments than the path takes, as one behind a hop more would.
    sh(f"ip -n {far} route add default via 198.51.100.1 advmss 1440")
    sh(f"ip -n {far} -6 route add default via 2001:db8:f::1 advmss 1440")
    for node in cluster.nodes:
        other = 3 - node.number
        for family in cluster.underlay:
            flag = f"-{int(family)}"
            via, to = life.OUTSIDE[family], life.node_address(family, other)
            sh(f"ip -n {node.ns} {flag} route add {to} via {via}")
            direct = life.node_address(family, node.number)
            sh(f"ip -n {outside} {flag} route add {direct} dev eth0 mtu {mtu}")
            if node.mode == "native":
                pods = f"10.244.{node.number}.0/24" if family is Family.V4 else (
                    f"fd00:244:{node.number}::/64")  # fmt: skip
                sh(f"ip -n {outside} {flag} route add {pods} via {direct} mtu {mtu}")


def await_route(cluster: Cluster, pod: str, family: Family) -> None:
    with life.bulk_server(cluster.nodes[1].pods["c"], family, TARGET):
        life.wait(life.serves(pod, family, CLUSTER_IP[family], PORT), what="for the Service")


# ---- narrow paths ----
def server(cluster: Cluster, where: str) -> str:
    """The namespace of a server."""
    return cluster.nodes[1].pods["c"] if where == "c" else f"pt{cluster.suffix}-far"


WAYS = {
    "pod to ClusterIP, served on another node": ("a", "c", CLUSTER_IP, PORT),
    "pod to a server of the world, masqueraded": ("a", "far", FAR, TARGET),
    "the world to NodePort, served on another node": (
        "far", "c", {f: life.node_address(f, 1) for f in Family}, NODE_PORT,
    ),
    "the world to NodePort, served on this node": (
        "far", "c", {f: life.node_address(f, 2) for f in Family}, NODE_PORT,
    ),
    "node to ClusterIP's pod on another node": (
        "node", "c", {f: life.pod_address(f, 2, 11) for f in Family}, TARGET,
    ),
    "pod to pod on another node": (
        "a", "c", {f: life.pod_address(f, 2, 11) for f in Family}, TARGET,
    ),
}  # fmt: skip


def client_of(cluster: Cluster, where: str) -> str:
    one = cluster.nodes[0]
    return {"node": one.ns, "far": f"pt{cluster.suffix}-far"}.get(where) or one.pods[where]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_bulk_goes_through_a_narrow_path(cluster: Cluster, family: Family, way: str) -> None:
    goes_through(cluster, family, way)


def goes_through(cluster: Cluster, family: Family, way: str) -> None:
    """Bulk by TCP, and a datagram in fragments, both there and back."""
    where, served, targets, port = WAYS[way]
    ns = client_of(cluster, where)
    with life.bulk_server(server(cluster, served), family, TARGET):
        life.bulk(life.connect(ns, family, targets[family], port), 2 * MEGABYTE)
        tries = life.datagram(
            life.connect(ns, family, targets[family], port, socket.SOCK_DGRAM), 6000
        )
        print(f"{way}: 2 MiB each way; 6,000 bytes of UDP at try {tries}")


@pytest.mark.parametrize("target", ["pod", "ClusterIP"])
@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_a_process_that_bound_its_nodes_address_reaches_a_pod_on_another_node(
    cluster: Cluster, family: Family, target: str
) -> None:
    """Both ways by the overlay if there is one: what is between nodes lets no pod's address through."""
    one, guarded = cluster.nodes[0], f"{int(family)} rule %s from {PODS[family]} prohibit"
    to = (life.pod_address(family, 2, 11), TARGET)
    if target == "ClusterIP":
        to = (CLUSTER_IP[family], PORT)
    with ExitStack() as closing:
        if one.mode == "vxlan":
            sh(f"ip -n {cluster.outside} -{guarded % 'add'}")
            closing.callback(sh, f"ip -n {cluster.outside} -{guarded % 'del'}")
        closing.enter_context(life.bulk_server(cluster.nodes[1].pods["c"], family, TARGET))
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            client = life.make(one.ns, family, kind)
            client.bind((life.node_address(family, 1), 0))
            client.settimeout(5)
            client.connect(to)
            if kind is socket.SOCK_STREAM:
                life.bulk(client, MEGABYTE)
            else:
                life.datagram(client, 1000)


# ---- hop limits and errors ----
RECVERR = {Family.V4: (socket.IPPROTO_IP, 11), Family.V6: (socket.IPPROTO_IPV6, 25)}
HOPS = {
    Family.V4: (socket.IPPROTO_IP, socket.IP_TTL),
    Family.V6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}
MSG_ERRQUEUE = 0x2000


def complaint(ns: str, family: Family, target: str, port: int, hops: int) -> tuple[int, str]:
    """errno and sender of the ICMP error that a datagram brings back to its socket."""
    with life.make(ns, family, socket.SOCK_DGRAM) as client:
        client.setsockopt(*RECVERR[family], 1)
        client.setsockopt(*HOPS[family], hops)
        client.connect((target, port))
        client.settimeout(2)
        client.send(b"who is there")
        try:
            client.recv(100)
        except TimeoutError as silence:
            raise AssertionError(f"nobody complained of {target} port {port}") from silence
        except OSError as error:
            number = error.errno or 0
        else:
            raise AssertionError(f"{target} port {port} answered")
        _, ancillary, _, _ = client.recvmsg(100, 512, MSG_ERRQUEUE)
        data = ancillary[-1][2]
        at = 16  # struct sock_extended_err, then the offender's address
        if family is Family.V4:
            return number, socket.inet_ntop(socket.AF_INET, data[at + 4 : at + 8])
        return number, socket.inet_ntop(socket.AF_INET6, data[at + 8 : at + 24])


@pytest.fixture(params=list(Family), ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


def test_each_hop_of_a_pods_packet_says_that_it_ended_there(
    cluster: Cluster, family: Family
) -> None:
    one = cluster.nodes[0]
    pod, native = one.pods["a"], one.mode == "native"
    routers = [life.pod_address(family, node, 1) for node in (1, 2)]
    outside = life.OUTSIDE[family]
    peer = life.pod_address(family, 2, 11)
    over = [routers[0], outside, life.node_address(family, 2)] if native else routers
    for hops, sender in enumerate(over, 1):
        for target, port in ((peer, 9), (CLUSTER_IP[family], PORT)):
            assert complaint(pod, family, target, port, hops) == (errno.EHOSTUNREACH, sender)
    for hops, sender in enumerate((routers[0], outside), 1):
        got = complaint(pod, family, FAR[family], 9, hops)
        assert got == (errno.EHOSTUNREACH, sender)


def test_each_hop_of_an_outside_clients_packet_says_that_it_ended_there(
    cluster: Cluster, family: Family
) -> None:
    far, target = f"pt{cluster.suffix}-far", life.node_address(family, 1)
    gateway = FAR[family][:-1] + "1"
    between = life.OUTSIDE[family] if cluster.nodes[0].mode == "native" else (
        life.pod_address(family, 2, 1))  # fmt: skip
    for hops, sender in enumerate((gateway, target), 1):
        assert complaint(far, family, target, NODE_PORT, hops) == (errno.EHOSTUNREACH, sender)
    deep = complaint(far, family, target, NODE_PORT, 3)
    print(f"at the third hop: {deep}")
    assert deep[0] == errno.EHOSTUNREACH
    assert deep[1] in (between, gateway)  # a router with two addresses answers by either


def test_a_refusal_reaches_the_socket_that_asked(cluster: Cluster, family: Family) -> None:
    """Nobody listens: a connected UDP socket gets ECONNREFUSED from whom it asked."""
    one = cluster.nodes[0]
    far = f"pt{cluster.suffix}-far"
    asked = [
        (one.pods["a"], CLUSTER_IP[family], PORT),
        (one.pods["b"], CLUSTER_IP[family], PORT),
        (cluster.nodes[1].pods["d"], CLUSTER_IP[family], PORT),
        (cluster.nodes[1].pods["c"], CLUSTER_IP[family], PORT),  # itself
        (one.pods["a"], FAR[family], 9),
        (one.pods["a"], life.pod_address(family, 2, 11), 9),
        (one.pods["a"], life.pod_address(family, 1, 12), 9),
        (one.pods["a"], life.node_address(family, 2), NODE_PORT),
        (cluster.outside, life.node_address(family, 1), NODE_PORT),
        (cluster.outside, life.node_address(family, 2), NODE_PORT),
        (far, life.node_address(family, 1), NODE_PORT),
    ]
    for ns, target, port in asked:
        got = complaint(ns, family, target, port, 64)
        print(f"{ns} asked {target} port {port}: {errno.errorcode[got[0]]} from {got[1]}")
        assert got == (errno.ECONNREFUSED, target)


# ---- checksums ----
def test_checksums_are_right_on_the_far_side(cluster: Cluster, family: Family) -> None:
    """With offloads on (a device may complete a partial sum) and off (nobody mends one)."""
    one, two = cluster.nodes
    far = f"pt{cluster.suffix}-far"
    places = {far: "eth0", two.ns: "eth0", two.pods["c"]: "eth0", one.pods["a"]: "eth0"}
    devices = [(one.pods["a"], "eth0"), (two.pods["c"], "eth0"), (one.ns, "eth0"), (two.ns, "eth0")]
    devices += [(cluster.outside, "eth0"), (cluster.outside, "far"), (far, "eth0")]
    devices += [(cluster.fabric, f"p{n}") for n in (1, 2, 100)]
    if one.mode == "vxlan":
        devices += [(one.ns, "podlane0"), (two.ns, "podlane0")]
    for setting in ("on", "off"):
        for ns, device in devices:
            sh(
                f"ip netns exec {ns} ethtool -K {device} tx {setting} rx {setting} gro {setting}",
                check=False,
            )
        captures = {ns: life.Capture(ns, device) for ns, device in places.items()}
        try:
            for way in ("pod to a server of the world, masqueraded",
                        "pod to ClusterIP, served on another node",
                        "the world to NodePort, served on another node"):  # fmt: skip
                where, served, targets, port = WAYS[way]
                ns = client_of(cluster, where)
                with life.bulk_server(server(cluster, served), family, TARGET):
                    life.bulk(life.connect(ns, family, targets[family], port), 1 << 17)
                    life.datagram(
                        life.connect(ns, family, targets[family], port, socket.SOCK_DGRAM), 3000
                    )
        finally:
            wrong = {ns: capture.close() for ns, capture in captures.items()}
        for ns, (seen, bad) in wrong.items():
            print(f"offloads {setting}: {ns}: {seen} packets, {len(bad)} wrong")
            assert seen > 10
            assert not bad, bad[:3]
        if setting == "on":
            assert any(capture.partial for capture in captures.values()), "no offload to speak of"
        else:
            assert not any(capture.partial for capture in captures.values())
