# SPDX-License-Identifier: Apache-2.0
"""The plugin as a runtime calls it: bad input, an agent that is away, reboots, lost state.

runtime (this test) ── podlane-cni ── socket ── agent of node1 ── kernel
outside ── bridge ── eth0 of node1
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dataplane.cni import protocol
from dataplane.kernel import netns
from tests.network import cni_node, life
from tests.network.cluster import PODLANE, AgentNode, Cluster, sh
from tests.network.cni_node import Answer, audit


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(1)
    try:
        made.start()
        yield made
    finally:
        made.close()


class Sandboxes:
    """Pods of one test; everything is DELed at its end, and the node is audited."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.node = cluster, cluster.nodes[0]
        self.live: dict[str, str] = {}
        self.pins = cni_node.pins(self.node)

    def netns(self, name: str) -> str:
        ns = f"{self.node.ns}-{name}"
        if ns not in self.node.pods.values():
            netns.create(Path("/run/netns") / ns)
            self.node.pods[name] = ns
        return ns

    def add(self, name: str, args: str = "", **config: Any) -> Answer:
        ns = self.netns(name)
        given = cni_node.config(self.node, **config)
        args = args or f"K8S_POD_NAMESPACE=test;K8S_POD_NAME={name}"
        answer = cni_node.call("ADD", name, f"/run/netns/{ns}", given, args)
        if answer.status == 0:
            self.live[name] = ns
        return answer

    def ask(self, command: str, name: str, version: str = "1.1.0", **config: Any) -> Answer:
        given = cni_node.config(self.node, version, **config)
        answer = cni_node.call(command, name, f"/run/netns/{self.node.ns}-{name}", given)
        if command == "DEL" and answer.status == 0:
            self.live.pop(name, None)
        return answer

    def faults(self) -> list[str]:
        return audit(self.node, self.live, self.pins)


@pytest.fixture
def pods(cluster: Cluster) -> Iterator[Sandboxes]:
    made = Sandboxes(cluster)
    yield made
    for name in list(made.live):
        assert made.ask("DEL", name).status == 0
    for name, ns in list(made.node.pods.items()):
        netns.delete(Path("/run/netns") / ns)
        del made.node.pods[name]
    assert made.faults() == []


def restart(pods: Sandboxes) -> None:
    pods.node.stop(signal.SIGKILL)
    pods.node.start(pods.cluster.manifests)


@pytest.mark.parametrize(
    ("env", "config", "code"),
    [
        ({"CNI_COMMAND": ""}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_CONTAINERID": ""}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_CONTAINERID": "a/b"}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_CONTAINERID": "../../etc"}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_CONTAINERID": ".."}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_CONTAINERID": "x" * 300}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": ""}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": "x" * 16}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": "a b"}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_IFNAME": ".."}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_NETNS": ""}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_NETNS": "/etc/hostname"}, {}, protocol.IO_FAILED),
        ({"CNI_NETNS": "/run/netns/there-is-none"}, {}, protocol.IO_FAILED),
        ({"CNI_ARGS": "nonsense"}, {}, protocol.BAD_ENVIRONMENT),
        ({"CNI_ARGS": "IP=10.244.1"}, {}, protocol.BAD_ENVIRONMENT),
        ({}, {"cniVersion": "9.9.9"}, protocol.UNSUPPORTED_VERSION),
        ({}, {"cniVersion": 1}, protocol.BAD_CONFIG),
        ({"CNI_COMMAND": "CHECK"}, {"cniVersion": "0.3.1"}, protocol.UNSUPPORTED_VERSION),
        (
            {"CNI_COMMAND": "GC"},
            {"cniVersion": "1.1.0", "cni.dev/valid-attachments": {}},
            protocol.BAD_CONFIG,
        ),
        ({}, {"runtimeConfig": 1}, protocol.BAD_CONFIG),
        ({}, {"runtimeConfig": {"portMappings": {}}}, protocol.BAD_CONFIG),
        ({}, {"runtimeConfig": {"portMappings": [{"hostPort": "80"}]}}, protocol.BAD_CONFIG),
        ({}, {"runtimeConfig": {"mac": "no mac"}}, protocol.BAD_CONFIG),
        ({}, {"runtimeConfig": {"ips": ["nowhere"]}}, protocol.BAD_CONFIG),
        ({}, {"runtimeConfig": {"bandwidth": {"egressRate": -1}}}, protocol.BAD_CONFIG),
        ({}, {"runtimeConfig": {"bandwidth": {"ingressRate": "1M"}}}, protocol.BAD_CONFIG),
        ({}, {"prevResult": []}, protocol.BAD_CONFIG),
        ({}, {"socket": 7}, protocol.BAD_CONFIG),
        ({}, b"", protocol.DECODE_FAILED),
        ({}, b"{", protocol.DECODE_FAILED),
        ({}, b"[]", protocol.DECODE_FAILED),
        ({}, b"[" * 100_000, protocol.DECODE_FAILED),
        ({}, b'{"name": "' + b"x" * 10_000_000 + b'"}', protocol.DECODE_FAILED),
    ],
)
def test_bad_input_has_its_code_and_leaves_nothing(
    pods: Sandboxes, env: dict[str, str], config: dict[str, Any] | bytes, code: int
) -> None:
    values = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "bad", "CNI_IFNAME": "eth0"}
    values |= {"CNI_NETNS": f"/run/netns/{pods.netns('bad')}", **env}
    given = (
        config
        if isinstance(config, bytes)
        else json.dumps({**cni_node.config(pods.node), **config}).encode()
    )
    done = subprocess.run([cni_node.PLUGIN], env=values, input=given, capture_output=True)
    answer = json.loads(done.stdout)
    assert (done.returncode != 0, answer["code"]) == (True, code), answer
    assert answer["msg"]
    assert pods.faults() == []


