# SPDX-License-Identifier: Apache-2.0
"""Bring a lab up, whole or not at all. `state.destroy` takes it down.

Does what a network, kubelets and containerd would do for a cluster: namespaces and
cables, one `podlane agent` a node, pods with stand-ins, routes to what Services open.
Must not decide what manifests mean, nor touch the machine's own network.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from dataplane.kernel import netns, probes
from dataplane.kernel.compiler import compile_bundle
from dataplane.kernel.netlink import Sysctls
from dataplane.lab import cluster, controlplane, inside, settle, state, topology, wire
from dataplane.lab.cluster import Lab, Wish
from dataplane.lab.controlplane import CLUSTER_RANGES, Assigned
from dataplane.lab.controlplane_services import SERVICE_RANGES
from dataplane.lab.state import LabFiles
from dataplane.lab.topology import OUTSIDE, UNDERLAY
from dataplane.lab.world import external_hosts, pod_name
from dataplane.model.errors import BadEnvironment, BadInput
from dataplane.model.net import Family
from dataplane.model.objects import Node, Pod
from dataplane.sources import manifests as sources

BUNDLE = inside.STAND_IN.with_name("podlane.bundle")
_AGENT_SECONDS = 30.0
_POLL_SECONDS = 0.02
_WORKERS = 8

Say = Callable[[str], None]


def up(files: LabFiles, wish: Wish, say: Say) -> Lab:
    """Bring a lab up; what an earlier one of this name left half made goes first.

    Args:
        say: is told each step as it begins.

    Raises:
        BadInput: manifests or settings that can't be used, or the lab is up already.
        BadEnvironment: what the machine lacks, or a step that failed; nothing is left.
    """
    inside.require()
    probes.require()
    manifests = sources.read(wish.paths, wish.stdin)
    assigned = controlplane.assign(manifests, wish.underlay(), wish.family)
    if wish.strict:
        refuse_problems(assigned)
    with state.locked(files):
        if is_alive(files):
            raise BadInput(
                f"lab {files.name}", "is up already", "`lab apply` changes it, `lab down` ends it"
            )
        state.destroy(files)
        say("compiling the programs")
        compile_bundle(BUNDLE)
        try:
            state.create(files)
            cluster.save_inputs(files, wish.paths, wish.stdin)
            return _build(files, wish, assigned, say)
        except BaseException:
            state.destroy(files)
            raise


def refuse_problems(assigned: Assigned) -> None:
    """--strict: raises BadInput with all that can't be served."""
    if assigned.problems:
        raise BadInput(
            "--strict", "; ".join(map(str, assigned.problems)), "mend these, or do without --strict"
        )


def is_alive(files: LabFiles) -> bool:
    """Whether the lab is whole: its record is written, and each node's agent answers."""
    record = cluster.read_record(files)
    return record is not None and all(wire.answers(files, node) for node in record["nodes"])


def _build(files: LabFiles, wish: Wish, assigned: Assigned, say: Say) -> Lab:
    nodes = assigned.nodes
    say(f"underlay, {len(nodes)} nodes, outside")
    cluster.give(files, assigned)
    _make_underlay(files, nodes, assigned.families)
    agents = [_start_agent(files, node, assigned, wish.mode) for node in nodes]
    lab = cluster.make(files, wish.mode, wish.family, assigned)
    pods = lab.runnable()
    say(f"{len(pods)} pods")
    prepare(lab, pods)
    say("agents")
    _await_agents(files, agents)
    say("wiring the pods")
    connect(files, pods)
    route(lab)
    say("waiting until every node serves every Service")
    settle.wait(lab)
    cluster.write_record(lab)
    return lab


def _make_underlay(files: LabFiles, nodes: Sequence[Node], families: Sequence[Family]) -> None:
    def path(name: str) -> Path:
        return files.netns(name) if name in (UNDERLAY, OUTSIDE) else files.node_netns(name)

    for name in (UNDERLAY, OUTSIDE, *(node.name for node in nodes)):
        netns.create(path(name))
    settings = Sysctls(path(UNDERLAY))
    settings.write("net/ipv4/ip_forward", "1")
    if Family.V6 in families:
        # The lab's addresses have one owner; to wait for another only costs time.
        settings.write("net/ipv6/conf/default/accept_dad", "0")
        settings.write("net/ipv6/conf/all/forwarding", "1")
    for name in ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"):
        if settings.read(name) is not None:
            settings.write(name, "0")
    inside.ip_batch(path(UNDERLAY), topology.underlay_commands(nodes, families, path))
    hosts = [(OUTSIDE, topology.outside_commands(families))]
    hosts += [(node.name, topology.node_commands(node, nodes, families)) for node in nodes]
    for name, lines in hosts:
        if Family.V6 in families:
            Sysctls(path(name)).write("net/ipv6/conf/eth0/accept_dad", "0")
        inside.ip_batch(path(name), lines)


