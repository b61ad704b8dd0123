# SPDX-License-Identifier: Apache-2.0
"""`podlane agent`: one process a node, one asyncio loop, one writer.

    objects ─▶ Desired ─▶ Plan ─▶ Writer ─▶ maps
    CNI ─────▶ Pods ──────────────▶ Writer ─▶ maps, veths
    time ────▶ Sweeps ────────────────────▶ flows that are silent for too long
    load balancers ─▶ HealthServers: what objects and the last write say

Wiring only. SIGTERM ends the process and takes nothing away: programs, maps, devices and
pods go on without it.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import os
import signal
import time
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

from dataplane.agent import collector, install, node, pins, source
from dataplane.agent.config import Config, unserved
from dataplane.agent.datapath import NodeDatapath
from dataplane.agent.health import HealthServers
from dataplane.agent.log import log
from dataplane.agent.rundir import SOCKET, RunDir
from dataplane.cni.server import Server
from dataplane.cni.store import Store
from dataplane.kernel import probes
from dataplane.kernel.netlink import Events, Links, NetlinkError
from dataplane.model.errors import BadEnvironment, PodlaneError
from dataplane.model.objects import Batch, Node, Problem

STORE = "pods.db"
SETTLE_SECONDS = 0.1
CARE_SECONDS = 2.0


class _Word(enum.Enum):
    """What the loop is told beside batches."""

    STOP = enum.auto()
    NETWORK = enum.auto()


def run(config: Config, manifests: Path | None) -> int:
    """Run the node, from a folder or from the API server, until SIGTERM or SIGINT; the process's exit status.

    Raises:
        PodlaneError: the node could not be brought up; what was made for it is gone again.
    """
    if os.geteuid() != 0:
        raise BadEnvironment("podlane agent", "needs root", "run it with sudo")
    probes.require()  # before anything is made
    rundir = RunDir(config.run_dir, config.node_name)
    rundir.take()
    try:
        rundir.say("starting")
        log("agent_started", node=config.node_name, pid=os.getpid())
        with _refusals_named(config.node_name):
            asyncio.run(_serve(config, manifests, rundir))
    except BaseException as failure:
        rundir.say("failed", why=str(failure))
        raise
    else:
        rundir.say("stopped")
    finally:
        rundir.release()
    return 0


@contextmanager
def _refusals_named(node_name: str) -> Iterator[None]:
    """A request that the kernel refused where nobody expects it is the node's state, no bug."""
    try:
        yield
    except NetlinkError as refusal:
        raise BadEnvironment(
            f"network of node {node_name}",
            f"the kernel refused a request: {refusal.strerror}",
            "the log's last lines say how far it came; --debug shows where",
        ) from refusal


async def _serve(config: Config, manifests: Path | None, rundir: RunDir) -> None:
    inbox: asyncio.Queue[Batch | _Word] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, inbox.put_nowait, _Word.STOP)
    if not pins.folders(config.bpffs_dir) and install.withdraw(config):
        log("conflist_withdrawn", why="the node has no datapath yet")
    report = _Report(rundir)
    report.problems(unserved(config), _Topic.CONFIG)
    try:
        async with aclosing(source.batches(config, manifests)) as batches, TaskGroup() as tasks:
            pump = tasks.create_task(_pump(batches, inbox))
            batch = await _first(inbox, config, manifests is not None, report)
            if batch is not None:
                await _run_node(config, batch, inbox, report, tasks)
            pump.cancel()
    except BaseExceptionGroup as group:
        # What failed first ended the others; whoever reports it wants it as it is.
        raise group.exceptions[0] from None
    log("agent_stopped", node=config.node_name)


async def _first(
    inbox: asyncio.Queue[Batch | _Word], config: Config, whole: bool, report: _Report
) -> Batch | None:
    """All objects, once the node can be brought up from them; None if told to stop.

    Args:
        whole: the first batch has all that there will be.
    """

    async def get() -> Batch | None:
        word = await inbox.get()
        return word if isinstance(word, Batch) else None

    return await (get() if whole else source.complete(get, config, report.problems))


