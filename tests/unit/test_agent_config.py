# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from dataplane.agent import config
from dataplane.agent.config import DEFAULT_SIZES, Config
from dataplane.model.errors import BadInput


def refusal(document: object) -> str:
    with pytest.raises(BadInput) as caught:
        config.parse(document, "node.yaml")
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_an_empty_file_gives_the_documented_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("")
    found = config.load(file, node_name="node-1")
    assert found == Config(node_name="node-1")
    assert found.mode == "vxlan"
    assert found.run_dir == Path("/run/podlane")
    assert found.state_dir == Path("/var/lib/podlane")
    assert found.bpffs_dir == Path("/sys/fs/bpf/podlane")
    assert found.cni_bin_dir == Path("/opt/cni/bin")


def test_every_key_reaches_its_field() -> None:
    found = config.parse(
        {
            "nodeName": "node-1",
            "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"],
            "clusterCIDRs": ["10.244.0.0/16"],
            "serviceCIDRs": ["10.96.0.0/12"],
            "nodeAddresses": ["192.0.2.1"],
            "nodePortAddresses": ["192.0.2.0/24"],
            "localhostNodePorts": True,
            "masqueradeAll": True,
            "nonMasqueradeCIDRs": ["10.0.0.0/8"],
            "mode": "native",
            "loadBalancerMode": "dsr",
            "uplinks": ["eth0", "eth1"],
            "mtu": 1400,
            "apiServer": "https://192.0.2.9:6443",
            "mapSizes": {"flows": 1000},
            "cniBinDir": "/b",
            "cniConfDir": "/c",
            "runDir": "/r",
            "stateDir": "/s",
            "bpffsDir": "/f",
            "cgroupRoot": "/g",
            "metricsAddress": "127.0.0.1:9000",
            "healthzAddress": "[2001:db8::1]:10300",
            "takeover": True,
        },
        "node.yaml",
    )
    assert found == Config(
        node_name="node-1",
        pod_cidrs=(ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")),
        cluster_cidrs=(ip_network("10.244.0.0/16"),),
        service_cidrs=(ip_network("10.96.0.0/12"),),
        node_addresses=(ip_address("192.0.2.1"),),
        node_port_addresses=(ip_network("192.0.2.0/24"),),
        localhost_node_ports=True,
        masquerade_all=True,
        non_masquerade_cidrs=(ip_network("10.0.0.0/8"),),
        mode="native",
        load_balancer_mode="dsr",
        uplinks=("eth0", "eth1"),
        mtu=1400,
        api_server="https://192.0.2.9:6443",
        map_sizes={**DEFAULT_SIZES, "flows": 1000, "closed_flows": 125},
        cni_bin_dir=Path("/b"),
        cni_conf_dir=Path("/c"),
        run_dir=Path("/r"),
        state_dir=Path("/s"),
        bpffs_dir=Path("/f"),
        cgroup_root=Path("/g"),
        metrics_address="127.0.0.1:9000",
        healthz_address=(ip_address("2001:db8::1"), 10300),
        takeover=True,
    )


@pytest.mark.parametrize("key", ["podCidrs", "pod_cidrs", "PodCIDRs", "nodename", 7])
def test_an_unknown_key_is_refused_by_name(key: object) -> None:
    assert f"config node.yaml: {key}: unknown key; known keys: apiServer, " in refusal({key: 1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mode", "ipip", "must be one of vxlan, native"),
        ("loadBalancerMode", "DSR", "must be one of snat, dsr"),
        ("mtu", "1400", "must be a number"),
        ("mtu", True, "must be a number"),
        ("mtu", 900, "must be 1280 to 65535, not 900"),
        ("masqueradeAll", "yes", "must be true or false"),
        ("podCIDRs", "10.0.0.0/24", "must be a list"),
        ("podCIDRs", ["10.0.0.1/24"], "has host bits set"),
        ("podCIDRs", ["10.0.0.1"], "is no range"),
        ("podCIDRs", ["10.0.0.0/24", "10.0.0.0/24"], "names one thing twice"),
        ("podCIDRs", ["10.0.0.0/24", "10.0.0.0/25"], "10.0.0.0/25 overlaps 10.0.0.0/24"),
        ("podCIDRs", ["10.0.0.0/31"], "has no room for a router and a pod"),
        ("nodeAddresses", ["127.0.0.1"], "can't be a node's address"),
        ("nodeAddresses", ["node-1"], "does not appear to be an IPv4 or IPv6 address"),
        ("uplinks", ["eth0/../eth1"], "is no device name"),
        ("uplinks", ["a-name-of-17-chars"], "is no device name"),
        ("nodeName", "Node_1", "is no node name"),
        ("nodeName", "../node", "is no node name"),
        ("runDir", "run/podlane", "must be an absolute path"),
        ("stateDir", "/var/lib/../../etc", "must be an absolute path"),
        ("runDir", "/run/" + "x" * 100, "longer than a socket's path may be"),
        ("mapSizes", {"flows": 0}, "flows: must be a number of entries"),
        ("mapSizes", [1], "must be a mapping"),
        ("mapSizes", {"slots": (1 << 28) + 1}, "slots: at most 268435456"),
        ("metricsAddress", 9000, "must be a text"),
        ("healthzAddress", 10256, "must be a text"),
        ("healthzAddress", "10256", "not an address and a port"),
        ("healthzAddress", "0.0.0.0:0", "not an address and a port"),
        ("healthzAddress", "::1:80", "stands in brackets"),
        ("healthzAddress", "[127.0.0.1]:80", "stands in brackets"),
        ("healthzAddress", "localhost:80", "does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_a_value_that_can_not_be_is_refused_with_its_key(
    key: str, value: object, words: str
) -> None:
    message = refusal({key: value})
    assert message.startswith(f"config node.yaml: {key}: ")
    assert words in message


def test_settings_that_contradict_each_other_are_refused() -> None:
    both = {"podCIDRs": ["10.96.3.0/24"], "serviceCIDRs": ["10.96.0.0/12"]}
    assert "serviceCIDRs: 10.96.0.0/12 overlaps podCIDRs' 10.96.3.0/24" in refusal(both)
    assert "apiServer is given too" in refusal({"apiServer": "https://a", "kubeconfig": "/k"})


def test_a_key_that_nothing_serves_is_named_if_it_is_given() -> None:
    both = config.parse({"metricsAddress": "127.0.0.1:9000", "takeover": True}, "f", node_name="a")
    assert [str(problem).partition(": this")[0] for problem in config.unserved(both)] == [
        "config: metricsAddress",
        "config: takeover",
    ]
    assert config.unserved(Config(node_name="a")) == ()


def test_a_syntax_error_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("mode: vxlan\nuplinks: [eth0\n")
    with pytest.raises(BadInput, match=rf"config {file}:3:1: "):
        config.load(file)


def test_dates_are_texts_and_a_key_may_stand_once(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("nodeName: 2024-13-45\n")
    assert config.load(file).node_name == "2024-13-45"
    for text, place in (
        ("podCIDRs: [2024-02-30]", f"config {file}: podCIDRs: '2024-02-30' is no range"),
        ("mode: vxlan\nmtu: 0b_", f"config {file}:2:6: "),
        ("mode: vxlan\nmode: native", f"config {file}:2:1: "),
    ):
        file.write_text(text)
        with pytest.raises(BadInput, match=f"^{place}"):
            config.load(file)


def test_a_value_that_grows_by_aliases_is_not_written_out(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    file.write_text("\n".join(["uplinks:", *(f"  {line}" for line in lines), "nodeName: *a29"]))
    with pytest.raises(BadInput, match="must be a list, not a mapping"):
        config.load(file)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file or directory"):
        config.load(tmp_path / "none.yaml")


def test_a_document_that_is_no_mapping_is_refused() -> None:
    assert "is not a mapping" in refusal(["mode"])


def test_the_command_line_wins_over_the_file() -> None:
    assert config.parse({"nodeName": "a"}, "f", node_name="b").node_name == "b"
    with pytest.raises(BadInput, match="is no node name"):
        config.parse({}, "f", node_name="-")
