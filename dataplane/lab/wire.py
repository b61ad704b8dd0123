# SPDX-License-Identifier: Apache-2.0
"""A lab's pods: a namespace and a stand-in each, wired by their node's agent over CNI.

Does for a pod what kubelet and containerd do. Must not choose addresses or nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dataplane.cni import client
from dataplane.kernel import netns
from dataplane.lab import inside, state
from dataplane.lab.state import LabFiles
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import IPAddress, Protocol
from dataplane.model.objects import Pod

INTERFACE = "eth0"
_KILL_SECONDS = 10.0
_CONFIG = {"cniVersion": "1.1.0", "name": "podlane", "type": "podlane-cni"}

Ports = Sequence[tuple[Protocol, int]]


@dataclass(frozen=True, slots=True)
class PodKey:
    """Which pod, where: all that its removal needs."""

    namespace: str
    name: str
    node: str

    @property
    def container(self) -> str:
        return f"{self.namespace}.{self.name}"


def key_of(pod: Pod) -> PodKey:
    """The key of a placed pod."""
    return PodKey(pod.namespace, pod.name, pod.node_name)


def ask(files: LabFiles, node: str, command: str, **env: str) -> dict[str, object]:
    """One CNI call to a node's agent.

    Raises:
        BadEnvironment: no agent, or it refused: in its words.
    """
    answer = client.request(
        files.node(node).run_dir / "cni.sock", {"CNI_COMMAND": command, **env}, _CONFIG
    )
    if "code" in answer:
        words = "; ".join(str(answer[k]) for k in ("msg", "details") if answer.get(k))
        raise BadEnvironment(
            f"{node}: CNI {command} {env.get('CNI_CONTAINERID', '')}".rstrip(), words
        )
    return answer


def answers(files: LabFiles, node: str) -> bool:
    """Whether a node's agent is there and ready for pods."""
    try:
        ask(files, node, "STATUS")
    except BadEnvironment:
        return False
    return True


def agent_problems(files: LabFiles, node: str) -> list[str]:
    """What a node's agent says that it does not serve."""
    with contextlib.suppress(OSError, ValueError):
        status = json.loads((files.node(node).run_dir / "status.json").read_text("utf-8"))
        return [str(problem) for problem in status.get("problems", ())]
    return []


def prepare(files: LabFiles, pod: Pod, ports: Ports) -> None:
    """Make a pod but for its network: the namespace, and its stand-in listening."""
    place = place_of(files, key_of(pod), pod.host_network)
    if not pod.host_network:
        netns.create(place)
        inside.ip_batch(place, ["link set lo up"])
    serve(place, f"{pod.namespace}/{pod.name}", ports)


def connect(files: LabFiles, key: PodKey, addresses: Iterable[IPAddress]) -> None:
    """CNI ADD with the addresses that the control plane chose."""
    arguments = {
        "IP": ",".join(map(str, addresses)),
        "K8S_POD_NAMESPACE": key.namespace,
        "K8S_POD_NAME": key.name,
    }
    ask(
        files,
        key.node,
        "ADD",
        CNI_CONTAINERID=key.container,
        CNI_NETNS=str(files.pod_netns(key.namespace, key.name)),
        CNI_IFNAME=INTERFACE,
        CNI_ARGS=";".join(f"{name}={value}" for name, value in arguments.items()),
    )


def stop(files: LabFiles, key: PodKey, host_network: bool) -> None:
    """Take a pod away: the wiring, the stand-in, the namespace."""
    if host_network:
        kill(stand_ins(files).get(f"{key.namespace}/{key.name}", ()))
        return
    path = files.pod_netns(key.namespace, key.name)
    ask(
        files, key.node, "DEL",
        CNI_CONTAINERID=key.container, CNI_NETNS=str(path), CNI_IFNAME=INTERFACE,
    )  # fmt: skip
    if path.exists():
        kill(state.processes(path))
        netns.delete(path)


def stand_ins(files: LabFiles) -> dict[str, list[int]]:
    """Process ids of stand-ins by the name that they answer with; none of one that ended."""
    found: dict[str, list[int]] = {}
    for pid in state.all_processes(files):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if words[1:2] == [b"serve"]:
                found.setdefault(words[2].decode(), []).append(pid)
    return found


def serve(place: Path, name: str, ports: Ports) -> None:
    """Start a stand-in in a namespace; it listens when this returns.

    Raises:
        BadEnvironment: a port is taken.
    """
    if ports:
        words = [f"{protocol.name.lower()}:{number}" for protocol, number in dict.fromkeys(ports)]
        inside.run(place, [str(inside.STAND_IN), "serve", name, *words])


def place_of(files: LabFiles, key: PodKey, host_network: bool) -> Path:
    """The namespace that a pod is in: its own or its node's."""
    if host_network:
        return files.node_netns(key.node)
    return files.pod_netns(key.namespace, key.name)


def kill(pids: Iterable[int]) -> None:
    """End processes of the lab; their ports are free when this returns."""
    with ExitStack() as closing:
        ends = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                end = os.pidfd_open(pid)
                closing.callback(os.close, end)
                signal.pidfd_send_signal(end, signal.SIGKILL)
                ends.append(end)
        for end in ends:
            select.select([end], [], [], _KILL_SECONDS)
