# SPDX-License-Identifier: Apache-2.0
"""What one client's sockets see when a Service changes under them, and which endpoint remembers it.

pod a (asks)  ─┐                                ┌─ pod c (serves)
pod b (serves)┴─ node1 ── eth0 ── bridge ── eth0 ── node2 ─┴─ pod d (serves)
                                 │
                          eth0 ── outside (asks)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel.maps import Maps
from dataplane.lab import inside, state
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network import life
from tests.network.cluster import SIZES, Cluster, sh
from tests.network.life import CLUSTER_IP, NODE_PORT, PORT, SLOW

SERVERS = {"b": (1, 12), "c": (2, 11), "d": (2, 12)}
DRAINS = {"ready": False, "serving": True, "terminating": True}
KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
families = pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with life.two_nodes() as made:
        pods = names(made)
        for name in SERVERS:
            sh(f"ip netns exec {pods[name]} {inside.STAND_IN} serve {name} tcp:8080 udp:8080")
        try:
            yield made
        finally:
            for name in SERVERS:
                for pid in state.processes(Path("/run/netns") / pods[name]):
                    os.kill(pid, signal.SIGKILL)


def names(cluster: Cluster) -> dict[str, str]:
    """Namespaces of pods, and of the host outside."""
    pods = {name: ns for node in cluster.nodes for name, ns in node.pods.items()}
    return {**pods, "outside": cluster.outside}


def put(cluster: Cluster, *ready: str, draining: Sequence[str] = (), **spec: Any) -> None:
    """The Service with these endpoints; no word of when they are written."""
    listed = [*ready, *draining]
    addresses = {f: [life.pod_address(f, *SERVERS[name]) for name in listed] for f in Family}
    objects: list[Any] = life.service("web", addresses, **spec)
    for one in objects:
        for endpoint, name in zip(one.get("endpoints", ()), listed, strict=False):
            node = f"node{SERVERS[name][0]}"
            endpoint["nodeName"] = node
            if name in draining:
                endpoint["conditions"] = DRAINS
    cluster.write({"web": objects})


def ask(
    cluster: Cluster, family: Family, who: str = "a", to: str = "", port: int = PORT,
    kind: str = "TCP", seconds: float = SLOW,
) -> str:  # fmt: skip
    """The pod that answers a new flow; why none does."""
    try:
        with life.make(names(cluster)[who], family, KINDS[kind]) as client:
            client.settimeout(seconds)
            client.connect((to or CLUSTER_IP[family], port))
            return say(client)
    except OSError as error:
        return type(error).__name__


def say(client: socket.socket) -> str:
    """The pod at the other end of an open flow."""
    client.send(b"who\n")
    return str(json.loads(client.recv(4096))["pod"])


def all_of(cluster: Cluster, family: Family, *wanted: str, **asked: Any) -> None:
    """Wait until new flows reach these pods and no others."""

    def right() -> bool:
        return {ask(cluster, family, seconds=1, **asked) for _ in range(12)} == set(wanted)

    life.wait(right, 20, f"for {wanted}")


class Talk:
    """One datagram socket that asks without end, and what it heard: (when, pod or error)."""

    def __init__(self, ns: str, family: Family) -> None:
        self.heard: list[tuple[float, str]] = []
        self._socket = life.connect(ns, family, CLUSTER_IP[family], PORT, socket.SOCK_DGRAM)
        self._socket.settimeout(1)
        self._ending = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending:
            try:
                heard = say(self._socket)
            except OSError as error:
                heard = type(error).__name__
                time.sleep(0.001)
            self.heard.append((time.monotonic(), heard))

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()
        self._socket.close()

    def last(self) -> str:
        return self.heard[-1][1] if self.heard else ""

    def errors(self) -> list[str]:
        return [heard for _, heard in self.heard if heard not in SERVERS]

    def gap(self) -> float:
        """The longest time between two answers, ms."""
        times = [when for when, heard in self.heard if heard in SERVERS]
        return max(after - before for before, after in itertools.pairwise(times)) * 1000


# ---- after change ----
@families
def test_datagrams_of_a_removed_backend_move_without_a_gap(
    cluster: Cluster, family: Family
) -> None:
    put(cluster, "b", "c")
    all_of(cluster, family, "b", "c", kind="UDP")
    with Talk(names(cluster)["a"], family) as talk:
        for _ in range(4):
            life.wait(lambda: talk.last() in SERVERS)
            left = talk.last()
            goes = "c" if left == "b" else "b"
            put(cluster, goes)
            life.wait(lambda goes=goes: talk.last() == goes, what=f"for {goes}")  # type: ignore[misc]
            put(cluster, "b", "c")
            all_of(cluster, family, "b", "c", kind="UDP")
    print(
        f"IPv{family:d}: {len(talk.heard)} datagrams, 4 removals: {len(talk.errors())} without"
        f" an answer, longest time between two answers {talk.gap():.1f} ms"
    )
    assert not talk.errors()


@families
def test_datagrams_find_a_service_again_that_was_scaled_to_zero(
    cluster: Cluster, family: Family
) -> None:
    """Pitfall 14: one socket that never stops; it is told that nobody is there."""
    put(cluster, "b")
    all_of(cluster, family, "b", kind="UDP")
    with Talk(names(cluster)["a"], family) as talk:
        for back in ("c", "b"):
            life.wait(lambda: talk.last() in SERVERS)
            put(cluster)
            life.wait(lambda: talk.last() == "ConnectionRefusedError", what="to be refused")
            began = time.monotonic()
            put(cluster, back)
            life.wait(lambda back=back: talk.last() == back, what=f"for {back}")  # type: ignore[misc]
            heard = list(talk.heard)
            first = next(n for n, (when, by) in enumerate(heard) if when > began and by == back)
            last = max(n for n, (_, by) in enumerate(heard[:first]) if by in SERVERS)
            print(
                f"IPv{family:d}: scaled to zero and back to {back}: a gap of {first - last - 1}"
                f" datagrams, each refused at once; an answer {(heard[first][0] - began) * 1000:.0f}"
                f" ms after the file, {(heard[first][0] - heard[last][0]) * 1000:.0f} ms after the"
                " one before"
            )
    assert set(talk.errors()) == {"ConnectionRefusedError"}


@families
def test_a_connection_to_a_removed_backend_is_reset_and_others_stay(
    cluster: Cluster, family: Family
) -> None:
    put(cluster, "b", "c")
    all_of(cluster, family, "b", "c")
    with connections(cluster, family) as open_:
        put(cluster, "c")
        all_of(cluster, family, "c")
        with pytest.raises(ConnectionResetError):
            say(open_["b"])
        assert say(open_["c"]) == "c"


@families
def test_a_connection_to_a_draining_backend_lives_as_long_as_it_does(
    cluster: Cluster, family: Family
) -> None:
    put(cluster, "b", "c")
    all_of(cluster, family, "b", "c")
    with connections(cluster, family) as open_:
        put(cluster, "c", draining=["b"])
        all_of(cluster, family, "c")
        assert {say(open_["b"]) for _ in range(20)} == {"b"}
        put(cluster, draining=["b", "c"])  # those that drain serve when nobody else does
        all_of(cluster, family, "b", "c")
        assert (say(open_["b"]), say(open_["c"])) == ("b", "c")
        put(cluster, "c")
        all_of(cluster, family, "c")
        with pytest.raises(ConnectionResetError):
            say(open_["b"])


@contextlib.contextmanager
def connections(cluster: Cluster, family: Family) -> Iterator[Mapping[str, socket.socket]]:
    """An open one to each of b and c, by their names."""
    with contextlib.ExitStack() as kept:
        found: dict[str, socket.socket] = {}
        for _ in range(200):
            one = life.connect(names(cluster)["a"], family, CLUSTER_IP[family], PORT)
            found.setdefault(say(kept.enter_context(one)), one)
            if len(found) == 2:
                break
        yield found


@families
def test_a_service_made_again_with_the_same_address_inherits_nothing(
    cluster: Cluster, family: Family
) -> None:
    sticky = {"sessionAffinity": "ClientIP"}
    put(cluster, "b", **sticky)
    all_of(cluster, family, "b")
    before = memories(cluster, family)
    connection = life.connect(names(cluster)["a"], family, CLUSTER_IP[family], PORT)
    with connection, Talk(names(cluster)["a"], family) as talk:
        assert say(connection) == "b"
        life.wait(lambda: talk.last() == "b")
        cluster.write({"web": []})
        life.wait(lambda: talk.last() not in SERVERS, what="for the Service to go")
        put(cluster, "b", "c", **sticky)
        life.wait(lambda: talk.last() in SERVERS, what="for the Service to be back")
        with pytest.raises(ConnectionResetError):
            say(connection)
        # The endpoint is the same, the memory is another: it was made by the first flow after it.
        ask(cluster, family)
        after = memories(cluster, family)
    assert after
    assert not before & after


def memories(cluster: Cluster, family: Family) -> set[int]:
    """Generations of the backends that node 1's clients are remembered at."""
    with contextlib.closing(Maps(cluster.nodes[0].folder / "bpf")) as maps:
        known = {row.generation for _, row in maps.items(Table("backends", family)) if row.flags}
        return known & {row.generation for _, row in maps.items(Table("affinity", family))}


