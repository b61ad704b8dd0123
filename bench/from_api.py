# SPDX-License-Identifier: Apache-2.0
"""The agent on a real API server: how soon packets follow it, what that costs, how it starts.

                 ┌─ eth0 ─ our node ──── 100 pods of the agent, ten of them behind the Service that changes
    API server ──┤
                 └─ eth0 ─ the peer's ── kube-proxy, for its memory

No controllers and no kubelet: Nodes, Pods, Services and slices are put into the API by the bench,
and pods are wired by CNI ADD.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench import load, start
from bench.api import NODE, SLICES, Api, Connection, api, endpoint_slice, node, service
from bench.load import PORT
from bench.measure import Goal, Result
from bench.ours import NAMESPACE, PODLANE, cluster_ip
from bench.topology import Net
from dataplane.cni import client
from dataplane.kernel import netns
from dataplane.model.errors import BadEnvironment

POD_CIDR, POD_COUNT = "10.244.1.0/24", 100
FIRST_POD, FIRST_ELSEWHERE = IPv4Address("10.244.1.10"), IPv4Address("10.128.0.1")
OURS, PEER = "172.29.0.11", "172.29.0.12"
FEW, BACKENDS, CHANGES = 1000, 10, 200
PORTS = (PORT + 1, PORT + 2)
# The one that changes is in the middle: its ten backends are pods of the node.
CHANGING = 500
MODE = "nftables"
_REST_SECONDS = 20.0
_PAUSE, _STEP_SECONDS, _PATIENCE_SECONDS = 0.03, 0.0002, 30.0
_START_SECONDS = 120.0
_MB = 1024.0  # kB, as /proc has them


def from_api() -> list[Result]:
    """Starts, a slice that changes, memory and rest with 1,000 and 2,000 Services."""
    with server() as (served, net), agent_of(served, net) as agent:
        fill(served, range(FEW), BACKENDS)
        pods = agent.add_pods(net, served)
        agent.await_serving(FEW - 1)
        change, own = changes_of(served, agent, pods[:BACKENDS])
        time.sleep(3)
        memory, rest = agent.rss(), agent.cpu_share(_REST_SECONDS)
        restarts = [agent.restart() for _ in range(3)]
        agent.await_serving(FEW - 1)
        fill(served, range(FEW, 2 * FEW), BACKENDS)
        agent.await_serving(2 * FEW - 1)
        with _peer_with_all(served, net) as pid:
            time.sleep(_REST_SECONDS)  # the collectors of both come by
            ours, theirs = agent.rss(), _rss(pid)
    what = "1,000 Services of 10"
    return [
        *(
            Result(f"api-change-p{p}", f"ms, slice to packets, p{p}, {what}",
                   (percentile(change, p),), (), Goal("ours", at_most=most))
            for p, most in ((50, 10.0), (99, 50.0))
        ),
        Result("api-own", "ms, the API server's own, p50", (percentile(own, 50),), (), None),
        Result("api-memory", f"MB, {what}, 100 pods", (memory,), (), Goal("ours", at_most=120.0)),
        Result("api-memory-2000", "MB, 2,000 Services of 10", (ours,), (theirs,),
               Goal("ratio", at_most=1.0)),
        Result("api-rest", "% of a core, nothing changes", (rest,), (), Goal("ours", at_most=1.0)),
        Result("api-restart", f"s to ready, pins in place, {what}", tuple(restarts), (),
               Goal("ours", at_most=2.0)),
    ]  # fmt: skip


def from_api_large() -> list[Result]:
    """5,000 Services of 20 endpoints, read from the API server and written."""
    with server() as (served, net):
        fill(served, range(5000), 20)
        seconds = []
        for turn in range(3):
            with agent_of(served, net, f"agent{turn}") as agent:
                agent.await_entries(5000)
                seconds.append(agent.synced_after())
    unit = "s, process start to all written, 5,000 Services of 20"
    return [Result("api-sync", unit, tuple(seconds), (), Goal("ours", at_most=15.0))]


def percentile(times: list[float], percent: int) -> float:
    return sorted(times)[min(len(times) * percent // 100, len(times) - 1)]


# ---- the API server and what is in it ----


@contextmanager
def server() -> Iterator[tuple[Api, Net]]:
    with ExitStack() as stack:
        served = stack.enter_context(api())
        account = {"metadata": {"name": "default"}}
        served.create(
            [node(OURS, POD_CIDR), (f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", account)]
        )
        net = Net(stack, served.prefix)
        for name, address in (("ours", OURS), ("peer", PEER)):
            plug(net, served, name, address)
        yield served, net


def plug(net: Net, served: Api, name: str, address: str) -> None:
    """A node's namespace on the API server's bridge."""
    net.add(name)
    net.veth(("control", name), (name, "eth0"), 1500)
    net.ip("control", "link", "set", name, "master", "br0")
    net.ip(name, "address", "add", f"{address}/24", "dev", "eth0")
    net.ip(name, "route", "add", "default", "via", served.places.control.ipv4)


def fill(served: Api, numbers: range, backends: int) -> None:
    served.create(pair for number in numbers for pair in _pair(number, backends))


def _pair(number: int, backends: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield service(number, "UDP")
    yield SLICES, slice_of(number, PORT, backends)


def slice_of(number: int, port: int, count: int) -> dict[str, Any]:
    """The endpoints of the one that changes are the first pods, others' are elsewhere."""
    own = number == CHANGING
    first = FIRST_POD if own else FIRST_ELSEWHERE + number * count
    ends = [(first + n, NODE if own else f"other-{n}") for n in range(count)]
    return endpoint_slice(number, "UDP", port, ends)


