# SPDX-License-Identifier: Apache-2.0
"""The node's own sockets: every kind of frontend, both families, and what follows a change.

process ─ node1 ─┬─ pod a       node2 ─┬─ pod c
                 └─ pod b              └─ pod d

Sockets are made in node1's namespace, as its processes and hostNetwork pods would make
them; all cgroups of this machine pass the programs of both nodes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from dataplane.kernel import bpf
from dataplane.kernel.maps import Maps
from dataplane.model.constants import BackendFlag
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network import life
from tests.network.cluster import SIZES, AgentNode, Cluster
from tests.network.life import CLUSTER_IP, FAMILIES, NODE_PORT, PORT, TARGET, pod_address

_SO_COOKIE = 57
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = {STREAM: "TCP", DGRAM: "UDP"}
EMPTY_IP = {Family.V4: "10.96.0.81", Family.V6: "fd00:96::81"}
LOCAL_IP = {Family.V4: "10.96.0.82", Family.V6: "fd00:96::82"}
BALANCER = {Family.V4: "203.0.113.80", Family.V6: "2001:db8:203::80"}
EXTERNAL = {Family.V4: "203.0.113.81", Family.V6: "2001:db8:203::81"}
EVERY = [(family, kind) for family in Family for kind in KINDS]
every = pytest.mark.parametrize(
    ("family", "kind"), EVERY, ids=[f"{KINDS[kind]}-{int(family)}" for family, kind in EVERY]
)


def objects(*pods: tuple[int, int], **spec: Any) -> list[Mapping[str, Any]]:
    """A Service of every type; one without endpoints; one whose endpoints are elsewhere."""
    backends = {family: [pod_address(family, *pod) for pod in pods] for family in Family}
    web, *slices = life.service("web", backends, type="LoadBalancer",
                                externalIPs=list(EXTERNAL.values()),
                                externalTrafficPolicy="Local", **spec)  # fmt: skip
    ingress = [{"ip": address, "ipMode": "VIP"} for address in BALANCER.values()]
    found = [{**web, "status": {"loadBalancer": {"ingress": ingress}}}, *slices]
    nowhere: dict[Family, list[str]] = {family: [] for family in Family}
    found += life.service("empty", nowhere, node_port=30081, addresses=EMPTY_IP)
    away = {family: [pod_address(family, 2, 12)] for family in Family}
    found += life.service(
        "away", away, node_port=30082, addresses=LOCAL_IP, internalTrafficPolicy="Local"
    )
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with life.two_nodes() as made, ExitStack() as closing:
        for node in made.nodes:
            for pod in node.pods.values():
                for family in Family:
                    closing.enter_context(life.bulk_server(pod, family, TARGET))
        yield made


@pytest.fixture
def node(cluster: Cluster) -> AgentNode:
    """node1, with pods a and c behind the Service."""
    cluster.write({"web": objects((1, 11), (2, 11))})
    one = cluster.nodes[0]
    for family, kind in EVERY:
        life.wait(_reaches(one, family, kind, CLUSTER_IP[family], PORT), what="for the Service")
    for family in Family:
        life.wait(partial(_serves_both, one, family), what="for both endpoints")
    return one


def _backends(one: AgentNode, family: Family) -> int:
    """Endpoints of the first Service that new flows may choose."""
    web = {pod_address(family, *pod) for pod in ((1, 11), (2, 11))}
    with _maps(one) as maps:
        rows = [row for _, row in maps.items(Table("backends", family))]
        usable = BackendFlag.SELECTABLE
        return len({str(row.address) for row in rows if row.flags & usable} & web)


def _serves_both(one: AgentNode, family: Family) -> bool:
    return _backends(one, family) == 2


@contextlib.contextmanager
def _maps(one: AgentNode) -> Iterator[Maps]:
    maps = Maps(one.folder / "bpf")
    try:
        yield maps
    finally:
        maps.close()


def _exchange(client: socket.socket, kind: int, words: bytes = b"hello") -> bytes:
    """Send something and get it back, by a connected socket."""
    client.sendall(words)
    if kind == STREAM:
        client.shutdown(socket.SHUT_WR)
        data = b""
        while part := client.recv(4096):
            data += part
        return data
    return client.recv(4096)


def _reaches(
    one: AgentNode, family: Family, kind: int, target: str, port: int
) -> Callable[[], bool]:
    def asked() -> bool:
        with (
            contextlib.suppress(OSError),
            life.connect(one.ns, family, target, port, socket.SocketKind(kind)) as client,
        ):
            client.settimeout(1)
            return bool(_exchange(client, kind))
        return False

    return asked


def _flows(one: AgentNode) -> int:
    with _maps(one) as maps:
        return sum(c.flows for c in maps.counters(Table("service_counters")).values())


@every
def test_a_process_of_the_node_reaches_every_frontend(
    node: AgentNode, family: Family, kind: int
) -> None:
    """externalTrafficPolicy Local does not bind the node: it is sent to all endpoints."""
    targets = [
        (CLUSTER_IP[family], PORT),
        (BALANCER[family], PORT),
        (EXTERNAL[family], PORT),
        (life.node_address(family, 1), NODE_PORT),
    ]
    for target, port in targets:
        before, seen = _flows(node), set()
        for _ in range(24):
            with life.connect(node.ns, family, target, port, socket.SocketKind(kind)) as client:
                assert client.getpeername()[:2] == (target, port)
                local = client.getsockname()[0]
                reply = _exchange(client, kind)
                assert reply if kind == STREAM else reply == b"hello"
                seen.add(_backend(node, family, client))
            assert local == ("10.244.1.1" if family is Family.V4 else "fd00:244:1::1")
        assert seen == {pod_address(family, 1, 11), pod_address(family, 2, 11)}
        assert _flows(node) - before == 24


def _cookie(client: socket.socket) -> int:
    return int.from_bytes(client.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)


def _backend(one: AgentNode, family: Family, client: socket.socket) -> str:
    """Where the socket's record says that it went; empty if it was closed since, with its backend."""
    with _maps(one) as maps:
        record = maps.get(Table("sockets", family), _cookie(client))
        return str(record.backend) if record is not None else ""


