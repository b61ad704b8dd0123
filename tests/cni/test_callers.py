# SPDX-License-Identifier: Apache-2.0
"""The plugin behind the specification's own caller, alone and in a chain with Debian's plugins.

cnitool ── podlane-cni [── tuning ── portmap | ── bandwidth] ── agent of node1
outside ── bridge ── eth0 of node1
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel import netns
from tests.network import cni_node
from tests.network.cluster import PODLANE, Cluster, sh

BUILD = Path(__file__).resolve().parents[2] / "build"
DEBIAN = Path("/usr/lib/cni")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        made.start()
        sh(f"{PODLANE} install --config {made.nodes[0].config}")
        yield made
    finally:
        made.close()


class Cnitool:
    """cnitool in the node's namespace, with a conflist of its own."""

    def __init__(self, cluster: Cluster, version: str, others: Sequence[object]) -> None:
        self.node = cluster.nodes[0]
        self.pins = cni_node.pins(self.node)
        self.ns = f"{self.node.ns}-tool"
        netns.create(Path("/run/netns") / self.ns)
        self.node.pods["tool"] = self.ns
        shipped = json.loads((self.node.folder / "cni/conf/05-podlane.conflist").read_text())
        shipped |= {"cniVersion": version, "plugins": [*shipped["plugins"], *others]}
        self.folder = self.node.folder / "tool"
        self.folder.mkdir(exist_ok=True)
        (self.folder / "10-test.conflist").write_text(json.dumps(shipped))

    def run(self, command: str, args: dict[str, Any] | None = None) -> tuple[int, str]:
        words = ["ip", "netns", "exec", self.node.ns, str(BUILD / "go/cnitool"), command]
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "NETCONFPATH": str(self.folder),
            "CNI_PATH": f"{self.node.folder}/cni/bin:{DEBIAN}",
            **({"CAP_ARGS": json.dumps(args)} if args else {}),
        }
        done = subprocess.run(
            [*words, "podlane", f"/run/netns/{self.ns}"], env=env, text=True, capture_output=True
        )
        print(f"$ cnitool {command}: {done.returncode} {done.stdout} {done.stderr}")
        return done.returncode, done.stdout + done.stderr

    def close(self) -> None:
        self.run("del")
        netns.delete(Path("/run/netns") / self.ns)
        del self.node.pods["tool"]
        assert cni_node.audit(self.node, {}, self.pins) == []


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_cnitool_speaks_every_version_with_us(cluster: Cluster, version: str) -> None:
    tool = Cnitool(cluster, version, [])
    try:
        status, output = tool.run("add")
        assert status == 0
        result = json.loads(output)
        assert result["cniVersion"] == version
        assert result["interfaces"][1]["name"] == "eth0"
        router = "10.244.1.1"
        sh(f"ip -n {tool.ns} link set lo up; ip netns exec {tool.ns} ping -c1 -W1 {router}")
        if version != "0.3.1":  # it has no CHECK
            assert tool.run("check")[0] == 0
        if version == "1.1.0":
            assert tool.run("status")[0] == 0
            assert tool.run("gc")[0] == 0
        assert tool.run("del")[0] == 0
    finally:
        tool.close()


def test_in_a_chain_with_tuning_and_portmap(cluster: Cluster) -> None:
    others = [
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ]
    tool = Cnitool(cluster, "1.0.0", others)
    ports = {"portMappings": [{"hostPort": 9090, "containerPort": 80, "protocol": "tcp"}]}
    try:
        assert tool.run("add", ports)[0] == 0
        value = sh(f"ip netns exec {tool.ns} cat /proc/sys/net/core/somaxconn")
        assert value.strip() == "500"
        server = subprocess.Popen(
            ["ip", "netns", "exec", tool.ns, "/usr/bin/python3", "-c",
             "import socket; s = socket.create_server(('', 80))\n"
             "while True: c, a = s.accept(); c.sendall(b'here'); c.close()"]
        )  # fmt: skip
        try:
            time.sleep(0.5)
            ask = "import socket; print(socket.create_connection(('192.0.2.1', 9090), 3).recv(9))"
            assert "here" in sh(f'ip netns exec {cluster.outside} /usr/bin/python3 -c "{ask}"')
        finally:
            server.kill()
            server.wait()
        # No CHECK: Debian's portmap 1.1.1 looks for its IPv4 rule in IPv6's table.
        assert tool.run("del", ports)[0] == 0
    finally:
        tool.close()


def test_debians_bandwidth_plugin_with_an_egress_rate_is_refused_by_name(
    cluster: Cluster,
) -> None:
    """By our words where the runtime's own folder has the chain, by the kernel's elsewhere."""
    limits = {"type": "bandwidth", "egressRate": 1_000_000, "egressBurst": 1_000_000}
    tool = Cnitool(cluster, "1.0.0", [limits])
    try:
        status, output = tool.run("add")
        assert status != 0
        assert 'plugin type="bandwidth" failed (add): create ingress qdisc' in output
    finally:
        tool.close()
    tool = Cnitool(cluster, "1.0.0", [limits])
    place = tool.node.folder / "cni/conf/05-podlane.conflist"
    shipped = place.read_text()
    try:
        place.write_text((tool.folder / "10-test.conflist").read_text())
        status, output = tool.run("add")
        assert status != 0
        assert f"plugin bandwidth in {place}: can't stand behind podlane-cni" in output
        assert "take it out of the chain: podlane itself shapes pods" in output
    finally:
        place.write_text(shipped)
        tool.close()


def test_a_pods_limits_reach_us_as_the_capability_says(cluster: Cluster) -> None:
    tool = Cnitool(cluster, "1.0.0", [])
    try:
        limits = {"ingressRate": 8_000_000, "ingressBurst": 0, "egressRate": 16_000_000}
        assert tool.run("add", {"bandwidth": limits})[0] == 0
        shown = json.loads(sh(f"tc -n {tool.ns} -j qdisc show dev eth0 root"))
        assert [(one["kind"], one["options"]["rate"]) for one in shown] == [("tbf", 2_000_000)]
        assert tool.run("check", {"bandwidth": limits})[0] == 0
    finally:
        tool.close()
