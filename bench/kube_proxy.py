# SPDX-License-Identifier: Apache-2.0
"""New connections as the real kube-proxy serves them, as podlane does, and without any proxy.

                 ┌─ eth0 ─ our node ────────────── veths ─ client, server
    API server ──┼─ eth0 ─ kube-proxy's, nftables ─ veths ─ client, server
                 └─ eth0 ─ kube-proxy's, iptables ─ veths ─ client, server
                           a kernel that routes ─── veths ─ client, server

All three take themselves for the same Node and see the same objects; the pods of all have the same
addresses. No proxy can be faster than the fourth, which has no Service to translate: its server has
the addresses that are Services' elsewhere, so that all four clients ask the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from bench import from_api, load
from bench.connections import MANY, SECONDS
from bench.from_api import changes_of, percentile
from bench.load import Target
from bench.measure import Figures, Goal, Result, pick
from bench.topology import routed
from dataplane.model.errors import BadEnvironment
from tests.cluster.agent import CHANGING, FIRST_POD, agent_of, await_true, fill, plug, server
from tests.cluster.api import Api
from tests.cluster.net import Net, inside
from tests.cluster.services import cluster_ip, services

MODES = ("nftables", "iptables")
PEER_ADDRESS = {"nftables": "172.29.0.13", "iptables": "172.29.0.14"}
ROUNDS = 9
MTU = 1450
FIRST = CHANGING + 1
SERVER, CLIENT = FIRST_POD, FIRST_POD + 1
_REST_SECONDS = 5.0  # in which proxies end what they do after the last change

Rates = dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class _Side:
    """A client; `node` is whose kernel remembers flows, if one does."""

    client: Path
    node: Path | None = None

    def target(self, span: int) -> Target:
        """The Services from the first on."""
        return Target(self.client, cluster_ip(FIRST), span=span)


def kube_proxy(many: int = MANY) -> list[Result]:
    """With one Service and with 10,000; then one of the 10,000 changes."""
    with ExitStack() as stack:
        served, net = stack.enter_context(server())
        served.create(services(range(FIRST, FIRST + 1), SERVER))
        agent = stack.enter_context(agent_of(served, net))
        pods = agent.add_pods(net, served, 10)
        addresses = IPv4Network(served.places.service_cidrs[0])
        bare, bare_server = stack.enter_context(routed(MTU, addresses))
        sides = {"ours": _Side(pods[1]), "bare": _Side(bare.place)}
        servers, pids = [pods[0], bare_server], [agent.pid]
        for number, mode in enumerate(MODES):
            sides[mode], place, pid = _peer(stack, served, net, mode, number)
            servers.append(place)
            pids.append(pid)
        for place in servers:
            stack.enter_context(load.server(place))
        one = _rates(sides, 1)
        with stopped(pids):  # each write would wake them all: they read the whole once it is there
            fill(served, range(CHANGING, FIRST), len(pods))
            served.create(services(range(FIRST + 1, FIRST + many), SERVER))
        all_of = _rates(sides, many)
        with stopped(pids[1:]):
            change, _ = changes_of(served, agent, pods)
    return [*_results(one, all_of), *_change_results(change)]


def _results(one: Rates, many: Rates) -> Iterator[Result]:
    for mode in MODES:
        goal = Goal("ratio", at_least=2.0)
        for name, what, rates, wanted in (
            (f"kube-proxy-{mode}-1", "1 Service", one, None),
            (f"kube-proxy-{mode}", f"{MANY:,} Services", many, goal),
        ):
            yield Result(name, f"connections/s, {what}", rates["ours"], rates[mode], wanted)
        yield Result(
            f"kube-proxy-{mode}-ceiling", "connections/s, routed without a Service (as ours)",
            many["bare"], many[mode], None,
        )  # fmt: skip


def _change_results(change: list[float]) -> Iterator[Result]:
    for percent, goal in ((50, None), (99, Goal("ours", at_most=5.0))):
        yield Result(
            f"slice-change-p{percent}", f"ms, {MANY:,} Services, a slice to packets, p{percent}",
            (percentile(change, percent),), (), goal,
        )  # fmt: skip


def _rates(sides: dict[str, _Side], span: int) -> Rates:
    """Connections a second of each side in rounds, once each serves the last Service."""
    for name, side in sides.items():
        last = Target(side.client, cluster_ip(FIRST + span - 1))
        await_true(lambda last=last: _serves(last), f"{name}: Service {span}", 0.5)  # type: ignore[misc]
    time.sleep(_REST_SECONDS)
    rounds: dict[str, list[Figures]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            if side.node is not None:
                # The kernel's table of flows has one limit for the machine: what is left goes.
                flush = inside(side.node, "conntrack", "-F")
                subprocess.run(flush, capture_output=True, check=True)
            rounds[name].append(load.run("tcp-crr", side.target(span), SECONDS))
    return {name: pick(found, "per_second") for name, found in rounds.items()}


def _serves(target: Target) -> bool:
    with suppress(BadEnvironment):
        load.run("tcp-rr", target, 0.01)
        return True
    return False


def _peer(
    stack: ExitStack, served: Api, net: Net, mode: str, number: int
) -> tuple[_Side, Path, int]:
    """A kube-proxy and pods that its node's kernel routes; where the server runs; its pid."""
    name = f"peer{number}"
    plug(net, served, name, PEER_ADDRESS[mode])
    for pod, address in ((f"client{number}", CLIENT), (f"server{number}", SERVER)):
        net.pod(pod, name, IPv4Interface(f"{address}/24"), MTU)
    pid = stack.enter_context(from_api.kube_proxy(served, net.path(name), mode))
    side = _Side(net.path(f"client{number}"), net.path(name))
    return side, net.path(f"server{number}"), pid


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Processes that stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