@pytest.mark.parametrize("family", list(Family))
def test_affinity_takes_the_node_for_one_client(
    cluster: Cluster, node: AgentNode, family: Family
) -> None:
    """Whichever process asks, and whichever of the Service port's addresses it asks for."""
    cluster.write({"web": objects((1, 11), (2, 11), sessionAffinity="ClientIP")})

    def seen() -> set[str]:
        found = set()
        with contextlib.suppress(OSError):  # the backend goes in this very moment
            for target in (CLUSTER_IP[family], EXTERNAL[family]) * 6:
                with life.connect(node.ns, family, target, PORT, STREAM) as client:
                    found.add(_backend(node, family, client))
            return found
        return set()

    life.wait(lambda: len(seen()) == 1, what="until all go to one backend")
    first = seen()
    assert len(first) == 1
    kept = (1, 11) if first == {pod_address(family, 2, 11)} else (2, 11)
    cluster.write({"web": objects(kept, sessionAffinity="ClientIP")})
    life.wait(lambda: seen() == {pod_address(family, *kept)}, what="until the other one is asked")


@pytest.mark.parametrize("family", list(Family))
def test_a_datagram_s_answer_comes_from_the_address_that_was_asked(
    node: AgentNode, family: Family
) -> None:
    with life.make(node.ns, family, DGRAM) as client:
        client.settimeout(2)
        for target in (CLUSTER_IP, BALANCER, EXTERNAL):
            client.sendto(b"question", (target[family], PORT))
            data, sender = client.recvfrom(99)
            assert (data, sender[:2]) == (b"question", (target[family], PORT))
        # What is no Service's is as it is.
        client.sendto(b"direct", (pod_address(family, 1, 12), TARGET))
        assert client.recvfrom(99)[1][:2] == (pod_address(family, 1, 12), TARGET)


@pytest.mark.parametrize("kind", list(KINDS), ids=KINDS.values())
def test_an_ipv6_socket_that_talks_ipv4_is_translated_as_ipv4(node: AgentNode, kind: int) -> None:
    target = f"::ffff:{CLUSTER_IP[Family.V4]}"
    with life.connect(node.ns, Family.V6, target, PORT, socket.SocketKind(kind)) as client:
        assert client.getpeername()[:2] == (target, PORT)
        assert _exchange(client, kind)
    if kind == DGRAM:
        with life.make(node.ns, Family.V6, DGRAM) as client:
            client.settimeout(2)
            client.sendto(b"question", (target, PORT))
            assert client.recvfrom(99)[1][:2] == (target, PORT)


@every
def test_what_has_no_endpoint_is_refused_at_once(
    node: AgentNode, family: Family, kind: int
) -> None:
    """No endpoint or no such port: refused; endpoints elsewhere only, under Local: not permitted."""
    refused, dropped = ConnectionRefusedError, PermissionError
    cases = [
        (EMPTY_IP[family], PORT, refused, "no_backend"),
        (life.node_address(family, 1), 30081, refused, "no_backend"),
        (CLUSTER_IP[family], PORT + 1, refused, "no_port"),
        (LOCAL_IP[family], PORT, dropped, "no_local_backend"),
        (EMPTY_IP[family][:-2] + "99", PORT, dropped, "no_service"),
    ]
    for target, port, error, reason in cases:
        before = life.drops(node)
        with pytest.raises(error):
            life.connect(node.ns, family, target, port, socket.SocketKind(kind)).close()
        assert life.drops(node) - before == {reason: 1}
        if kind == DGRAM:
            with life.make(node.ns, family, DGRAM) as client, pytest.raises(error):
                client.sendto(b"x", (target, port))


