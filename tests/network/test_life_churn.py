# SPDX-License-Identifier: Apache-2.0
"""Endpoints that come and go, and agents that are killed, under load.

pod a (load) ─┐                                ┌─ pod c (serves)
pod b (serves)┴─ node1 ── eth0 ── bridge ── eth0 ── node2 ─┴─ pod d (serves)

Service `web` changes every 100 ms: one of its pods drains, is out, is in again; now and
then one is out without draining. Service `rest` never changes. PODLANE_SOAK=1 runs ten
minutes of it and a hundred kills.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane.abi.layout import abi
from dataplane.kernel import bpf
from dataplane.kernel.maps import Maps
from dataplane.lab import inside, state
from dataplane.model.flow import FlowKey
from dataplane.model.net import Family, IPAddress, Protocol
from dataplane.model.rows import Table
from tests.network import life, life_load
from tests.network.cluster import AgentNode, Cluster, sh
from tests.network.life import CLUSTER_IP, PORT

SOAK = bool(os.environ.get("PODLANE_SOAK"))
CHURN_SECONDS = 600.0 if SOAK else 12.0
KILLS = 100 if SOAK else 10
pytestmark = pytest.mark.timeout(1800 if SOAK else 180)
STEP = 0.1
EXCUSE = 0.1
REST_IP = {Family.V4: "10.96.0.81", Family.V6: "fd00:96::81"}
SERVERS = {"b": (1, 12), "c": (2, 11), "d": (2, 12)}
BACKENDS = {family: Table("backends", family) for family in Family}
FLOW_REPLY = abi(Family.V4).enum("flow_flag")["FLOW_REPLY"]
# After the write: what other CPUs had in hand when it came.
IN_HAND = 0.005


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with life.two_nodes() as made:
        pods = {name: ns for node in made.nodes for name, ns in node.pods.items()}
        for name in SERVERS:
            sh(f"ip netns exec {pods[name]} {inside.STAND_IN} serve {name} tcp:8080 udp:8080")
        rest = life.service("rest", addresses_of(SERVERS), node_port=30081, addresses=REST_IP)
        made.write({"web": life.service("web", addresses_of(SERVERS)), "rest": rest})
        for family, addresses in itertools.product(Family, (CLUSTER_IP, REST_IP)):
            life.wait(life.serves(pods["a"], family, addresses[family], PORT))
        try:
            yield made
        finally:
            for name in SERVERS:
                for pid in state.processes(Path("/run/netns") / pods[name]):
                    os.kill(pid, signal.SIGKILL)


def addresses_of(names: Any) -> dict[Family, list[str]]:
    return {f: [life.pod_address(f, *SERVERS[name]) for name in names] for f in Family}


# ---- changing the Service ----
def conditions(objects: list[Any], states: Mapping[str, str]) -> list[Any]:
    """The Service's slices with each pod "in", "drains" or "out"."""
    where = {a: n for n, p in SERVERS.items() for a in (life.pod_address(f, *p) for f in Family)}
    for one in objects:
        for endpoint in one.get("endpoints", ()):
            drains = states[where[endpoint["addresses"][0]]] == "drains"
            endpoint["conditions"] = {
                "ready": not drains, "serving": True, "terminating": drains,
            }  # fmt: skip
    return objects


@contextmanager
def churn(cluster: Cluster) -> Iterator[Counter[str]]:
    """`web` changes every 100 ms while this is open; counts its changes by what they were."""
    ending, done = threading.Event(), Counter[str]()

    def put(states: Mapping[str, str]) -> None:
        there = [name for name, now in states.items() if now != "out"]
        objects = conditions(life.service("web", addresses_of(there)), states)
        cluster.write({"web": objects})

    def run() -> None:
        states = dict.fromkeys(SERVERS, "in")
        for number, name in enumerate(itertools.cycle(SERVERS)):
            words = ("out", "in") if number % 10 == 9 else ("drains", "out", "in")
            for word in words:
                states[name] = word
                put(states)
                done[word if len(words) > 2 else f"{word}, at once"] += 1
                if ending.wait(STEP):
                    put(dict.fromkeys(SERVERS, "in"))
                    return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        ending.set()
        thread.join()


# ---- watching the datapath ----
@dataclass
class Watch:
    """Between which two looks at node 1's maps an address went out of `web`; what came to it then."""

    removals: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    packets: list[str] = field(default_factory=list)
    under_way: int = 0  # sent before the removal, and late on the way to the other node
    looks: int = 0