def _start_agent(
    files: LabFiles, node: Node, assigned: Assigned, mode: str
) -> tuple[str, subprocess.Popen[bytes]]:
    own = files.node(node.name)
    for folder in (own.run_dir, own.state_dir, own.bpf_mount):
        folder.mkdir(parents=True)
    state.mount("bpf", own.bpf_mount, "-o", "mode=0700")
    config = {
        "nodeName": node.name,
        "clusterCIDRs": [str(CLUSTER_RANGES[family]) for family in assigned.families],
        "serviceCIDRs": [str(SERVICE_RANGES[family]) for family in assigned.families],
        "mode": mode,
        "runDir": str(own.run_dir),
        "stateDir": str(own.state_dir),
        "bpffsDir": str(own.bpffs_dir),
        # The machine's own folders are a runtime's; nobody here needs a plugin to be found.
        "cniBinDir": str(own.run_dir / "cni" / "bin"),
        "cniConfDir": str(own.run_dir / "cni" / "conf"),
    }
    own.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("podlane")),
        *("agent", "--config", str(own.config), "--manifests", str(files.manifests)),
    ]
    with own.log.open("wb") as log:
        # A session of its own: Ctrl-C at `lab up` is for `lab up`, which then ends the agents.
        return node.name, subprocess.Popen(
            inside.entering(files.node_netns(node.name), command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _await_agents(files: LabFiles, agents: Sequence[tuple[str, subprocess.Popen[bytes]]]) -> None:
    end = time.monotonic() + _AGENT_SECONDS
    for name, process in agents:
        while not wire.answers(files, name):
            if process.poll() is not None:
                log = files.node(name).log.read_text(encoding="utf-8", errors="replace")
                words = log.strip().splitlines() or [f"ended with status {process.returncode}"]
                raise BadEnvironment(f"agent of {name}", words[-1].removeprefix("podlane: "))
            if time.monotonic() > end:
                raise BadEnvironment(
                    f"agent of {name}", f"is not ready after {_AGENT_SECONDS:.0f} seconds"
                )
            time.sleep(_POLL_SECONDS)


def prepare(lab: Lab, pods: Sequence[Pod]) -> None:
    """Make pods but for their network."""
    ports = lab.world.stand_ins
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(lambda pod: wire.prepare(lab.files, pod, ports[pod_name(pod)]), pods))


def connect(files: LabFiles, pods: Sequence[Pod]) -> None:
    """Wire pods: one after the other on a node, the nodes side by side."""
    nodes: dict[str, list[Pod]] = {}
    for pod in pods:
        if not pod.host_network:
            nodes.setdefault(pod.node_name, []).append(pod)

    def connect_all(own: Sequence[Pod]) -> None:
        for pod in own:
            wire.connect(files, wire.key_of(pod), pod.addresses)

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(connect_all, nodes.values()))


def route(lab: Lab) -> None:
    """Route what Services open to the nodes, and what endpoints name outside to `outside`."""
    underlay, outside = lab.files.netns(UNDERLAY), lab.files.netns(OUTSIDE)
    hosts = external_hosts(lab.world)
    addresses = sorted(hosts, key=lambda a: (a.version, int(a)))
    for family in lab.world.families:
        lines = topology.service_route_commands(lab.world.nodes, lab.world.entries, family)
        inside.ip_batch(underlay, lines, family)
    inside.ip_batch(outside, topology.external_host_commands(addresses))
    inside.ip_batch(underlay, topology.external_route_commands(addresses))
    wire.kill(wire.stand_ins(lab.files).get(OUTSIDE, ()))  # who runs a command there goes on
    wire.serve(outside, OUTSIDE, [port for ports in hosts.values() for port in ports])
