# SPDX-License-Identifier: Apache-2.0
"""What users do with a lab: look at it, enter it, change it; and what they get wrong.

outside ── underlay ──┬── node-1 ── web-0, other
                      └── node-2 ── web-1
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.lab.load import Load
from dataplane.model.net import Protocol
from tests.network.labs import TWO_WEB, TestLab, failed, lab, new_name, podlane

WEB = TWO_WEB.split("---\n")[0]


@pytest.fixture(scope="module")
def running() -> Iterator[TestLab]:
    with lab(TWO_WEB, "--nodes", "2") as one:
        yield one


def test_status_says_what_was_chosen(running: TestLab) -> None:
    done = podlane("lab", "status", "--name", running.name)
    assert done.returncode == 0
    assert "2 Services without ipFamilyPolicy are PreferDualStack" in done.stderr
    found = running.status()
    assert [node["name"] for node in found["nodes"]] == ["node-1", "node-2"]
    assert all(node["agent"] for node in found["nodes"])
    assert all(pod["runs"] for pod in found["pods"])
    web = next(service for service in found["services"] if service["name"] == "web")
    assert web["ports"][0]["nodePort"] >= 30000


def test_a_pods_command_runs_in_the_pod(running: TestLab) -> None:
    done = podlane("lab", "exec", "--name", running.name, "other", "--", "ls", "/sys/class/net")
    assert done.stdout.split() == ["eth0", "lo"]
    done = podlane("lab", "exec", "--name", running.name, "other", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7


def test_a_nodes_maps_are_where_podlane_looks_for_them(running: TestLab) -> None:
    found = json.loads(running.on_node("node-1", "podlane", "services", "-o", "json"))
    assert {row["service"] for row in found} == {"default/web:80", "default/other:80"}


def test_a_stand_in_answers_http_a_bare_line_and_silence(running: TestLab) -> None:
    [pod] = running.pods("other")
    address = pod["addresses"][0]
    for line, before in (
        ("GET / HTTP/1.0\\r\\n\\r\\n", "HTTP/1.1 200 OK"),
        ("hello\\n", "{"),
        ("", "{"),
    ):
        script = (
            f"exec 3<>/dev/tcp/{address}/8080; printf '{line}' >&3; exec 4<&3; timeout 1 cat <&3"
        )
        if not line:
            script = (
                "import socket,sys; s=socket.create_connection((sys.argv[1],8080));"
                "s.shutdown(socket.SHUT_WR); print(s.recv(4096).decode())"
            )
            out = running.on_node("outside", "true")
            out = running.on_node("node-2", "python3", "-c", script, address)
        else:
            done = podlane(
                "lab", "node", "--name", running.name, "node-2", "--", "bash", "-c", script
            )
            out = done.stdout
        assert out.startswith(before)
        answer = json.loads(out[out.index("{") :])
        assert (answer["pod"], answer["port"], answer["protocol"]) == ("default/other", 8080, "TCP")


@pytest.mark.parametrize("where", ["outside", "nodes/node-1"])
def test_a_users_command_goes_on_while_the_lab_changes(running: TestLab, where: str) -> None:
    place = running.folder / "netns" / where
    with subprocess.Popen(["nsenter", f"--net={place}", "cat"], stdin=subprocess.PIPE) as mine:
        done = podlane("lab", "apply", "--name", running.name, "-f", "-", text=WEB)
        assert done.returncode == 0, done.stderr
        assert mine.poll() is None
        mine.communicate()
    assert mine.returncode == 0


def test_backends_change_under_load_without_a_failed_request(running: TestLab) -> None:
    service = next(s for s in running.status()["services"] if s["name"] == "web")
    from ipaddress import ip_address

    targets = [(ip_address(address), 80) for address in service["clusterIPs"]]
    load = Load([running.folder / "netns" / "pods" / "default" / "other"], Protocol.TCP, targets)
    try:
        for replicas in (5, 1, 2):
            done = podlane(
                "lab", "apply", "--name", running.name, "-f", "-",
                text=WEB.replace("replicas: 2", f"replicas: {replicas}"),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert len(running.pods("web")) == replicas
    finally:
        outcome = load.stop()
    assert outcome.failures == {}
    assert outcome.requests > 100
    assert len(outcome.by) == 5
    status, report = running.check()
    assert status == 0, failed(report)


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        (("-f", "-", "--nodes", "0"), TWO_WEB, "nodes"),
        (("-f", "-", "--mode", "bridge"), TWO_WEB, "bridge"),
        (("-f", "/nowhere.yaml"), "", "/nowhere.yaml"),
        (("-f", "-"), "kind: [", "<stdin>:2:1"),
        (
            ("-f", "-", "--strict"),
            TWO_WEB.replace("targetPort: 8080", "targetPort: nobody"),
            "nobody",
        ),
    ],
)
def test_what_cant_be_used_is_refused_with_nothing_made(
    words: tuple[str, ...], text: str, said: str
) -> None:
    name = new_name()
    done = podlane("lab", "up", "--name", name, *words, text=text)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (Path("/run/podlane-lab") / name).exists()


@pytest.mark.parametrize("name", ["../etc", "a/b", "Capital", "x" * 40])
def test_a_name_that_would_leave_the_folder_is_refused(name: str) -> None:
    done = podlane("lab", "up", "--name", name, "-f", "-", text=TWO_WEB)
    assert done.returncode == 2
    assert "lab name" in done.stderr


def test_commands_need_a_lab() -> None:
    name = new_name()
    for words in (["check"], ["status"], ["exec", "pod"], ["node", "node-1"], ["apply", "-f", "-"]):
        done = podlane("lab", words[0], "--name", name, *words[1:], text=TWO_WEB)
        assert done.returncode == 2
        assert "is not up" in done.stderr
