# SPDX-License-Identifier: Apache-2.0
"""Pods, Services and real sockets for the tests of a flow's life.

Sockets are this process's own, made inside a namespace (a socket stays where it was
made), so a test reads like a program that speaks with both ends. Every socket has a
time limit: nothing here waits for ever. Must not know maps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataplane.abi.layout import abi
from dataplane.kernel import netns
from dataplane.kernel.maps import Maps
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network.cluster import LINK, SIZES, AgentNode, Cluster

FAMILIES = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
SLOW = 15.0
PORT, TARGET, NODE_PORT = 80, 8080, 30080
CLUSTER_IP = {Family.V4: "10.96.0.80", Family.V6: "fd00:96::80"}
OUTSIDE = {Family.V4: "192.0.2.100", Family.V6: "2001:db8::100"}


def pod_address(family: Family, node: int, number: int) -> str:
    """Pod `number` of a node."""
    return f"10.244.{node}.{number}" if family is Family.V4 else f"fd00:244:{node}::{number}"


def node_address(family: Family, node: int) -> str:
    return f"{LINK[family]}{node}"


def both(node: int, number: int) -> str:
    """A pod's two addresses, as CNI is asked for them."""
    return ",".join(pod_address(family, node, number) for family in Family)


# ---- sockets ----
def make(ns: str, family: Family, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """A socket inside a namespace."""
    made = netns.run_in(
        Path("/run/netns") / ns, lambda: socket.socket(FAMILIES[family], kind, protocol)
    )
    made.settimeout(SLOW)
    return made


def connect(
    ns: str, family: Family, target: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    made = make(ns, family, kind)
    try:
        made.connect((target, port))
    except BaseException:
        made.close()
        raise
    return made


@contextlib.contextmanager
def bulk_server(ns: str, family: Family, port: int) -> Iterator[None]:
    """TCP: answers all that a client sends, at its end, with its digest and as many bytes.

    UDP: answers a datagram with itself.
    """
    stream, datagrams = make(ns, family, socket.SOCK_STREAM), make(ns, family, socket.SOCK_DGRAM)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for one in (stream, datagrams):
        if family is Family.V6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(("", port))
        one.setblocking(False)
    stream.listen(256)
    stop, stopped = os.pipe()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                waiting: list[socket.socket | int] = [stream, datagrams, stop]
                ready, _, _ = select.select(waiting, [], [])
                if stop in ready:
                    return
                if datagrams in ready:
                    data, client = datagrams.recvfrom(65535)
                    with contextlib.suppress(OSError):
                        datagrams.sendto(data, client)
                if stream in ready:
                    accepted, _ = stream.accept()
                    threading.Thread(target=_answer, args=(accepted,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        os.write(stopped, b"x")
        thread.join()
        for one in (stream, datagrams):
            one.close()
        os.close(stop)
        os.close(stopped)


def _answer(accepted: socket.socket) -> None:
    with accepted, contextlib.suppress(OSError):
        accepted.settimeout(SLOW)
        digest, size = hashlib.sha256(), 0
        while part := accepted.recv(1 << 16):
            digest.update(part)
            size += len(part)
        accepted.sendall(digest.digest() + bytes(size))


def bulk(client: socket.socket, size: int) -> None:
    """Send `size` bytes and get as many; both whole."""
    data = os.urandom(1 << 16) * (size // (1 << 16))
    with client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = bytearray()
        while part := client.recv(1 << 16):
            received += part
    assert received[:32] == hashlib.sha256(data).digest()
    assert len(received) == 32 + len(data)


def datagram(client: socket.socket, size: int, tries: int = 8) -> int:
    """A datagram there and back, tried again as senders of UDP must; which try got through."""
    with client:
        client.settimeout(0.4)
        for number in range(1, tries + 1):
            data = struct.pack("=I", number) + os.urandom(size - 4)
            try:
                client.send(data)
                if client.recv(65535) == data:
                    return number
            except OSError as error:  # too big as yet, or lost
                print(f"datagram of {size}: try {number}: {error}")
                time.sleep(0.05)
    raise AssertionError(f"no datagram of {size} bytes came back")


# ---- objects ----
def service(
    name: str, backends: Mapping[Family, Sequence[str]], *, protocols: Sequence[str] = ("TCP", "UDP"),
    node_port: int = NODE_PORT, addresses: Mapping[Family, str] = CLUSTER_IP, **spec: Any,
) -> list[Mapping[str, Any]]:  # fmt: skip
    """A dual-stack NodePort Service and its slices; a backend's port is TARGET."""
    ports = [
        {
            "name": p.lower(),
            "port": PORT,
            "targetPort": TARGET,
            "protocol": p,
            "nodePort": node_port,
        }
        for p in protocols
    ]
    objects: list[Mapping[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "test", "name": name},
            "spec": {
                "type": "NodePort",
                "clusterIP": addresses[Family.V4],
                "clusterIPs": [addresses[family] for family in Family],
                "ipFamilies": [f"IPv{int(family)}" for family in Family],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": ports,
                **spec,
            },
        }
    ]
    for family, there in backends.items():
        objects.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "namespace": "test",
                    "name": f"{name}-{int(family)}",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": f"IPv{int(family)}",
                "ports": [{"name": p.lower(), "port": TARGET, "protocol": p} for p in protocols],
                "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in there],
            }
        )
    return objects


def wait(done: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"waited in vain {what}"
        time.sleep(0.02)


def serves(ns: str, family: Family, target: str, port: int) -> Callable[[], bool]:
    """Whether a TCP connection is accepted there."""

    def asked() -> bool:
        with make(ns, family, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
            client.settimeout(1)
            client.connect((target, port))
            return True
        return False

    return asked


def drops(node: AgentNode) -> Counter[str]:
    """Packets dropped on a node, by the reason's name."""
    layout, found = abi(Family.V4), Counter[str]()
    reasons, places = layout.enum("drop"), layout.constant("DROP_MAX")
    maps = Maps(node.folder / "bpf")
    try:
        for family in Family:
            for place, counter in maps.counters(Table("drops", family)).items():
                name = reasons(place % places).name.removeprefix("DROP_").lower()
                found[name] += counter.packets
    finally:
        maps.close()
    return found


@contextlib.contextmanager
def two_nodes(
    mode: str = "vxlan", flows: int = 1 << 18, underlay: Sequence[Family] = tuple(Family)
) -> Iterator[Cluster]:
    """Pods a and b on node 1, c and d on node 2; agents run. flows: entries of that table."""
    made = Cluster(2, mode, underlay)
    try:
        for node in made.nodes:
            node.write_config(mapSizes={**SIZES, "flows": flows})
        made.start()
        one, two = made.nodes
        one.add_pod("a", both(1, 11))
        one.add_pod("b", both(1, 12))
        two.add_pod("c", both(2, 11))
        two.add_pod("d", both(2, 12))
        yield made
    finally:
        made.close()


# ---- captures ----
_ETH_P_ALL, _SOL_PACKET, _PACKET_AUXDATA, _OUTGOING = 3, 263, 8, 4
_CSUM_NOT_READY = 1 << 3
_SO_RCVBUFFORCE = 33
_VXLAN = 8472
_SUMS = {socket.IPPROTO_TCP: 16, socket.IPPROTO_UDP: 6, socket.IPPROTO_ICMPV6: 2}


class Capture:
    """What comes in by a device, each packet's checksums verified as it comes."""

    def __init__(self, ns: str, device: str) -> None:
        self.seen, self.partial, self.bad = 0, 0, list[str]()
        self._first: list[bytes] = []
        self._socket = netns.run_in(
            Path("/run/netns") / ns,
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)),
        )
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        netns.run_in(Path("/run/netns") / ns, lambda: self._socket.bind((device, _ETH_P_ALL)))
        self._socket.settimeout(0.1)
        self._ending = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def close(self) -> tuple[int, list[str]]:
        """How many packets came, and which were wrong."""
        self._ending = True
        self._thread.join()
        self._socket.close()
        return self.seen, self.bad

    def holds(self, words: bytes) -> bool:
        """Whether one of the first packets had these bytes in it."""
        return any(words in packet for packet in self._first)

    def _read(self) -> None:
        while True:
            try:
                packet, ancillary, _, sender = self._socket.recvmsg(1 << 17, 64)
            except TimeoutError:
                if self._ending:
                    return
                continue
            if sender[2] == _OUTGOING:
                continue
            (status,) = struct.unpack_from("=I", ancillary[0][2])
            partial = bool(status & _CSUM_NOT_READY)
            self.seen += 1
            if self.seen < 100:
                self._first.append(packet)
            self.partial += partial
            self.bad += [f"{words}: {packet[:100].hex()}" for words in wrong(packet[14:], partial)]


def wrong(packet: bytes, partial: bool) -> Iterator[str]:
    """What is wrong with the checksums of an IP packet and of what it carries.

    A partial sum (to be completed by a device) must be the pseudo header's.
    """
    if packet[0] >> 4 == 4:
        size, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0] or len(packet)
        protocol, ends = packet[9], packet[12:20]
        if _sum(packet[:size]) != 0xFFFF:
            yield "IPv4 header"
        if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
            return  # a fragment
    elif packet[0] >> 4 == 6:
        size, protocol, ends = 40, packet[6], packet[8:40]
        total = struct.unpack_from("!H", packet, 4)[0] + 40
        total = total if total > 40 else len(packet)
    else:
        return
    body = packet[size:total]
    if protocol == socket.IPPROTO_ICMP:
        if _sum(body) != 0xFFFF:
            yield "ICMP"
        return
    if protocol not in _SUMS:
        return
    tunnelled = protocol == socket.IPPROTO_UDP and body[2:4] == _VXLAN.to_bytes(2, "big")
    place = _SUMS[protocol]
    pseudo = ends + struct.pack("!II", len(body), protocol)
    if tunnelled:
        yield from wrong(body[8 + 8 + 14 :], partial)
        if body[6:8] == bytes(2):
            return
    if partial and not tunnelled:
        if _sum(pseudo) != int.from_bytes(body[place : place + 2], "big"):
            yield f"partial sum of protocol {protocol}"
    elif not partial and _sum(pseudo + body) != 0xFFFF:
        yield f"protocol {protocol}"


def _sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