def test_version_needs_no_input() -> None:
    done = subprocess.run(
        [cni_node.PLUGIN], env={"CNI_COMMAND": "VERSION"}, stdin=subprocess.DEVNULL,
        capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["supportedVersions"] == list(protocol.VERSIONS)


def test_an_interface_that_exists_is_refused(pods: Sandboxes) -> None:
    assert pods.add("a").status == 0
    again = pods.add("a")
    assert again.code == protocol.BAD_ENVIRONMENT
    assert "has interface eth0 already" in again.json["msg"]


def test_many_at_once_all_get_an_address(pods: Sandboxes) -> None:
    names = [f"m{number}" for number in range(250)]
    for name in names:
        pods.netns(name)
    given = cni_node.config(pods.node)
    begin = time.monotonic()
    calls = {
        name: cni_node.start("ADD", name, f"/run/netns/{pods.netns(name)}", given) for name in names
    }
    answers = {name: cni_node.end(process) for name, process in calls.items()}
    print(f"250 ADDs at once: {time.monotonic() - begin:.2f} s")
    pods.live |= {name: pods.netns(name) for name, one in answers.items() if one.status == 0}
    assert [one for one in answers.values() if one.status] == []
    addresses = [ip["address"] for one in answers.values() for ip in one.json["ips"]]
    assert len(set(addresses)) == 500
    assert pods.faults() == []
    # 10.244.1.0/24 has 253 addresses for pods: three more, and then none.
    assert pods.add("x1").status == 0
    assert pods.add("x2").status == 0
    assert pods.add("x3").status == 0
    full = pods.add("x4")
    assert full.code == protocol.TRY_LATER
    assert "10.244.1.0/24" in full.json["msg"]
    assert "all 253 addresses" in full.json["msg"]
    status = pods.ask("STATUS", "")
    assert status.code == protocol.NOT_AVAILABLE
    assert "all 253 addresses" in status.json["msg"]


def test_a_delete_can_be_repeated_and_needs_no_namespace(pods: Sandboxes) -> None:
    for name in ("empty", "gone", "twice"):
        assert pods.add(name).status == 0
    given = cni_node.config(pods.node)
    assert cni_node.call("DEL", "empty", "", given).status == 0
    netns.delete(Path("/run/netns") / pods.netns("gone"))
    assert cni_node.call("DEL", "gone", f"/run/netns/{pods.netns('gone')}", given).status == 0
    for _ in range(2):
        assert pods.ask("DEL", "twice").status == 0
    pods.live.clear()
    assert pods.faults() == []


def test_with_the_agent_away_a_delete_is_recorded_and_an_add_is_for_later(
    pods: Sandboxes,
) -> None:
    first = pods.add("a")
    pods.node.stop(signal.SIGKILL)
    assert pods.ask("STATUS", "").code == protocol.NOT_AVAILABLE
    assert pods.ask("CHECK", "a").code == protocol.TRY_LATER
    begin = time.monotonic()
    assert pods.ask("DEL", "a").status == 0
    assert time.monotonic() - begin < 1
    begin = time.monotonic()
    late = pods.add("b")
    assert late.code == protocol.TRY_LATER
    assert 9 < time.monotonic() - begin < 15
    pods.node.start(pods.cluster.manifests)
    assert pods.faults() == []
    # Its address rests: the next pod gets another.
    assert pods.add("a").json["ips"] != first.json["ips"]


def test_a_release_that_waits_does_not_free_a_later_pod(pods: Sandboxes) -> None:
    assert pods.add("a").status == 0
    pods.node.stop(signal.SIGKILL)
    assert pods.ask("DEL", "a").status == 0
    netns.delete(Path("/run/netns") / pods.node.pods.pop("a"))
    pods.node.start(pods.cluster.manifests)
    assert pods.add("a").status == 0
    time.sleep(3)
    assert pods.ask("CHECK", "a").status == 0


def test_after_a_reboot_everything_is_free(pods: Sandboxes) -> None:
    given = set()
    for number in range(5):
        answer = pods.add(f"r{number}")
        given |= {ip["address"] for ip in answer.json["ips"]}
    pods.node.stop(signal.SIGKILL)
    for name in list(pods.live):
        netns.delete(Path("/run/netns") / pods.node.pods.pop(name))
    pods.live.clear()
    time.sleep(0.5)
    pods.node.start(pods.cluster.manifests)
    assert pods.faults() == []
    new = {ip["address"] for ip in pods.add("after").json["ips"]}
    assert not new & given


@pytest.mark.parametrize("how", ["damaged", "deleted"])
def test_a_lost_database_is_rebuilt_from_what_lives(pods: Sandboxes, how: str) -> None:
    ports = [{"HostPort": 8081, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]
    a = pods.add("a", runtimeConfig={"portMappings": ports})
    b = pods.add("b")
    assert (a.status, b.status) == (0, 0)
    pods.node.stop(signal.SIGKILL)
    state = pods.node.folder / "state"
    if how == "damaged":
        for end in ("-wal", "-shm"):
            (state / f"pods.db{end}").unlink(missing_ok=True)
        (state / "pods.db").write_bytes(os.urandom(20000))
    else:
        shutil.rmtree(state)
    pods.node.start(pods.cluster.manifests)
    for moved in state.glob("pods.db.damaged-*"):
        assert "STATE_DAMAGED" in pods.node.log()
        moved.unlink()
    assert pods.faults() == []
    for name, before in (("a", a), ("b", b)):
        assert pods.ask("CHECK", name, "1.0.0", prevResult=before.json).status == 0
    taken = pods.add("c", runtimeConfig={"portMappings": ports})
    assert "is held by pod test/a" in taken.json["msg"]


def test_a_state_folder_that_cannot_be_written_is_told_and_nothing_leaks(
    pods: Sandboxes,
) -> None:
    assert pods.add("before").status == 0
    database = sqlite3.connect(pods.node.folder / "state/pods.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        refused = pods.add("a")
        assert refused.code == protocol.IO_FAILED
        assert "pods.db" in refused.json["msg"]
        assert pods.ask("STATUS", "").code == protocol.NOT_AVAILABLE
    finally:
        database.execute("ROLLBACK")
        database.close()
    assert pods.faults() == []


def test_garbage_is_what_the_runtime_does_not_name(pods: Sandboxes) -> None:
    for name in ("keep", "drop"):
        assert pods.add(name).status == 0
    valid: dict[str, Any] = {
        "cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]
    }
    assert pods.ask("GC", "", **valid).status == 0
    del pods.live["drop"]
    assert pods.faults() == []
    assert pods.ask("STATUS", "").status == 0


@contextmanager
def serving(ns: str) -> Iterator[None]:
    """A server in a pod's namespace that says `here` on port 80 of both families."""
    sh(f"ip -n {ns} link set lo up")
    server = subprocess.Popen(
        ["ip", "netns", "exec", ns, "/usr/bin/python3", "-c",
         "import socket; s = socket.create_server(('::', 80), family=socket.AF_INET6,"
         " dualstack_ipv6=True)\nwhile True: c, a = s.accept(); c.sendall(b'here'); c.close()"]
    )  # fmt: skip
    try:
        time.sleep(0.5)
        yield
    finally:
        server.kill()
        server.wait()


def says(ns: str, address: str, port: int) -> str:
    """What a server says to who asks from a namespace."""
    ask = (
        "import socket; s = socket.create_connection"
        f"(('{address}', {port}), 3); print(s.recv(9).decode())"
    )
    return sh(f'ip netns exec {ns} /usr/bin/python3 -c "{ask}"', check=False).strip()


def test_a_host_port_leads_to_its_pod_and_has_one_holder(pods: Sandboxes) -> None:
    ports = [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}]
    assert pods.add("web", runtimeConfig={"PortMappings": ports}).status == 0
    with serving(pods.node.pods["web"]):
        for address in ("192.0.2.1", "2001:db8::1"):
            assert says(pods.cluster.outside, address, 8080) == "here"
        assert says(pods.node.ns, "127.0.0.1", 8080) == "here"
    other = pods.add("other", runtimeConfig={"portMappings": ports})
    assert other.code == protocol.BAD_CONFIG
    assert "hostPort *:8080/TCP: is held by pod test/web" in other.json["msg"]
    restart(pods)
    assert pods.ask("CHECK", "web").status == 0
    assert pods.ask("DEL", "web").status == 0
    assert pods.add("other", runtimeConfig={"portMappings": ports}).status == 0


def test_a_host_port_on_loopback_is_for_the_node_itself(pods: Sandboxes) -> None:
    ports = [
        {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": address}
        for address in ("127.0.0.1", "::1")
    ]
    assert pods.add("web", runtimeConfig={"portMappings": ports}).status == 0
    with serving(pods.node.pods["web"]):
        for address in ("127.0.0.1", "::1"):
            assert says(pods.node.ns, address, 8082) == "here"
        assert says(pods.cluster.outside, "192.0.2.1", 8082) == ""


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:db8::8888"])
def test_a_host_port_takes_over_nobodys_address(pods: Sandboxes, address: str) -> None:
    ports = [{"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": address}]
    assert pods.add("thief", runtimeConfig={"portMappings": ports}).status == 0
    services = sh(f"{PODLANE} services --bpffs {pods.node.folder}/bpf -o json")
    assert address not in services
    assert f"{address} is not an address of this node" in pods.node.log()
    assert pods.faults() == []


def test_a_host_port_follows_a_floating_address(pods: Sandboxes) -> None:
    """keepalived's on the node that is not the master."""
    floating = "192.0.2.202"
    ports = [{"hostPort": 8085, "containerPort": 80, "protocol": "tcp", "hostIP": floating}]
    assert pods.add("web", runtimeConfig={"portMappings": ports}).status == 0
    with serving(pods.node.pods["web"]):
        for _ in range(2):
            assert says(pods.cluster.outside, floating, 8085) == ""
            pods.node.run(f"ip addr add {floating}/24 dev eth0")
            try:
                life.wait(lambda: says(pods.cluster.outside, floating, 8085) == "here")
            finally:
                pods.node.run(f"ip addr del {floating}/24 dev eth0")
            life.wait(lambda: says(pods.cluster.outside, floating, 8085) == "")
    assert pods.faults() == []


def test_mac_and_addresses_are_as_asked(pods: Sandboxes) -> None:
    asked = {"mac": "02:11:22:33:44:55", "IPs": ["10.244.1.99/24", "fd00:244:1::99"]}
    answer = pods.add("a", runtimeConfig=asked)
    assert answer.json["interfaces"][1]["mac"] == "02:11:22:33:44:55"
    assert [ip["address"] for ip in answer.json["ips"]] == ["10.244.1.99/32", "fd00:244:1::99/128"]


def test_what_a_plugin_before_made_comes_first(pods: Sandboxes) -> None:
    before = {"cniVersion": "1.0.0", "interfaces": [{"name": "lo"}], "dns": {"domain": "x"}}
    before["ips"] = [{"address": "192.168.0.1/24", "interface": 0}]
    answer = pods.add("a", prevResult=before).json
    assert [one["name"] for one in answer["interfaces"]][::2] == ["lo", "eth0"]
    assert [ip["interface"] for ip in answer["ips"]] == [0, 2, 2]
    assert answer["dns"] == {"domain": "x"}


@pytest.mark.parametrize("version", protocol.VERSIONS)
def test_loopback_is_the_same_binary_by_name(pods: Sandboxes, tmp_path: Path, version: str) -> None:
    plugin = tmp_path / "loopback"
    shutil.copy(cni_node.PLUGIN, plugin)
    ns = pods.netns("lo")
    given = {"cniVersion": version, "name": "lo", "type": "loopback"}
    answer = cni_node.call("ADD", "c", f"/run/netns/{ns}", given, interface="lo", plugin=plugin)
    assert answer.json["interfaces"][0]["name"] == "lo"
    assert ("version" in answer.json["ips"][0]) == version.startswith("0.")
    assert "UP" in sh(f"ip -n {ns} link show lo")
    done = cni_node.call("DEL", "c", "", given, interface="lo", plugin=plugin)
    assert (done.status, done.output) == (0, "")


def test_install_puts_files_whole_and_uninstall_takes_them(pods: Sandboxes) -> None:
    node: AgentNode = pods.node
    binaries, configs = node.folder / "cni/bin", node.folder / "cni/conf"
    sh(f"{PODLANE} install --config {node.config}")
    assert sorted(one.name for one in binaries.iterdir()) == ["loopback", "podlane-cni"]
    (conflist,) = configs.iterdir()
    assert conflist.name == "05-podlane.conflist"
    (plugin,) = json.loads(conflist.read_text())["plugins"]
    assert plugin["socket"] == str(node.folder / "run/cni.sock")
    # A plugin that runs does not stand in the way of the next one.
    with subprocess.Popen(
        [binaries / "podlane-cni"], env={"CNI_COMMAND": "ADD"}, stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        (binaries / "podlane-cni").unlink()
        sh(f"{PODLANE} install --config {node.config}")
        assert running.stdin is not None
        running.stdin.close()
    # A fresh node is not Ready before its datapath: the agent takes the conflist away, and writes it.
    for one in list(binaries.iterdir()):
        one.unlink()
    conflist.unlink()