def test_sockets_of_other_namespaces_are_untouched(node: AgentNode) -> None:
    """A process of this machine, and one of the other node, whose programs are its own."""
    for family in Family:
        with socket.socket(FAMILIES[family], DGRAM) as mine:
            # Refused, if it were the node's; this machine may have no way there.
            assert mine.connect_ex((EMPTY_IP[family], PORT)) in (0, errno.ENETUNREACH)
    before = _flows(node)
    with life.connect(node.pods["a"], Family.V4, CLUSTER_IP[Family.V4], PORT, DGRAM) as pod:
        assert _exchange(pod, DGRAM) == b"hello"
        with _maps(node) as maps:
            assert maps.get(Table("sockets", Family.V4), _cookie(pod)) is None
    assert _flows(node) == before + 1  # by its packet


def test_a_socket_is_forgotten_when_it_is_closed(node: AgentNode) -> None:
    client = life.connect(node.ns, Family.V4, CLUSTER_IP[Family.V4], PORT)
    cookie = _cookie(client)
    with _maps(node) as maps:
        assert maps.get(Table("sockets", Family.V4), cookie) is not None
        client.close()
        assert maps.get(Table("sockets", Family.V4), cookie) is None


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_a_socket_that_connects_again_is_called_what_it_asked_for_last(
    node: AgentNode, family: Family
) -> None:
    with life.connect(node.ns, family, CLUSTER_IP[family], PORT, DGRAM) as client:
        client.settimeout(5)
        assert _exchange(client, DGRAM) == b"hello"
        assert client.getpeername()[:2] == (CLUSTER_IP[family], PORT)
        backend = _backend(node, family, client)
        client.connect((backend, TARGET))
        assert client.getpeername()[:2] == (backend, TARGET)
        assert _exchange(client, DGRAM) == b"hello"
        with _maps(node) as maps:
            assert maps.get(Table("sockets", family), _cookie(client)) is None
        client.connect((CLUSTER_IP[family], PORT))
        assert client.getpeername()[:2] == (CLUSTER_IP[family], PORT)
        assert _exchange(client, DGRAM) == b"hello"


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_a_connected_socket_that_names_its_frontend_is_answered_after_a_change(
    cluster: Cluster, node: AgentNode, family: Family
) -> None:
    """It hears its own backend only, though it would be another one's by now."""
    target = CLUSTER_IP[family], PORT
    cluster.write({"web": objects((1, 11))})
    life.wait(lambda: _backends(node, family) == 1)
    with ExitStack() as closing:
        clients = [
            closing.enter_context(life.connect(node.ns, family, *target, DGRAM)) for _ in range(12)
        ]
        cluster.write({"web": objects((1, 11), (2, 11))})
        life.wait(partial(_serves_both, node, family))
        for client in clients:
            client.settimeout(2)
            client.sendto(b"question", target)
            assert client.recvfrom(99)[1][:2] == target


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
def test_a_backend_that_is_asked_by_its_own_address_shows_it(
    node: AgentNode, family: Family, connected: bool
) -> None:
    """Also by a socket that asked it as a Service before, connected or not."""
    service = CLUSTER_IP[family], PORT
    pods = [pod_address(family, *pod) for pod in ((1, 11), (2, 11))]
    with life.make(node.ns, family, DGRAM) as client:
        client.settimeout(2)
        asked: list[tuple[str, int]] = [service, *((pod, TARGET) for pod in pods), service]
        if connected:
            client.connect(service)
            assert _exchange(client, DGRAM) == b"hello"
            # Linux lets an IPv6 socket that was connected hear nobody but that peer.
            asked = [(_backend(node, family, client), TARGET)]
            assert ctypes.CDLL(None).connect(client.fileno(), bytes(16), 16) == 0  # AF_UNSPEC
        for target in asked:
            client.sendto(b"question", target)
            assert client.recvfrom(99)[1][:2] == target