async def _run_node(
    config: Config,
    batch: Batch,
    inbox: asyncio.Queue[Batch | _Word],
    report: _Report,
    tasks: TaskGroup,
) -> None:
    """Bring the node up, and follow objects and network until told to stop."""
    loop = asyncio.get_running_loop()
    with ExitStack() as closing:
        links = closing.enter_context(Links())
        store = closing.enter_context(Store(config.state_dir / STORE))
        own = next(
            (o for o in batch.upserts if isinstance(o, Node) and o.name == config.node_name), None
        )
        facts = node.find_facts(config, links, own)
        events = closing.enter_context(Events())
        with collector.at_rest():
            datapath = closing.enter_context(
                NodeDatapath.bring_up(config, facts, own, links, store)
            )
            problems = datapath.apply(batch)
        report.problems(problems)
        datapath.finish()
        server = Server(report.folder / SOCKET, datapath.pods, log)
        await server.start()
        servers = HealthServers(datapath.vitals, config.healthz_address)
        await servers.settle()
        report.problems(problems + servers.problems())
        report.problems(install.shadowed(config), _Topic.RUNTIME)
        report.ready()
        _settle_memory()
        if install.conflist(config):
            log("conflist_written", folder=config.cni_conf_dir)
        log("node_ready", node=config.node_name, mode=config.mode, pod_mtu=facts.pod_mtu)

        due = loop.time()

        def look() -> None:
            nonlocal due
            # One look for all that comes before it: each reads every route.
            if events.read(datapath.watched()) and due <= loop.time():
                due = loop.time() + SETTLE_SECONDS
                loop.call_at(due, inbox.put_nowait, _Word.NETWORK)

        loop.add_reader(events.fileno(), look)
        others = (
            tasks.create_task(datapath.sweeps.run()),
            tasks.create_task(datapath.sockets.run()),
            tasks.create_task(_care(config, datapath, report)),
        )
        try:
            await _follow(inbox, datapath, servers, report)
        finally:
            for task in others:
                task.cancel()
            loop.remove_reader(events.fileno())
            await servers.close()
            await server.stop()


def _settle_memory() -> None:
    """What is there now stays, so it need not be looked at again.

    A full collection waits until a quarter more is there than after the last one: beside
    all that a start makes, megabytes of a thousand pods' garbage.
    """
    gc.collect()
    gc.freeze()


async def _pump(batches: AsyncIterator[Batch], inbox: asyncio.Queue[Batch | _Word]) -> None:
    async for batch in batches:
        inbox.put_nowait(batch)


async def _care(config: Config, datapath: NodeDatapath, report: _Report) -> None:
    cares: dict[_Topic, Callable[[], tuple[Problem, ...]]] = {
        _Topic.RUNTIME: partial(install.shadowed, config),
        _Topic.DEVICES: datapath.care_for_devices,
        _Topic.PODS: datapath.care_for_pods,
        _Topic.SOCKETS: datapath.care_for_sockets,
    }
    while True:
        await asyncio.sleep(CARE_SECONDS)
        for topic, care in cares.items():
            try:
                found = care()
            except (PodlaneError, OSError) as failure:
                why = f"{failure}; tried again every {CARE_SECONDS:g} s"
                found = (Problem(f"care for {topic.name.lower()}", "agent", why),)
            report.problems(found, topic)


async def _follow(
    inbox: asyncio.Queue[Batch | _Word],
    datapath: NodeDatapath,
    servers: HealthServers,
    report: _Report,
) -> None:
    """Take in what the source saw and what changed on the node, until told to stop."""
    while True:
        wakes = [wake for wake in (datapath.wake(), servers.wake()) if wake is not None]
        timeout = max(0.0, min(wakes) - time.monotonic()) if wakes else None
        try:
            async with asyncio.timeout(timeout):
                word = await inbox.get()
        except TimeoutError:
            word = Batch()
        if word is _Word.STOP:
            return
        if word is _Word.NETWORK:
            datapath.look_again()
            word = Batch()
        problems = datapath.apply(word)
        await servers.settle()
        report.problems(problems + servers.problems())


class _Topic(enum.Enum):
    """What problems are about; each is told anew by itself."""

    CONFIG = enum.auto()
    DATAPATH = enum.auto()
    RUNTIME = enum.auto()
    DEVICES = enum.auto()
    PODS = enum.auto()
    SOCKETS = enum.auto()


class _Report:
    """Tells what is not served: in the log when it changes, in the status file always."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._found: dict[_Topic, tuple[Problem, ...]] = {}
        self._problems: tuple[str, ...] = ()
        self._state = "starting"

    @property
    def folder(self) -> Path:
        return self._rundir.path

    def ready(self) -> None:
        self._state = "ready"
        self._say()

    def problems(self, problems: tuple[Problem, ...], topic: _Topic = _Topic.DATAPATH) -> None:
        """All problems that a topic has now."""
        self._found[topic] = problems
        found = tuple(map(str, sorted(chain.from_iterable(self._found.values()))))
        for new in sorted(set(found) - set(self._problems)):
            log("problem_found", problem=new)
        for old in sorted(set(self._problems) - set(found)):
            log("problem_gone", problem=old)
        changed = found != self._problems
        self._problems = found
        if changed:
            self._say()

    def _say(self) -> None:
        self._rundir.say(self._state, problems=list(self._problems))