@contextmanager
def watched(cluster: Cluster) -> Iterator[Watch]:
    """Looks every few milliseconds; a pod's counter may not grow while no Service lists the pod.

    `web` has to be the one way to its pods.
    """
    seen, ending = Watch(), threading.Event()
    maps = {node.number: Maps(node.folder / "bpf") for node in cluster.nodes}
    ids = {}
    for node in cluster.nodes:
        rows = dict(maps[node.number].items(Table("endpoints", Family.V4)))
        for name, (number, last) in SERVERS.items():
            if number == node.number:
                ids[name] = rows[ip_address(life.pod_address(Family.V4, number, last))].id

    def delivered(name: str) -> int:
        rows = maps[SERVERS[name][0]].per_cpu(Table("endpoint_counters"), ids[name])
        return sum(row.to_packets for row in rows)

    where = {
        ip_address(life.pod_address(family, *place)): name
        for family in Family
        for name, place in SERVERS.items()
    }

    def sent(name: str, began: float, ended: float) -> bool:
        """Whether node 1 sent the pod any packet then: each leaves its time in its flow."""
        return any(
            began * 1e9 < row.last_seen <= ended * 1e9
            for family in Family
            for _, row in maps[1].items(Table("flows", family))
            if where.get(row.backend) == name and not row.flags & FLOW_REPLY
        )

    def listed() -> dict[IPAddress, tuple[int, int]]:
        """The id and generation that each address of a pod has as a backend now."""
        return {
            row.address: (number, row.generation)
            for family in Family
            for number, row in maps[1].items(BACKENDS[family])
            if row.flags and row.address in where
        }

    def run() -> None:
        out: dict[str, tuple[float, int | None]] = {}
        began_look, there = time.monotonic(), listed()
        while not ending.wait(0.001):
            # A row may have changed right after it was read: since the look before began.
            last, before, began_look = began_look, there, time.monotonic()
            there, now = listed(), time.monotonic()
            seen.looks += 1
            for address, was in before.items():
                if there.get(address) != was:  # out, or out and in again
                    seen.removals.setdefault(str(address), []).append((last, now))
            in_use = {where[address] for address in there}
            for name in SERVERS:
                if name in in_use:
                    out.pop(name, None)
                elif name not in out:
                    out[name] = now, None
                else:
                    began, counted = out[name]
                    count, read = delivered(name), time.monotonic()
                    if counted is None:
                        if now - began > IN_HAND:
                            out[name] = began, count
                    elif count != counted:
                        # in again since the maps were read?
                        if name in {where[address] for address in listed()}:
                            out.pop(name)
                            continue
                        if not sent(name, began, read):
                            seen.under_way += 1
                            out[name] = began, count
                            continue
                        seen.packets.append(
                            f"{count - counted} packets to {name}, {now - began:.4f} s after"
                        )
                        out[name] = began, count

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        ending.set()
        thread.join()
        for one in maps.values():
            one.close()


