# SPDX-License-Identifier: Apache-2.0
"""Tables and a bpffs that are too small, read-only or full, and a pod that wants it all.

pod a ─┐                                ┌─ pod c (serves)
pod b ─┴─ node1 ── eth0 ── bridge ── eth0 ── node2 ─┴─ pod d

The flow tables have 1,000 entries where that is what a test is about. PODLANE_SOAK=1
opens 10,000 flows where 1,500 are opened else.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import signal
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane.abi.codec import codec
from dataplane.kernel import bpf
from dataplane.kernel.maps import Maps
from dataplane.lab import inside, state
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network import life
from tests.network.cluster import PODLANE, AgentNode, Cluster, sh
from tests.network.life import CLUSTER_IP, PORT, TARGET

SOAK = bool(os.environ.get("PODLANE_SOAK"))
FLOWS = 10_000 if SOAK else 1_500
SMALL = 1_000
ROUNDS = 3


def write_service(cluster: Cluster) -> None:
    backends = {f: [life.pod_address(f, 2, 11), life.pod_address(f, 1, 12)] for f in Family}
    cluster.write({"web": life.service("web", backends)})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with life.two_nodes(flows=SMALL) as made:
        write_service(made)
        pods = [made.nodes[0].pods["b"], made.nodes[1].pods["c"]]
        for ns in pods:
            sh(f"ip netns exec {ns} {inside.STAND_IN} serve {ns} tcp:{TARGET}")
        try:
            for family in Family:
                asked = life.serves(made.nodes[0].pods["a"], family, CLUSTER_IP[family], PORT)
                life.wait(asked)
            yield made
        finally:
            for ns in pods:
                for pid in state.processes(Path("/run/netns") / ns):
                    os.kill(pid, signal.SIGKILL)


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def answer(client: socket.socket) -> dict[str, Any]:
    """To one request on a kept connection."""
    client.sendall(REQUEST)
    found: dict[str, Any] = json.loads(client.recv(4096).partition(b"\r\n\r\n")[2])
    return found


def ask(client: socket.socket) -> str:
    """Who answered one request, if it answered this very client."""
    found = answer(client)
    assert found["clientPort"] == client.getsockname()[1], "another flow's answer"
    return str(found["pod"])


@pytest.mark.parametrize("family", list(Family), ids=["IPv4", "IPv6"])
def test_more_live_flows_than_entries_are_right_or_end_with_a_reset(
    cluster: Cluster, family: Family
) -> None:
    """Each flow is asked in turn, so nearly every packet meets an evicted entry."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert most > FLOWS + 100, f"only {most} files may be open, one a flow is needed"
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ns = cluster.nodes[0].pods["a"]
    open_: dict[socket.socket, str] = {}
    came: Counter[str] = Counter()
    with lifted(cluster.nodes[0]):
        for _ in range(FLOWS):
            client = life.connect(ns, family, CLUSTER_IP[family], PORT)
            client.settimeout(3)
            open_[client] = ""
        for _, (client, before) in itertools.product(range(ROUNDS), list(open_.items())):
            if client.fileno() < 0:
                continue
            try:
                who = ask(client)
            except OSError as error:
                came[str(error)] += 1
                client.close()
                continue
            assert before in ("", who), "another server in the middle of a flow"
            came["right"] += 1
        for client in open_:
            client.close()
    print(f"{FLOWS} flows, {SMALL} entries, {ROUNDS} rounds: {dict(came)}")
    assert set(came) == {"right", f"[Errno {errno.ECONNRESET}] Connection reset by peer"}


@contextlib.contextmanager
def lifted(node: AgentNode) -> Iterator[None]:
    """No bound a pod, so that one pod can fill a table."""
    kept = []
    for family in Family:
        table = Table("node", family)
        maps = Maps(node.folder / "bpf")
        row = maps.get(table, 0)
        maps.close()
        assert row is not None
        fd = bpf.obj_get(node.folder / "bpf/v1/map" / table.pin)
        coder = codec(table)
        bpf.map_update(fd, coder.key(0), coder.value(replace(row, flows_per_pod=0)))
        kept.append((fd, coder.key(0), coder.value(row)))
    try:
        yield
    finally:
        for fd, key, value in kept:
            bpf.map_update(fd, key, value)
            os.close(fd)


