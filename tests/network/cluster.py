# SPDX-License-Identifier: Apache-2.0
"""A few nodes in namespaces, each with its own `podlane agent`, for tests of the agent.

    node 1 ns ── eth0 ─┐
    node 2 ns ── eth0 ─┼─ bridge in a namespace of its own (192.0.2.0/24, 2001:db8::/64)
    outside   ── eth0 ─┘

Everything has a random suffix and is gone after `close`. Must not use the lab's code.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataplane.cni.client import request
from dataplane.kernel import netns
from dataplane.kernel.compiler import compile_bundle
from dataplane.kernel.source import bundle_path
from dataplane.model.net import Family

PODLANE = str(Path(sys.executable).parent / "podlane")
SIZES = {"flows": 4096, "services": 256, "slots": 4096, "backends": 1024, "backend_counters": 1024}
SIZES |= {"frontends": 1024, "service_counters": 256, "routes": 256, "peers": 256, "names": 1024}


LINK = {Family.V4: "192.0.2.", Family.V6: "2001:db8::"}  # then a node's number


def sh(command: str, check: bool = True) -> str:
    """Run a command, echoed; its output."""
    print(f"$ {command}")
    done = subprocess.run(command, shell=True, text=True, capture_output=True)
    print(done.stdout + done.stderr, end="")
    if check and done.returncode:
        raise AssertionError(f"{command}: exit {done.returncode}: {done.stderr}")
    return done.stdout


@dataclass
class AgentNode:
    """One node: its namespace, folder and agent."""

    name: str
    number: int
    ns: str
    folder: Path
    mode: str
    process: subprocess.Popen[str] | None = None
    pods: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def write_config(self, **more: object) -> None:
        settings: dict[str, object] = {
            "nodeName": self.name,
            "mode": self.mode,
            "runDir": str(self.folder / "run"),
            "stateDir": str(self.folder / "state"),
            "bpffsDir": str(self.folder / "bpf"),
            "serviceCIDRs": ["10.96.0.0/16", "fd00:96::/112"],
            "mapSizes": SIZES,
            "cniBinDir": str(self.folder / "cni/bin"),
            "cniConfDir": str(self.folder / "cni/conf"),
            **more,
        }
        self.config.write_text(json.dumps(settings))  # JSON is YAML

    def run(self, command: str, check: bool = True) -> str:
        return sh(f"ip netns exec {self.ns} {command}", check)

    def start(self, manifests: Path | None, wait: bool = True) -> None:
        """Start the agent, with no folder to run from the API server that its config names."""
        log = (self.folder / "agent.log").open("a")
        self.process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.ns}", PODLANE, "agent", "--config", str(self.config),
             *(("--manifests", str(manifests)) if manifests else ())],
            stderr=log, stdout=log, text=True,
        )  # fmt: skip
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = 300) -> None:
        """Wait until the agent says ready: an emulated CPU takes a minute to verify programs."""
        assert self.process is not None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.status()
            if status.get("state") == "ready" and status.get("pid") == self.process.pid:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"agent of {self.name} is not ready:\n{self.log()}")

    def status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads((self.folder / "run/status.json").read_text())
        except (OSError, ValueError):
            return {}
        return status

    def service_ids(self) -> dict[str, int]:
        """The ids of Services in the pinned maps, by name and port."""
        rows = json.loads(sh(f"{PODLANE} services --bpffs {self.folder}/bpf -o json"))
        return {row["service"]: row["id"] for row in rows}

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the agent; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(10)
        self.process = None
        return status

    def cni(
        self,
        command: str,
        container: str,
        netns_path: str = "",
        args: str = "",
        version: str = "1.0.0",
        runtime: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns_path,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": args,
        }
        config: dict[str, Any] = {
            "cniVersion": version, "name": "podlane", "type": "podlane-cni",
        }  # fmt: skip
        if runtime:
            config["runtimeConfig"] = runtime
        print(f"cni {self.name}: {command} {container} {args}")
        answer = request(self.folder / "run/cni.sock", env, config)
        print(f"  {answer}")
        return answer

    def add_pod(
        self, name: str, addresses: str = "", runtime: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A namespace with a loopback, and ADD."""
        ns = f"{self.ns}-{name}"
        netns.create(Path("/run/netns") / ns)
        sh(f"ip -n {ns} link set lo up")
        self.pods[name] = ns
        args = f"K8S_POD_NAMESPACE=test;K8S_POD_NAME={name}"
        if addresses:
            args += f";IP={addresses}"
        return self.cni("ADD", f"c-{ns}", f"/run/netns/{ns}", args, runtime=runtime)

    def delete_pod(self, name: str) -> dict[str, Any]:
        ns = self.pods.pop(name)
        answer = self.cni("DEL", f"c-{ns}", f"/run/netns/{ns}")
        netns.delete(Path("/run/netns") / ns)
        return answer

    def in_pod(self, name: str, command: str, check: bool = True) -> str:
        return sh(f"ip netns exec {self.pods[name]} {command}", check)