# ---- session affinity ----
@families
def test_a_client_is_remembered(cluster: Cluster, family: Family) -> None:
    """Over all addresses of the port, over a killed agent and a map of another size."""
    one = cluster.nodes[0]
    node, sticky = life.node_address(family, 1), {"sessionAffinity": "ClientIP"}
    put(cluster, "b", "c", "d", **sticky)
    wait_for_set(cluster, 3)

    def answers(who: str) -> set[str]:
        ways = [(node, NODE_PORT)] if who == "outside" else [("", PORT), (node, NODE_PORT)]
        return {ask(cluster, family, who, to, port) for to, port in ways for _ in range(8)}

    remembered = {who: answers(who) for who in ("a", "outside")}
    print(f"IPv{family:d}: remembered at {remembered}")
    assert all(len(pods) == 1 for pods in remembered.values())
    one.stop(signal.SIGKILL)
    assert {who: answers(who) for who in remembered} == remembered
    one.write_config(mapSizes={**SIZES, "flows": 1 << 18, "affinity": 1000})
    one.start(cluster.manifests)
    assert {who: answers(who) for who in remembered} == remembered
    # Others that come and go move nobody.
    (pod,) = remembered["a"]
    other = next(name for name in SERVERS if name != pod)
    put(cluster, *(name for name in SERVERS if name != other), **sticky)
    wait_for_set(cluster, 2)
    assert answers("a") == {pod}
    # One's own does, at once, and stays away.
    put(cluster, *(name for name in SERVERS if name != pod), **sticky)
    wait_for_set(cluster, 2, without=life.pod_address(family, *SERVERS[pod]))
    moved = answers("a")
    assert len(moved) == 1
    assert moved != {pod}
    put(cluster, *SERVERS, **sticky)
    wait_for_set(cluster, 3)
    assert answers("a") == moved


