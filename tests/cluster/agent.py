# SPDX-License-Identifier: Apache-2.0
"""The agent of one node on a real API server, and what it is given to read.

    API server ── bridge ──┬─ eth0 ─ our node ── pods of the agent
                           └─ eth0 ─ the peer's

No controllers and no kubelet: Nodes, Pods, Services and slices are put into the API here, and pods
are wired by CNI ADD. Must not measure or judge.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dataplane.cni import client
from dataplane.model.errors import BadEnvironment
from tests.cluster.api import Api, Connection, api
from tests.cluster.net import Net, bpffs, inside
from tests.cluster.podlane import PODLANE
from tests.cluster.services import (
    NAMESPACE,
    NODE,
    PORT,
    SLICES,
    cluster_ip,
    endpoint_slice,
    node,
    service,
)

POD_CIDR, POD_COUNT = "10.244.1.0/24", 100
FIRST_POD, FIRST_ELSEWHERE = IPv4Address("10.244.1.10"), IPv4Address("10.128.0.1")
OURS, PEER = "172.29.0.11", "172.29.0.12"
# The one that changes is in the middle: its backends are pods of the node.
CHANGING = 500
_START_SECONDS = 120.0
_MB = 1024.0  # kB, as /proc has them


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
            self._process = subprocess.Popen(inside(self.place, *command), stdout=log, stderr=log)
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
        return rss(self.pid)

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
    with bpffs(folder / "bpf") as pins:
        config = {
            "nodeName": NODE, "kubeconfig": str(served.kubeconfig(user)),
            "clusterCIDRs": [POD_CIDR], "serviceCIDRs": [served.places.service_cidrs[0]],
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
            subprocess.run(inside(net.path("ours"), *command), capture_output=True)


def rss(pid: int) -> float:
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