# ---- our agent ----


class Agent:
    """A running agent of one node."""

    def __init__(self, place: Path, folder: Path, pins: Path) -> None:
        self.place, self.folder, self.pins = place, folder, pins
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def start(self, wait: bool = True) -> float:
        """Seconds from the command to "ready", if that is waited for."""
        (self.folder / "run/status.json").unlink(missing_ok=True)
        command = (str(PODLANE), "agent", "--config", f"{self.folder}/config.yaml")
        with (self.folder / "log").open("w") as log:
            self._began, wall = time.time(), time.monotonic()
            self._process = subprocess.Popen(
                load.inside(self.place, *command), stdout=log, stderr=log
            )
        if wait:
            await_true(self.is_ready, f"agent: {self.folder}/log", 0.005)
        return time.monotonic() - wall

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)

    def restart(self) -> float:
        self.stop()
        return self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def rss(self) -> float:
        return _rss(self.pid)

    def cpu_share(self, seconds: float) -> float:
        """Per cent of one core over this time."""
        assert self._process is not None
        path = Path(f"/proc/{self._process.pid}/stat")

        def ticks() -> int:
            return sum(map(int, path.read_text().rpartition(")")[2].split()[11:13]))

        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds * 100

    def await_serving(self, number: int) -> None:
        """The number-th Service is in the map."""
        wanted = str(cluster_ip(number))
        await_true(lambda: wanted in self._services(), f"Service {number}", 0.5)

    def await_entries(self, count: int) -> None:
        await_true(lambda: len(json.loads(self._services())) >= count, f"{count} Services", 1.0)

    def synced_after(self) -> float:
        """Seconds from the command to the last write, by the agent's log."""
        lines = (self.folder / "log").read_text().splitlines()
        last = json.loads([line for line in lines if "tables_written" in line][-1])
        return datetime.fromisoformat(last["time"]).timestamp() - self._began

    def add_pods(self, net: Net, served: Api, count: int = POD_COUNT) -> list[Path]:
        """Pods in the API and on the node; their namespaces."""
        places = []
        with contextlib.closing(Connection(served.places)) as writer:
            for n in range(count):
                name, address = f"pod-{n}", str(FIRST_POD + n)
                net.add(name)
                env = {
                    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": name, "CNI_IFNAME": "eth0",
                    "CNI_NETNS": str(net.path(name)),
                    "CNI_ARGS": f"IP={address};K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={name}",
                }  # fmt: skip
                config = {"cniVersion": "1.1.0", "name": "podlane", "type": "podlane-cni"}
                answer = client.request(self.folder / "run/cni.sock", env, config)
                if "code" in answer:
                    raise BadEnvironment(f"CNI ADD of {name}", str(answer))
                path = f"/api/v1/namespaces/{NAMESPACE}/pods"
                pod = {
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                    "spec": {"nodeName": NODE, "containers": [{"name": "a", "image": "a"}]},
                }  # fmt: skip
                writer.send("POST", path, pod)
                status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
                writer.send("PUT", f"{path}/{name}/status", {**pod, "status": status})
                places.append(net.path(name))
        return places

    def _services(self) -> str:
        return subprocess.run(
            [PODLANE, "services", "--bpffs", str(self.pins), "-o", "json"],
            capture_output=True, text=True,
        ).stdout or "[]"  # fmt: skip

    def is_ready(self) -> bool:
        return bool(self.status().get("state") == "ready")

    def status(self) -> dict[str, Any]:
        """What its status file says; empty if there is none yet."""
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.folder / "run/status.json").read_text())
            return found
        return {}


@contextmanager
def agent_of(
    served: Api, net: Net, name: str = "agent", user: str = "admin", wait: bool = True
) -> Iterator[Agent]:
    """An agent in a folder of its own, with the rights of a user; gone again with what it made."""
    folder = served.places.folder / name
    for name in ("run", "state"):
        (folder / name).mkdir(parents=True)
    with start.bpffs(folder / "bpf") as pins:
        config = {
            "nodeName": NODE, "kubeconfig": str(served.kubeconfig(user)),
            "clusterCIDRs": [POD_CIDR], "serviceCIDRs": ["10.96.0.0/16"],
            "runDir": str(folder / "run"), "stateDir": str(folder / "state"),
            "cniBinDir": str(folder / "cni/bin"), "cniConfDir": str(folder / "cni/conf"),
            "bpffsDir": str(pins),
        }  # fmt: skip
        (folder / "config.yaml").write_text(json.dumps(config))
        found = Agent(net.path("ours"), folder, pins)
        try:
            found.start(wait)
            yield found
        finally:
            found.stop()
            command = (str(PODLANE), "uninstall", "--config", f"{folder}/config.yaml")
            subprocess.run(load.inside(net.path("ours"), *command), capture_output=True)