def wait_for_set(cluster: Cluster, count: int, without: str = "") -> None:
    """Until the TCP port's set on node 1 has so many backends, in both families."""

    def right() -> bool:
        with contextlib.closing(Maps(cluster.nodes[0].folder / "bpf")) as maps:
            for family in Family:
                rows = [r for _, r in maps.items(Table("backends", family)) if r.flags]
                mine = [r for r in rows if r.protocol == socket.IPPROTO_TCP]
                if len(mine) != count or any(str(r.address) == without for r in mine):
                    return False
        return True

    life.wait(right, 20, f"for {count} endpoints")


@families
def test_a_client_that_stays_away_is_balanced_anew(cluster: Cluster, family: Family) -> None:
    short = {"clientIP": {"timeoutSeconds": 1}}
    put(cluster, "b", "c", "d", sessionAffinity="ClientIP", sessionAffinityConfig=short)
    wait_for_set(cluster, 3)
    found: set[str] = set()
    until = time.monotonic() + SLOW
    while len(found) < 2 and time.monotonic() < until:
        found.add(ask(cluster, family))
        time.sleep(1.1)
    assert len(found) == 2


@families
def test_a_memory_of_another_node_is_not_used_under_the_local_policy(
    cluster: Cluster, family: Family
) -> None:
    node, sticky = life.node_address(family, 1), {"sessionAffinity": "ClientIP"}
    put(cluster, "c", "d", **sticky)
    wait_for_set(cluster, 2)
    assert ask(cluster, family, "outside", node, NODE_PORT) in ("c", "d")
    put(cluster, *SERVERS, **sticky)
    wait_for_set(cluster, 3)
    assert ask(cluster, family, "outside", node, NODE_PORT) in ("c", "d")
    put(cluster, *SERVERS, externalTrafficPolicy="Local", **sticky)
    life.wait(lambda: ask(cluster, family, "outside", node, NODE_PORT) == "b", 20, "for the policy")
    assert {ask(cluster, family, "outside", node, NODE_PORT) for _ in range(8)} == {"b"}
