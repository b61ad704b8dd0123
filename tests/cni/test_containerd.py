# SPDX-License-Identifier: Apache-2.0
"""containerd with us as its network: by its library, by `ctr run --cni`, by a CRI sandbox.

containerd (in the node's namespace) ── loopback, podlane-cni ── agent of node1
    its images: one static program of ours, packed here
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import netns
from tests.network import cni_node
from tests.network.cluster import PODLANE, AgentNode, Cluster, sh

BUILD = Path(__file__).resolve().parents[2] / "build"
IMAGE = "localhost/podlane-stand-in:test"
PAUSE = "localhost/podlane-pause:test"
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "test"},
    "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
             "ports": [{"port": 80, "targetPort": 8080}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        made.write({"services": [SERVICE]})
        made.start()
        sh(f"{PODLANE} install --config {made.nodes[0].config}")
        yield made
    finally:
        made.close()


@pytest.fixture
def node(cluster: Cluster) -> Iterator[AgentNode]:
    made = cluster.nodes[0]
    pins = cni_node.pins(made)
    yield made
    assert cni_node.audit(made, {}, pins) == []
    shown = sh(f"{PODLANE} endpoints --bpffs {made.folder}/bpf -o json")
    assert not json.loads(shown), shown


def serve_web(cluster: Cluster, address: str) -> None:
    """Make the Service lead to this address."""
    slices = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "test",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [address], "nodeName": "node1", "conditions": {"ready": True}}],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }  # fmt: skip
    cluster.write({"slices": [slices]})
    time.sleep(1.5)


def test_containerds_library_sets_up_twenty_at_once_and_removes_them_twice(
    cluster: Cluster, node: AgentNode
) -> None:
    names = [f"{node.ns}-g{number}" for number in range(20)]
    for name in names:
        netns.create(Path("/run/netns") / name)
        node.pods[name] = name
    paths = " ".join(f"/run/netns/{name}" for name in names)
    caller = f"{BUILD}/go/callers {node.folder}/cni/conf {node.folder}/cni/bin"
    try:
        lines = node.run(f"{caller} add {paths}").splitlines()
        found = {one["netns"]: one["addresses"] for one in map(json.loads, lines)}
        assert len({address for given in found.values() for address in given}) == 40
        first, second = names[:2]
        server = subprocess.Popen(
            ["ip", "netns", "exec", second, str(BUILD / "podlane-stand-in"), "serve", "web", "tcp:8080"]
        )  # fmt: skip
        server.wait()
        address = found[f"/run/netns/{second}"][0]
        serve_web(cluster, address)
        for target in (f"{address} 8080", "10.96.0.10 80"):
            ask = f"1 tcp {target} 1 2000"
            done = sh(f"echo '{ask}' | ip netns exec {first} {BUILD}/podlane-stand-in client 40000")
            assert '"pod":"web"' in done
        for pid in sh(f"ip netns pids {second}").split():
            os.kill(int(pid), 9)
    finally:
        for _ in range(2):
            node.run(f"{caller} remove {paths}")
        for name in names:
            netns.delete(Path("/run/netns") / name)
            del node.pods[name]


def pack(image: str, folder: Path) -> Path:
    """An image of one static program, as `docker save` writes it."""
    program = (BUILD / "podlane-stand-in").read_bytes()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo("stand-in")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
    digest = sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/stand-in"], "Cmd": ["serve", "pause", "tcp:8080"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    name = f"{sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [image], "Layers": ["layer.tar"]}]
    target = folder / f"{image.split('/')[1].split(':')[0]}.tar"
    with tarfile.open(target, "w") as tar:
        for file, text in (
            (name, config),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(file)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
    return target


class Containerd:
    """A containerd of its own, in the node's namespace."""

    def __init__(self, node: AgentNode) -> None:
        self.node = node
        self.folder = Path(tempfile.mkdtemp(prefix="podlane-containerd-"))
        self.socket = self.folder / "containerd.sock"
        config = f"""
version = 2
root = "{self.folder}/root"
state = "{self.folder}/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{node.folder}/cni/bin"
    conf_dir = "{node.folder}/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
        (self.folder / "config.toml").write_text(config)
        self.log = (self.folder / "log").open("w")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", node.ns, "containerd", "--config", str(self.folder / "config.toml")],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        until = time.monotonic() + 30
        while not self.socket.exists() and time.monotonic() < until:
            time.sleep(0.1)
        for image in (IMAGE, PAUSE):
            self.ctr(f"images import --snapshotter native {pack(image, self.folder)}")

    def ctr(self, words: str, check: bool = True) -> str:
        return self.node.run(f"ctr -a {self.socket} -n k8s.io {words}", check)

    def cri(self, *words: str) -> str:
        crictl = BUILD / "go/crictl"
        return self.node.run(f"{crictl} -r unix://{self.socket} -t 60s {' '.join(words)}")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
        print((self.folder / "log").read_text()[-4000:])
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if f" {self.folder}" in line:
                sh(f"umount -l {line.split()[4]}", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def containerd(node: AgentNode) -> Iterator[Containerd]:
    made = Containerd(node)
    try:
        yield made
    finally:
        made.close()


def test_a_cri_sandbox_has_our_network_and_leaves_nothing(containerd: Containerd) -> None:
    pods = []
    for name in ("one", "two"):
        sandbox: dict[str, Any] = {
            "metadata": {"name": name, "namespace": "test", "uid": name, "attempt": 1},
            "log_directory": str(containerd.folder), "linux": {},
        }  # fmt: skip
        file = containerd.folder / f"{name}.json"
        file.write_text(json.dumps(sandbox))
        pods.append(containerd.cri("runp", str(file)).strip())
    found = []
    for pod in pods:
        status = json.loads(containerd.cri("inspectp", "-o", "json", pod))
        found.append((status["info"]["pid"], status["status"]["network"]["ip"]))
    (first, _), (_, address) = found
    ask = f"echo '1 tcp {address} 8080 1 2000' | nsenter -t {first} -n"
    assert '"pod":"pause"' in sh(f"{ask} {BUILD}/podlane-stand-in client 40000")
    for pod in pods:
        containerd.cri("stopp", pod)
        containerd.cri("rmp", pod)
