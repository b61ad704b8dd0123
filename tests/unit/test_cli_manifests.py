# SPDX-License-Identifier: Apache-2.0
"""What a cluster is asked to run: read-only rights, named capabilities, paths that follow the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import main
from dataplane.agent.config import parse

ROOT = Path(__file__).resolve().parents[2]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main.main(["manifests", *words]) == 0
    return capsys.readouterr().out


def read(text: str) -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def container(found: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    pod = found["DaemonSet"]["spec"]["template"]["spec"]
    (one,) = [c for c in (*pod["initContainers"], *pod["containers"]) if c["name"] == name]
    return dict(one)


def paths(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    volumes = found["DaemonSet"]["spec"]["template"]["spec"]["volumes"]
    return {v["name"]: v["hostPath"]["path"] for v in volumes if "hostPath" in v}


def test_the_file_in_deploy_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """`.venv/bin/podlane manifests > deploy/podlane.yaml` makes it so."""
    assert (ROOT / "deploy/podlane.yaml").read_text() == shown(capsys)


def test_rights_are_to_read_five_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    rules = read(shown(capsys))["ClusterRole"]["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"list", "watch"}
    kinds = {kind for rule in rules for kind in rule["resources"]}
    assert kinds == {"services", "endpointslices", "nodes", "pods", "servicecidrs"}


def test_capabilities_are_named_and_the_root_is_read_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = read(shown(capsys))
    rights = container(found, "agent")["securityContext"]
    assert rights["capabilities"] == {
        "drop": ["ALL"],
        "add": ["BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN"],
    }
    assert "privileged" not in rights
    assert rights["readOnlyRootFilesystem"]
    assert container(found, "install")["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    pod = found["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["hostNetwork"]
    assert "hostPID" not in pod
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["tolerations"] == [{"operator": "Exists"}]


def test_options_and_settings_reach_the_config_map(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--api-server", "https://192.0.2.1:6443", "--mode", "native", "--image", "r/p:1"]
    words += ["--set", "mtu=1400", "--set", "clusterCIDRs=[10.0.0.0/8]", "--set", "runDir=/run/x"]
    found = read(shown(capsys, *words))
    config = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])
    assert config == {
        "apiServer": "https://192.0.2.1:6443", "mode": "native", "mtu": 1400,
        "clusterCIDRs": ["10.0.0.0/8"], "runDir": "/run/x",
    }  # fmt: skip
    assert parse(config, "test").mtu == 1400
    assert container(found, "agent")["image"] == "r/p:1"
    assert paths(found)["run"] == "/run/x"


def test_a_key_that_nothing_serves_yet_is_named_beside_the_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["manifests", "--set", "metricsAddress=127.0.0.1:9000"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("podlane: config: metricsAddress: this version")
    assert "metricsAddress" in read(said.out)["ConfigMap"]["data"]["config.yaml"]


def test_mounts_of_namespaces_made_later_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    found = read(shown(capsys))
    mounts = {m["name"]: m for m in container(found, "agent")["volumeMounts"]}
    assert mounts["netns"]["mountPropagation"] == "HostToContainer"
    assert paths(found) == {
        "bpffs": "/sys/fs/bpf", "cgroup": "/sys/fs/cgroup", "sysctl": "/proc/sys/net",
        "netns": "/run/netns", "run": "/run/podlane", "state": "/var/lib/podlane",
        "cni-bin": "/opt/cni/bin", "cni-conf": "/etc/cni/net.d",
    }  # fmt: skip
    assert set(paths(found)) <= mounts.keys()


def test_a_config_that_changes_makes_new_pods(capsys: pytest.CaptureFixture[str]) -> None:
    def mark(*words: str) -> object:
        found = read(shown(capsys, *words))
        return found["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]

    assert mark() == mark()
    assert mark() != mark("--set", "mtu=1400")


def test_uninstall_replaces_the_agent_and_asks_for_no_rights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = read(shown(capsys, "--uninstall"))
    assert "ClusterRole" not in found
    assert container(found, "uninstall")["command"][1] == "uninstall"
    assert found["DaemonSet"]["metadata"]["name"] == "podlane"
    assert "readinessProbe" not in container(found, "done")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--set", "mtu"], "is not KEY=VALUE"),
        (["--set", "mtu=[1"], "--set mtu:2:1: does not parse as YAML"),
        (["--set", "mtu=0b_"], "--set mtu:1:1: does not parse as YAML"),
        (["--set", "uplinks=[!!bool x]"], "--set uplinks:1:2: does not parse as YAML"),
        (["--set", "uplinks=[2024-02-30T1, {}]"], "must be a text, not a mapping"),
        (["--set", r'runDir="/a\0b"'], "must be an absolute path"),
        (["--set", "mtu=soft"], "must be a number"),
        (["--set", "speed=1"], "unknown key"),
        (["--set", "nodeName=a"], "is one node's"),
        (["--mode", "fast"], "must be one of vxlan, native"),
    ],
)
def test_what_the_agent_would_refuse_is_refused_here(
    capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main.main(["manifests", *words]) == 2
    said = capsys.readouterr()
    assert reason in said.err
    assert said.out == ""