@every
def test_a_connected_socket_is_closed_within_a_second_of_its_backend_s_removal(
    cluster: Cluster, node: AgentNode, family: Family, kind: int
) -> None:
    with ExitStack() as closing:
        clients = [
            closing.enter_context(
                life.connect(node.ns, family, CLUSTER_IP[family], PORT, socket.SocketKind(kind))
            )
            for _ in range(16)
        ]
        if family is Family.V4:
            mapped = f"::ffff:{CLUSTER_IP[family]}"
            clients += [
                closing.enter_context(
                    life.connect(node.ns, Family.V6, mapped, PORT, socket.SocketKind(kind))
                )
                for _ in range(8)
            ]
        at = [_backend(node, family, client) for client in clients]
        removed = pod_address(family, 2, 11)
        assert removed in at
        cluster.write({"web": objects((1, 11))})
        began = time.monotonic()
        life.wait(lambda: _backends(node, family) == 1)
        for client, backend in zip(clients, at, strict=True):
            ready, _, _ = select.select([client], [], [], 1 if backend == removed else 0)
            assert bool(ready) == (backend == removed)
            if ready:
                with pytest.raises(ConnectionAbortedError):
                    client.recv(1)
            else:
                assert _exchange(client, kind)
        print(f"closed {time.monotonic() - began:.2f} s after the manifest was written")


@pytest.mark.parametrize("family", list(Family))
def test_a_client_that_never_stops_loses_no_datagram_to_a_removal(
    cluster: Cluster, node: AgentNode, family: Family
) -> None:
    """One datagram a millisecond from a socket that is not connected."""
    sent = 0
    gaps: dict[str, int] = {}
    with life.make(node.ns, family, DGRAM) as client:
        client.settimeout(1)

        def ask() -> str:
            nonlocal sent
            sent += 1
            words = sent.to_bytes(8, "big")
            try:
                client.sendto(words, (CLUSTER_IP[family], PORT))
                return "answered" if client.recv(99) == words else "lost"
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "lost"

        def talk(seconds: float) -> list[str]:
            until, found = time.monotonic() + seconds, []
            while time.monotonic() < until:
                found.append(ask())
                time.sleep(0.001)
            return found

        assert set(talk(0.2)) == {"answered"}
        cluster.write({"web": objects((1, 11))})
        found = talk(1.0)
        gaps["removal"] = len(found) - found.count("answered")
        assert _backends(node, family) == 1
        cluster.write({"web": objects()})
        life.wait(lambda: ask() == "refused", what="until there is no endpoint")
        assert set(talk(0.2)) == {"refused"}
        cluster.write({"web": objects((1, 11), (2, 11))})
        life.wait(lambda: ask() == "answered", what="until there are endpoints again")
        found = talk(0.5)
        gaps["back"] = len(found) - found.count("answered")
    print(f"gap in datagrams, IPv{int(family)}: {gaps} of {sent}")
    assert gaps == {"removal": 0, "back": 0}


def _links(one: AgentNode) -> dict[str, bpf.LinkInfo]:
    found = {}
    for path in sorted((one.folder / "bpf/v1/link").iterdir()):
        fd = bpf.obj_get(path)
        found[path.name] = bpf.link_info(fd)
        os.close(fd)
    return found


def test_the_programs_stay_without_an_agent_and_a_restart_changes_none(node: AgentNode) -> None:
    before = _links(node)
    assert len(before) == 13
    with life.connect(node.ns, Family.V4, CLUSTER_IP[Family.V4], PORT, DGRAM) as kept:
        node.stop(signal.SIGKILL)
        for family, kind in EVERY:
            assert _reaches(node, family, kind, CLUSTER_IP[family], PORT)()
        assert _exchange(kept, DGRAM) == b"hello"
        (node.folder / "bpf/v1/link/connect_4").unlink()
        gone = _reaches(node, Family.V4, DGRAM, CLUSTER_IP[Family.V4], PORT)
        life.wait(lambda: not gone(), what="until the kernel lets go of the link")
        node.start(node.folder.parent / "manifests")
        assert _exchange(kept, DGRAM) == b"hello"
    after = _links(node)
    assert after.pop("connect_4").id != before.pop("connect_4").id
    assert after == before


def test_loopback_serves_node_ports_if_it_is_asked_to(node: AgentNode) -> None:
    loopback = "127.0.0.1"
    assert not _reaches(node, Family.V4, STREAM, loopback, NODE_PORT)()
    node.stop()
    ranges = {"nodePortAddresses": ["127.0.0.0/8", "192.0.2.0/24"], "localhostNodePorts": True}
    node.write_config(mapSizes=SIZES, **ranges)
    node.start(node.folder.parent / "manifests")
    for kind in KINDS:
        assert _reaches(node, Family.V4, kind, loopback, NODE_PORT)()
        assert not _reaches(node, Family.V6, kind, "::1", NODE_PORT)()
