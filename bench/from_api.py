# SPDX-License-Identifier: Apache-2.0
"""The agent on a real API server: how soon packets follow it, what that costs, how it starts.

                 ┌─ eth0 ─ our node ──── 100 pods of the agent, ten of them behind the Service that changes
    API server ──┤
                 └─ eth0 ─ the peer's ── kube-proxy, for its memory

What runs there is `tests.cluster.agent`'s.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bench.measure import Goal, Result
from dataplane.kernel import netns
from dataplane.model.errors import BadEnvironment
from tests.cluster.agent import (
    CHANGING,
    POD_CIDR,
    Agent,
    agent_of,
    await_true,
    fill,
    rss,
    server,
    slice_of,
)
from tests.cluster.api import Api, Connection
from tests.cluster.net import Net, inside
from tests.cluster.services import NODE, PORT, SLICES, cluster_ip

FEW, BACKENDS, CHANGES = 1000, 10, 200
PORTS = (PORT + 1, PORT + 2)
MODE = "nftables"
_REST_SECONDS = 20.0
_PAUSE, _STEP_SECONDS, _PATIENCE_SECONDS = 0.03, 0.0002, 30.0


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
            ours, theirs = agent.rss(), rss(pid)
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


@contextmanager
def _peer_with_all(served: Api, net: Net) -> Iterator[int]:
    """The real kube-proxy, once it has written all; its pid."""
    place = net.path("peer")
    wanted = str(cluster_ip(2 * FEW - 1))
    listed = inside(place, "nft", "list", "table", "ip", "kube-proxy")
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
        process = subprocess.Popen(inside(place, *words), stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


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