# ---- load ----
@dataclass
class Outcome:
    totals: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def load(cluster: Cluster, short: list[Any], long: list[Any], pause: float) -> Iterator[Outcome]:
    """Load from pod a; each failure is told with the backend that its flow was for."""
    found = Outcome()
    process = subprocess.Popen(
        ["ip", "netns", "exec", cluster.nodes[0].pods["a"], sys.executable, life_load.__file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout
    maps = Maps(cluster.nodes[0].folder / "bpf")

    def read() -> None:
        for text in output:
            line = json.loads(text)
            if "totals" in line:
                found.totals.update(line["totals"])
                found.by.update(line["by"])
            else:
                found.failures.append({**line, "backend": served_by(maps, line)})

    thread = threading.Thread(target=read)
    thread.start()
    process.stdin.write(json.dumps({"short": short, "long": long, "pause": pause}) + "\n")
    process.stdin.flush()
    try:
        yield found
    finally:
        process.stdin.close()
        thread.join()
        process.wait()
        maps.close()


def served_by(maps: Maps, failure: Mapping[str, Any]) -> str:
    """The address that a flow was for, as the flow table remembers it."""
    target, port = failure["to"]
    family = Family(ip_address(target).version)
    protocol = Protocol.UDP if failure["kind"] == "udp" else Protocol.TCP
    client = ip_address(life.pod_address(family, 1, 11))
    key = FlowKey(client, ip_address(target), failure["port"], port, protocol)
    row = maps.get(Table("flows", family), key)
    return str(row.backend) if row else ""


def excused(failure: Mapping[str, Any], watch: Watch) -> bool:
    """Its pod was removed less than 100 ms before the request, or during it."""
    return any(
        failure["began"] - EXCUSE < seen and before <= failure["ended"]
        for before, seen in watch.removals.get(failure["backend"], ())
    )


def targets(addresses: Mapping[Family, str]) -> list[Any]:
    return [(addresses[family], PORT) for family in Family]


# ---- what is shown ----
def test_load_while_endpoints_change_every_100_ms(cluster: Cluster) -> None:
    rest = cluster.manifests / "rest.yaml"
    kept = rest.read_text()
    one = cluster.nodes[0]
    try:
        rest.unlink()  # web is the only way to its pods, so their counters are its own
        life.wait(lambda: not life.serves(one.pods["a"], Family.V4, REST_IP[Family.V4], PORT)())
        with (
            watched(cluster) as watch,
            load(cluster, targets(CLUSTER_IP) * 4, [], 0.001) as outcome,
            churn(cluster) as changes,
        ):
            time.sleep(CHURN_SECONDS)
    finally:
        rest.write_text(kept)
    life.wait(life.serves(one.pods["a"], Family.V4, REST_IP[Family.V4], PORT))
    requests = outcome.totals["tcp"] + outcome.totals["udp"]
    ours = [failure for failure in outcome.failures if not excused(failure, watch)]
    removals = sum(map(len, watch.removals.values()))
    print(
        f"{CHURN_SECONDS:.0f} s: {requests} requests, {sum(changes.values())} changes"
        f" ({removals} removals seen in the maps, {watch.looks} looks), by {dict(outcome.by)}"
    )
    print(f"{len(outcome.failures)} failures, {len(outcome.failures) - len(ours)} excused:")
    for failure in outcome.failures:
        print(f"  {failure}")
    print(f"packets after a removal: {watch.packets or 0} ({watch.under_way} were under way)")
    assert removals > CHURN_SECONDS / STEP / 10
    assert set(outcome.by) == set(SERVERS)
    assert not ours
    assert len(outcome.failures) <= max(1, requests // 1000)
    assert not watch.packets


def test_an_agent_killed_at_any_moment_breaks_no_connection(cluster: Cluster) -> None:
    delays = itertools.cycle((0.0, 0.31, 0.07, 0.9, 0.15, 0.5, 0.02, 1.3))
    with (
        load(cluster, targets(REST_IP), targets(REST_IP) * 4, 0.005) as outcome,
        churn(cluster) as changes,
    ):
        time.sleep(0.5)
        for number, delay in zip(range(KILLS), delays, strict=False):
            node = cluster.nodes[number % 2]
            assert node.stop(signal.SIGKILL) == -signal.SIGKILL
            node.start(cluster.manifests, wait=False)
            if delay < 0.3:  # killed again as it starts
                time.sleep(delay)
                node.stop(signal.SIGKILL)
                node.start(cluster.manifests, wait=False)
            node.wait_ready()
    for node in cluster.nodes:
        assert node.process is not None
        assert node.process.poll() is None
    print(f"{KILLS} kills, {sum(changes.values())} changes, {dict(outcome.totals)}")
    assert outcome.failures == []
    assert outcome.totals["long"] > 100
    assert outcome.totals["tcp"] > 100


COUNTED = {"flows", "closed_flows", "closed_count", "fragments", "drops", "exhausted", "scratch"}
COUNTED |= {"verdicts", "endpoint_flows", "sweep", "path_mtus"}


def held(node: AgentNode) -> dict[str, object]:
    """Ids of programs and maps, and all that the maps hold but for flows and counters."""
    root, found = node.folder / "bpf" / "v1", dict[str, object]()
    for path in sorted((root / "prog").iterdir()):
        fd = bpf.obj_get(path)
        found[path.name] = bpf.prog_info(fd).id
        os.close(fd)
    for path in sorted((root / "map").iterdir()):
        fd = bpf.obj_get(path)
        info = bpf.map_info(fd)
        found[path.name] = info.id
        name = path.name.removesuffix("_4").removesuffix("_6")
        if info.type == bpf.MAP_PROG_ARRAY:  # the ids of its programs; it takes no batches
            found[f"{path.name}:"] = [
                bpf.map_lookup(fd, struct.pack("=I", place), 4) for place in range(info.max_entries)
            ]
        elif name not in COUNTED and not name.endswith(("_counters", "_budget")):
            sizes = info.key_size, info.value_size
            found[f"{path.name}:"] = sorted(
                (keys[i * sizes[0] : (i + 1) * sizes[0]], values[i * sizes[1] : (i + 1) * sizes[1]])
                for keys, values, count in bpf.map_batches(fd, *sizes)
                for i in range(count)
            )
        os.close(fd)
    return found


def test_a_restart_with_nothing_to_do_leaves_every_id_and_entry(cluster: Cluster) -> None:
    time.sleep(1)  # the last change has been taken in
    for number in range(KILLS // 3 + 1):
        node = cluster.nodes[number % 2]
        before = held(node)
        node.stop(signal.SIGKILL)
        assert held(node) == before
        node.start(cluster.manifests)
        time.sleep(0.3)
        after = held(node)
        assert [name for name in before if after.get(name) != before[name]] == []
        assert after == before
    print(f"{KILLS // 3 + 1} restarts: {len(before)} ids and dumps equal")