@contextmanager
def _peer_with_all(served: Api, net: Net) -> Iterator[int]:
    """The real kube-proxy, once it has written all; its pid."""
    place = net.path("peer")
    wanted = str(cluster_ip(2 * FEW - 1))
    listed = load.inside(place, "nft", "list", "table", "ip", "kube-proxy")
    with kube_proxy(served, place, MODE) as pid:
        await_true(
            lambda: wanted in subprocess.run(listed, capture_output=True, text=True).stdout,
            f"kube-proxy: {served.places.folder}/kube-proxy-{MODE}.log", 1.0,
        )  # fmt: skip
        yield pid


@contextmanager
def kube_proxy(served: Api, place: Path, mode: str) -> Iterator[int]:
    """The real kube-proxy on a node; its pid."""
    words = (
        str(served.control.programs / "kubernetes"), "kube-proxy", "--proxy-mode", mode,
        "--kubeconfig", str(served.kubeconfig("kube-proxy")), "--hostname-override", NODE,
        "--cluster-cidr", POD_CIDR, "--conntrack-max-per-core", "0",
    )  # fmt: skip
    with (served.places.folder / f"kube-proxy-{mode}.log").open("w") as log:
        process = subprocess.Popen(load.inside(place, *words), stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def _rss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / _MB
    raise BadEnvironment(f"/proc/{pid}/status", "has no VmRSS")


def await_true(condition: Callable[[], bool], what: str, step: float) -> None:
    end = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise BadEnvironment(what, f"is not there after {_START_SECONDS:.0f} s")
        time.sleep(step)


# ---- a slice that changes ----


def changes_of(served: Api, agent: Agent, pods: list[Path]) -> tuple[list[float], list[float]]:
    """Milliseconds from the change's event to packets, and from the write to the event.

    The event is that of a watch of our own: what is before it is no agent's work.
    """
    with ExitStack() as stack:
        writer = stack.enter_context(contextlib.closing(Connection(served.places)))
        watch = stack.enter_context(contextlib.closing(Connection(served.places)))
        seen = watch.follow(f"{SLICES}?watch=1&fieldSelector=metadata.name%3Dservice-{CHANGING}")
        arrivals = [
            _Arrivals([stack.enter_context(listener(place, port)) for place in pods])
            for port in PORTS
        ]
        sender = stack.enter_context(netns.run_in(agent.place.with_name(pods[-1].name), datagrams))
        follow, own = [], []
        for turn in range(CHANGES + 2):
            time.sleep(_PAUSE)
            _drain(seen)
            for one in arrivals:  # what was sent before the last change came
                one.forget()
            changed = slice_of(CHANGING, PORTS[turn % 2], BACKENDS)
            path = f"{SLICES}/service-{CHANGING}"
            began = time.monotonic()
            # The change may be seen before the write is answered.
            write = threading.Thread(target=writer.send, args=("PUT", path, changed))
            write.start()
            told, arrived = _followed(seen, sender, arrivals[turn % 2])
            write.join()
            follow.append((arrived - told) * 1000)
            own.append((told - began) * 1000)
    return follow[2:], own[2:]


class _Arrivals:
    """Sockets of several pods, as one."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = {one.fileno(): one for one in sockets}
        self._poll = select.poll()
        for one in sockets:
            self._poll.register(one, select.POLLIN)

    def any(self) -> bool:
        return bool(self._poll.poll(0))

    def forget(self) -> None:
        while ready := self._poll.poll(1):
            for fd, _ in ready:
                self._sockets[fd].recv(16)


def _followed(
    seen: socket.socket, sender: socket.socket, arrivals: _Arrivals
) -> tuple[float, float]:
    """When the change came to our watch, and when a datagram came where it leads."""
    told = arrived = 0.0
    end = time.monotonic() + _PATIENCE_SECONDS
    while not (told and arrived):
        if time.monotonic() > end:
            missing = "its watch event" if not told else "a packet where the slice leads"
            raise BadEnvironment(f"Service {CHANGING}", f"{missing} does not come")
        if not told and _drain(seen):
            told = time.monotonic()
        if not arrived:
            sender.sendto(b"x", (str(cluster_ip(CHANGING)), PORT))
            if arrivals.any():
                arrived = time.monotonic()
        time.sleep(_STEP_SECONDS)
    return told, arrived


def listener(place: Path, port: int) -> socket.socket:
    made = netns.run_in(place, datagrams)
    made.bind(("", port))
    return made


def datagrams() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _drain(stream: socket.socket) -> bool:
    """Whether anything came."""
    got = False
    with suppress(OSError):  # TLS that wants more is one
        while stream.recv(1 << 16):
            got = True
    return got