@pytest.mark.parametrize("ending", ["refused", "reset", "closed"])
def test_a_pod_that_opens_and_closes_flows_without_end_pushes_no_others_out(
    cluster: Cluster, ending: str
) -> None:
    """Pod b's flow to a Service rests meanwhile, and would be reset if both its halves had gone."""
    one = cluster.nodes[0]
    address = life.pod_address(Family.V4, 2, 12 if ending == "refused" else 11)
    with life.connect(one.pods["b"], Family.V4, CLUSTER_IP[Family.V4], PORT) as kept:
        who = answer(kept)["pod"]
        for _ in range(4 * SMALL):
            with life.make(one.pods["a"], Family.V4, socket.SOCK_STREAM) as client:
                if ending == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(ConnectionRefusedError):
                    client.connect((address, TARGET))
        assert answer(kept)["pod"] == who


def test_a_pod_that_opens_flows_without_end_is_bounded_and_named(cluster: Cluster) -> None:
    """Pod a sprays; pod b, on the same node, opens flows meanwhile and keeps an old one."""
    one = cluster.nodes[0]
    bound = SMALL // 4
    before = life.drops(one)
    kept = life.connect(one.pods["b"], Family.V4, life.pod_address(Family.V4, 2, 11), TARGET)
    with kept, life.make(one.pods["a"], Family.V4, socket.SOCK_DGRAM) as spray:
        ask(kept)
        opened = 0
        for number in range(20 * bound):
            with contextlib.suppress(OSError):  # refused by whom it reached
                spray.sendto(b"x", (life.pod_address(Family.V4, 2, 12), 1 + number))
            if number % 200 == 0:
                target = life.pod_address(Family.V4, 2, 11)
                with life.connect(one.pods["b"], Family.V4, target, TARGET) as client:
                    ask(client)
                opened += 1
        ask(kept)
    dropped = life.drops(one) - before
    maps = Maps(one.folder / "bpf")
    try:
        rows = dict(maps.items(Table("endpoints", Family.V4)))
        budget = maps.get(
            Table("endpoint_flows"), rows[ip_address(life.both(1, 11).split(",")[0])].id
        )
    finally:
        maps.close()
    assert budget is not None
    print(f"{20 * bound} flows wanted, bound {bound}, live {budget.live}: {dict(dropped)}")
    print(f"meanwhile another pod opened {opened} connections, all answered, and kept its own")
    assert dropped["flow_limit"] >= 18 * bound
    assert budget.live <= bound + 2  # other CPUs may add one more each
    listed = subprocess.run(
        [PODLANE, "drops", "--bpffs", str(one.folder / "bpf")], capture_output=True, text=True
    ).stdout
    assert "the pod has as many flows as one pod may have" in listed


def test_a_read_only_bpffs_is_an_error_with_a_name_and_the_datapath_goes_on() -> None:
    with life.two_nodes() as made:
        one = made.nodes[0]
        peer = life.pod_address(Family.V4, 2, 11)
        ping = subprocess.Popen(
            ["ip", "netns", "exec", one.pods["a"], "ping", "-i0.02", peer],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        one.stop(signal.SIGKILL)
        sh(f"mount -o remount,ro {one.folder}/bpf")
        try:
            one.start(made.manifests, wait=False)
            assert one.process is not None
            status = one.process.wait(30)
            one.process = None
            words = one.log().strip().splitlines()[-1]
            print(f"exit {status}: {words}")
            assert status == 2
            assert str(one.folder / "bpf") in words
            assert "Read-only file system" in words
        finally:
            sh(f"mount -o remount,rw {one.folder}/bpf")
        one.start(made.manifests)
        ping.send_signal(signal.SIGINT)
        said = ping.communicate()[0]
        assert " 0% packet loss" in said, said