class Cluster:
    """Nodes 1 … n, their manifests, and a host outside. underlay: families of the links between."""

    def __init__(
        self, count: int, mode: str = "vxlan", underlay: Sequence[Family] = tuple(Family)
    ) -> None:
        self.underlay = tuple(underlay)
        self.suffix = secrets.token_hex(2)
        self.folder = Path(tempfile.mkdtemp(prefix=f"podlane-test-{self.suffix}-"))
        self.manifests = self.folder / "manifests"
        self.manifests.mkdir()
        self.nodes: list[AgentNode] = []
        self.namespaces: list[str] = []
        self.fabric = self._namespace("fabric")
        sh(f"ip -n {self.fabric} link add br0 type bridge")
        sh(f"ip -n {self.fabric} link set br0 up")
        self.outside = self._namespace("outside")
        self._plug(self.outside, 100)
        for number in range(1, count + 1):
            ns = self._namespace(f"n{number}")
            self._plug(ns, number)
            for family in self.underlay:
                sh(f"ip -n {ns} -{int(family)} route add default via {LINK[family]}100")
            folder = self.folder / f"n{number}"
            (folder / "bpf").mkdir(parents=True)
            sh(f"mount -t bpf bpf {folder}/bpf")
            node = AgentNode(f"node{number}", number, ns, folder, mode)
            node.write_config()
            self.nodes.append(node)
        self.write({"nodes": [self._node(node) for node in self.nodes]})

    def _namespace(self, name: str) -> str:
        ns = f"pt{self.suffix}-{name}"
        netns.create(Path("/run/netns") / ns)
        self.namespaces.append(ns)
        # A forwarded packet's neighbour is asked for from the link-local address, and while that is
        # tentative (up to two seconds) nothing is asked.
        sh(f"ip netns exec {ns} sysctl -qw net.ipv6.conf.default.accept_dad=0")
        sh(f"ip -n {ns} link set lo up")
        return ns

    def _plug(self, ns: str, number: int) -> None:
        sh(
            f"ip -n {self.fabric} link add p{number} type veth peer name eth0 netns {ns}"
            f" && ip -n {self.fabric} link set p{number} master br0 up"
            f" && ip -n {ns} link set eth0 up"
        )
        for family in self.underlay:
            more = "/24 dev eth0" if family is Family.V4 else "/64 dev eth0 nodad"
            sh(f"ip -n {ns} addr add {LINK[family]}{number}{more}")

    def _node(self, node: AgentNode) -> Mapping[str, Any]:
        number = node.number
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name},
            "spec": {
                "podCIDR": f"10.244.{number}.0/24",
                "podCIDRs": [f"10.244.{number}.0/24", f"fd00:244:{number}::/64"],
            },
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": f"{LINK[family]}{number}"}
                    for family in self.underlay
                ]
            },
        }

    def write(self, files: Mapping[str, list[Mapping[str, Any]]]) -> None:
        """Put objects into the folder that the agents follow, a file a name."""
        for name, objects in files.items():
            temporary = self.manifests / f".{name}"
            temporary.write_text("\n---\n".join(json.dumps(one) for one in objects))
            temporary.rename(self.manifests / f"{name}.yaml")

    def start(self) -> None:
        compile_bundle(bundle_path())  # once, not by every agent at the same time
        for node in self.nodes:
            node.start(self.manifests, wait=False)
        for node in self.nodes:
            node.wait_ready()

    def close(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                node.process.kill()
                node.process.wait()
                print(f"--- agent of {node.name}\n{node.log()}")
            for ns in node.pods.values():
                netns.delete(Path("/run/netns") / ns)
            sh(f"umount {node.folder}/bpf", check=False)
        for ns in self.namespaces:
            netns.delete(Path("/run/netns") / ns)
        shutil.rmtree(self.folder, ignore_errors=True)
