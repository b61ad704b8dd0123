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

import pytest

from dataplane.kernel import netns
from tests.network import cni_node
from tests.network.cluster import PODLANE, AgentNode, Cluster, sh

BUILD = Path(__file__).resolve().parents[2] / "build"
IMAGE = "localhost/podlane-stand-in:test"
BUSYBOX = Path("/bin/busybox")
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
    """An image of two static programs, as `docker save` writes it: it answers on port 8080."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, source in (("stand-in", BUILD / "podlane-stand-in"), ("busybox", BUSYBOX)):
            put(tar, name, source.read_bytes())
    script = "/stand-in serve pause tcp:8080; exec /busybox sleep 3600"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/busybox", "sh", "-c", script]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]
    target = folder / "image.tar"
    with tarfile.open(target, "w") as tar:
        put(tar, "config.json", json.dumps(config).encode())
        put(tar, "layer.tar", layer.getvalue())
        put(tar, "manifest.json", json.dumps(manifest).encode())
    return target


def put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))


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
  sandbox_image = "{IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{node.folder}/cni/bin"
    conf_dir = "{node.folder}/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
        (self.folder / "config.toml").write_text(config)
        self.log = (self.folder / "log").open("w")
        self.process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{node.ns}",
             "containerd", "--config", str(self.folder / "config.toml")],
            stdout=self.log,
            stderr=self.log,
        )  # fmt: skip
        until = time.monotonic() + 30
        while not self.socket.exists() and time.monotonic() < until:
            time.sleep(0.1)
        self.ctr(f"images import --snapshotter native {pack(IMAGE, self.folder)}")

    def ctr(self, words: str, check: bool = True) -> str:
        return self.run(f"ctr -a {self.socket} -n k8s.io {words}", check)

    def cri(self, words: str) -> str:
        return self.run(f"{BUILD}/go/cri {self.socket} {words}")

    def run(self, command: str, check: bool = True) -> str:
        """In the node's network and everything else of this machine: cgroups are needed."""
        return sh(f"nsenter --net=/run/netns/{self.node.ns} {command}", check)

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


def answers(pid: int, address: str, port: int) -> bool:
    """Whether the pod of this process gets an answer from there."""
    client = f"nsenter -t {pid} -n {BUILD}/podlane-stand-in client 40000"
    return '"pod":"pause"' in sh(f"echo '1 tcp {address} {port} 1 2000' | {client}")


def test_cri_sandboxes_reach_each_other_and_a_service_and_leave_nothing(
    cluster: Cluster, containerd: Containerd
) -> None:
    found = [
        json.loads(containerd.cri(f"run test {name} {containerd.folder}"))
        for name in ("one", "two")
    ]
    first, second = found
    serve_web(cluster, second["ip"])
    assert answers(first["pid"], second["ip"], 8080)
    assert answers(first["pid"], "10.96.0.10", 80)
    for pod in found:
        containerd.cri(f"remove {pod['id']}")


def ctr_run(containerd: Containerd, words: str) -> str:
    """ctr looks in the default folders only, so it gets a mount namespace with ours there."""
    folders = (("cni/conf", "/etc/cni/net.d"), ("cni/bin", "/opt/cni/bin"))
    binds = "; ".join(
        f"mkdir -p {to}; mount --bind {containerd.node.folder}/{ours} {to}" for ours, to in folders
    )
    run = f"ctr -a {containerd.socket} -n k8s.io run --cni --snapshotter native {words}"
    return containerd.run(f"unshare -m sh -c '{binds}; {run}'")


def test_ctr_runs_a_container_in_our_network_and_takes_it_out_again(
    containerd: Containerd,
) -> None:
    """In the foreground: ctr waits for the container, and DELs; the fixture looks what is left."""
    node = containerd.node
    shown = ctr_run(
        containerd, f'--rm {IMAGE} ctr-{node.ns} /busybox sh -c "/busybox ip addr show dev eth0"'
    )
    assert "inet 10.244.1." in shown
    assert "inet6 fd00:244:1:" in shown


def test_ctr_leaves_a_detached_containers_network_to_its_user(containerd: Containerd) -> None:
    """ctr has no command that DELs it: garbage collection does."""
    node = containerd.node
    name = f"ctr-{node.ns}"
    ctr_run(containerd, f"-d {IMAGE} {name}")
    (line,) = [one for one in containerd.ctr("tasks ls").splitlines() if name in one]
    pid = int(line.split()[1])
    (entry,) = [
        one
        for one in json.loads(sh(f"nsenter -t {pid} -n ip -j -4 addr show dev eth0"))[0][
            "addr_info"
        ]
        if one["scope"] == "global"
    ]
    assert entry["local"].startswith("10.244.1.")
    assert sh(f"ip netns exec {node.ns} ping -c1 -W2 {entry['local']}")
    containerd.ctr(f"tasks rm -f {name}")
    containerd.ctr(f"containers rm {name}")
    given = cni_node.config(node, "1.1.0", **{"cni.dev/valid-attachments": []})
    assert cni_node.call("GC", "", "", given).status == 0
