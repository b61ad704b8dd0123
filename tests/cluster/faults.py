# SPDX-License-Identifier: Apache-2.0
"""The agent while a real API server refuses it, can't be reached, is killed and comes back.

    API server ── bridge ── node: client ─▶ Service ─▶ one of two pods

`python -m tests.cluster.faults`: a datagram every few milliseconds all the while; a story fails
if one is not answered, a fault is not named in status, or more is written than what changed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dataplane.kernel import netns
from tests.cluster.agent import CHANGING, OURS, Agent, agent_of, fill, server, slice_of
from tests.cluster.api import Api, Connection
from tests.cluster.hosts import run, wait_for
from tests.cluster.net import Net
from tests.cluster.services import PORT, SLICES, cluster_ip

GONE_SECONDS = 60.0
SERVICES = range(CHANGING - 50, CHANGING + 50)
_EVERY_SECONDS = 0.005
_OF_A_CHANGE = 8  # entries, at most, that a slice of two endpoints takes


def main() -> int:
    """All stories; the exit status."""
    with server() as (served, net):
        fill(served, SERVICES, 2)
        with agent_of(served, net, user="kube-proxy", wait=False) as agent:
            _a_right_that_is_missing(served, agent)
            pods = agent.add_pods(net, served, 3)
            with _traffic(pods) as lost:
                _a_server_that_can_not_be_reached(served, net, agent)
                _a_server_that_is_killed(served, agent)
                assert lost() == 0, f"{lost()} datagrams were not answered"
    return 0


def _a_right_that_is_missing(served: Api, agent: Agent) -> None:
    """kube-proxy's role lacks Pods: named by verb and resource, and enough once it is given."""
    _until(agent, "podlane may not list pods (403: pods is forbidden")
    assert agent.status()["state"] == "starting"
    served.control.kubectl("create clusterrole pods --verb=list,watch --resource=pods")
    served.control.kubectl(
        "create clusterrolebinding p --clusterrole=pods --user=system:kube-proxy"
    )
    wait_for(lambda: agent.is_ready() and not _problems(agent), 60, "ready with the right given")
    print("faults: a missing right was named, and followed once it was given", flush=True)


def _a_server_that_can_not_be_reached(served: Api, net: Net, agent: Agent) -> None:
    """No packet of it comes, and no word that it went; meanwhile forty changes, all but one undone."""
    written = _written(agent)
    control = f"ip -n {served.places.netns(served.places.control)}"
    run(f"{control} route add blackhole {OURS}/32")
    began = time.monotonic()
    _until(agent, "watch endpointslices: the server is silent", "can't be reached")
    with contextlib.closing(Connection(served.places)) as writer:
        for number in SERVICES[:40]:
            for port in (PORT + 1, PORT):
                _change(writer, number, port)
        _change(writer, SERVICES[0], PORT + 1)
    time.sleep(max(0.0, began + GONE_SECONDS - time.monotonic()))
    assert agent.is_ready()
    run(f"{control} route del blackhole {OURS}/32")
    # The watch goes on where it was and tells all of them. What is undone is gathered, but where
    # the server pauses a batch ends, with one of the forty as it was in between: there and back.
    _caught_up(agent, written, "out of reach", at_an_edge=2 * _OF_A_CHANGE)


def _a_server_that_is_killed(served: Api, agent: Agent) -> None:
    """Its states of before are not known to the one that comes after: all is listed anew."""
    written = _written(agent)
    process = served.control.api_server
    assert process is not None
    process.kill()
    process.wait()
    began = time.monotonic()
    _until(agent, "can't be reached: connection refused")
    time.sleep(max(0.0, began + GONE_SECONDS - time.monotonic()))
    assert agent.is_ready()
    served.control.start_api_server()
    with contextlib.closing(Connection(served.places)) as writer:
        _change(writer, SERVICES[1], PORT + 1)
    _caught_up(agent, written, "killed")


def _change(writer: Connection, number: int, port: int) -> None:
    writer.send("PUT", f"{SLICES}/service-{number}", slice_of(number, port, 2))


def _caught_up(agent: Agent, before: list[int], how: str, at_an_edge: int = 0) -> None:
    """What one changed slice takes is written, and no more but where one batch ends and one begins."""
    wait_for(lambda: not _problems(agent) and _written(agent) != before, 60, f"{how}: back again")
    entries = _written(agent)[len(before) :]
    most = _OF_A_CHANGE + at_an_edge * (len(entries) - 1)
    assert sum(entries) <= most, f"{how}: {entries} entries were written for one changed slice"
    print(f"faults: {how} for {GONE_SECONDS:.0f} s, then {entries} entries written", flush=True)


def _until(agent: Agent, *words: str) -> None:
    wait_for(lambda: any(w in _problems(agent) for w in words), 60, f"status with {words[0]!r}")
    assert any(word in (agent.folder / "log").read_text() for word in words)


def _problems(agent: Agent) -> str:
    return " ".join(agent.status().get("problems", ()))


def _written(agent: Agent) -> list[int]:
    lines = (agent.folder / "log").read_text().splitlines()
    return [json.loads(line)["entries"] for line in lines if "tables_written" in line]


@contextmanager
def _traffic(pods: list[Path]) -> Iterator[Callable[[], int]]:
    """The third pod asks the first two, by their Service; how many datagrams got no answer."""
    stopping, lost = threading.Event(), 0
    with ExitStack() as stack:

        def made(place: Path) -> socket.socket:
            one = netns.run_in(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            one.settimeout(1.0)
            return stack.enter_context(one)

        def echo(one: socket.socket) -> None:
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    one.sendto(*one.recvfrom(16))

        def ask(one: socket.socket) -> None:
            nonlocal lost
            while not stopping.is_set():
                one.sendto(b"x", (str(cluster_ip(CHANGING)), PORT))
                try:
                    one.recv(16)
                except TimeoutError:
                    lost += 1
                time.sleep(_EVERY_SECONDS)

        threads = [threading.Thread(target=ask, args=(made(pods[2]),))]
        for place in pods[:2]:
            bound = made(place)
            bound.bind(("", PORT))
            threads.append(threading.Thread(target=echo, args=(bound,)))
        for thread in reversed(threads):
            thread.start()
        try:
            yield lambda: lost
        finally:
            stopping.set()
            for thread in threads:
                thread.join()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, RuntimeError) as failure:
        sys.exit(f"faults: {failure}")
