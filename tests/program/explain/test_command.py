# SPDX-License-Identifier: Apache-2.0
"""`podlane explain` as users call it: what stands on stdout, on stderr, and the exit status."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from dataplane.explain import caller
from dataplane.kernel.sockets import find_cgroup
from dataplane.model.net import Family
from tests.program.explain import sets
from tests.program.explain.sets import NODES, piece, service

GOLDEN = Path(__file__).parent / "golden"
CLIENT = {"metadata": {"name": "client", "namespace": "shop"}, "spec": {"nodeName": "here"}}
POD = {"apiVersion": "v1", "kind": "Pod", **CLIENT, "status": {"podIPs": [{"ip": "@a2"}]}}
OTHER = service("other", type="ClusterIP", externalIPs=[], ingress=[], ports=[{"port": 80}])
ONE = piece("b2", name="other-1", service="other", ports=[{"port": 8080}])
OBJECTS = (*NODES, POD, OTHER, ONE, service(), piece("a1", "b1", {**sets.endpoint("stray"), "targetRef":
           {"kind": "Pod", "namespace": "shop", "name": "web-3"}}))  # fmt: skip
FLOWS = (
    ("a2", "web:80", "tcp"),
    ("outside", "here:30080", "tcp"),
    ("a1", "b1:8080", "udp"),
    ("a2", "outside:443", "tcp"),
    ("here", "other:80", "tcp"),
    ("here", "web:80", "udp"),
)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`podlane explain` of OBJECTS in IPv4 on node here; status, stdout, stderr."""

    def run(*words: str, objects: tuple[sets.Object, ...] = OBJECTS) -> tuple[int, str, str]:
        sets.write(objects, Family.V4, tmp_path)
        status = main(["explain", "--manifests", str(tmp_path), "--node", "here", *words])
        return status, *capsys.readouterr()

    return run


def batch(tmp_path: Path, *more: str) -> Path:
    lines = [
        json.dumps({"from": sets.said(f"@{a}", Family.V4), "to": sets.said(f"@{b}", Family.V4),
                    "protocol": protocol})
        for a, b, protocol in FLOWS
    ]  # fmt: skip
    path = tmp_path / "flows.jsonl"
    path.write_text("\n".join((*lines, *more)) + "\n")
    return path


def test_the_story_of_each_flow(call: Call, tmp_path: Path) -> None:
    status, out, err = call("--batch", str(batch(tmp_path)))
    assert (status, err) == (0, "")
    assert out == (GOLDEN / "story.txt").read_text()


def test_one_compact_object_a_flow_in_order(call: Call, tmp_path: Path) -> None:
    status, out, err = call("--batch", str(batch(tmp_path)), "-o", "json")
    lines = out.splitlines()
    found = [json.loads(line) for line in lines]
    assert (status, err) == (0, "")
    assert [one["verdict"] for one in found] == [
        "forward", "forward", "pass", "pass", "forward", "reject"
    ]  # fmt: skip
    assert found[0]["backends"] == ["10.244.1.10:8080", "10.244.1.200:8080", "10.244.2.10:8080"]
    assert (found[0]["service"], found[0]["masquerade"]) == ("shop/web:http", False)
    assert found[1]["masquerade"] is True
    keys = ["verdict", "backends", "masquerade", "service", "reason", "steps"]
    assert all(list(one) == keys for one in found)
    assert all(line == json.dumps(one, separators=(",", ":")) for line, one in zip(lines, found))  # noqa: B905


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--from", "10.0.0.1"), "--from and --to: are missing"),
        (("--from", "10.0.0.1", "--to", "10.96.0.1"), "--to: '10.96.0.1' has no port"),
        (("--from", "x", "--to", "10.96.0.1:80"), "--from: 'x' is no IP address; give it in"),
        (("--from", "010.0.0.1", "--to", "10.96.0.1:80"), "differ in how they read leading zeros"),
        (("--from", "10.0.0.1", "--to", "10.96.0.01:80"), "--to: '10.96.0.01' is no IP address"),
        (("--from", "10.0.0.1", "--to", "10.96.0.1:0"), "--to: 0 is no port (1 to 65535)"),
        (("--from", "10.0.0.1", "--to", "10.96.0.1:65536"), "--to: 65536 is no port"),
        (("--from", "10.0.0.1", "--to", "web:80"), "a Service with its namespace"),
        (
            ("--from", "10.0.0.1", "--to", "web.x:80"),
            "serves no Service x/web; Services: other.shop",
        ),
        (("--from", "x/y", "--to", "web.shop:80"), "has no pod x/y; pods: shop/client"),
        (("--batch", "/nowhere/flows"), "--batch /nowhere/flows: No such file"),
        (("--batch", "f", "--to", "10.96.0.1:80"), "give one of the two"),
        (("--node", "away", "--from", "10.0.0.1", "--to", "10.96.0.1:80"), "--node away: the"),
        (("--config", "/nowhere", "--from", "10.0.0.1", "--to", "10.96.0.1:80"), "config /nowhere"),
    ],
)
def test_bad_input_is_named(call: Call, words: tuple[str, ...], named: str) -> None:
    status, out, err = call(*words)
    assert (status, out) == (2, "")
    assert named in err


def test_a_batch_that_is_no_text_is_named(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flows.jsonl"
    path.write_bytes(b'{"from": "\xe9"}\n')
    for name in (str(path), "-"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes()), "utf-8"))
        status, out, err = call("--batch", name)
        assert (status, out) == (2, "")
        assert f"--batch {name}: is not UTF-8 text" in err


CALLER = """
import os, socket
def refuse(*_): raise OSError({number}, os.strerror({number}))
if {name!r} == "socket": socket.socket = refuse
else:
    class Socket(socket.socket): {name} = refuse
    socket.socket = Socket
"""


@pytest.mark.parametrize(
    ("name", "number", "step"),
    [
        ("socket", errno.EAFNOSUPPORT, "switch IPv6 on"),
        ("bind", errno.EINVAL, "ask from another address of the node"),
    ],
)
def test_a_call_that_this_machine_does_not_make_is_named(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, step: str,
) -> None:  # fmt: skip
    refusing = tmp_path / "caller.py"
    whole = Path(caller.__file__).read_text()
    refusing.write_text(CALLER.format(name=name, number=number) + whole)
    monkeypatch.setattr(caller, "__file__", str(refusing))
    address = sets.said("@here", Family.V4)
    status, out, err = call("--from", address, "--to", "10.96.0.2:80")
    assert (status, out) == (2, "")
    why = f"this machine refuses {name}: {os.strerror(number)}"
    assert err.startswith(f"podlane: a flow from {address}: {why}; {step}")


def test_an_interrupt_ends_it_without_words(tmp_path: Path) -> None:
    """Ctrl-C goes to every process of the terminal; the rest of the batch is not answered."""
    sets.write(OBJECTS, Family.V4, tmp_path)
    here, other = sets.said("@here", Family.V4), "10.96.0.2:80"
    path = tmp_path / "flows.jsonl"
    path.write_text(f'{{"from":"{here}","to":"{other}"}}\n' * 100_000)
    words = ["explain", "--manifests", str(tmp_path), "--node", "here", "--batch", str(path)]
    with subprocess.Popen(
        [sys.executable, "-c", "from cli.main import main; exit(main())", *words], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, process_group=0, text=True,
    ) as process:  # fmt: skip
        groups = f"podlane-explain-{process.pid}-*"
        while not list(find_cgroup(None).glob(groups)):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)  # it answers by now
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    assert not list(find_cgroup(None).glob(groups))


def test_a_bad_line_of_a_batch_is_named_before_any_answer(call: Call, tmp_path: Path) -> None:
    path = batch(tmp_path, '{"from":"10.0.0.1","to":"10.0.0.2:x","protocol":"tcp"}')
    status, out, err = call("--batch", str(path))
    assert (status, out) == (2, "")
    assert f"{path}:{len(FLOWS) + 1}: to: " in err


def test_what_is_not_served_is_named_and_the_rest_answered(call: Call) -> None:
    wrong = service("other", clusterIP="10.96.0.2", ports=[{"name": "http", "port": 0}])
    words = ("--from", "10.244.1.11", "--to", "10.96.0.1:80", "-o", "json")
    status, out, err = call(*words, objects=(*OBJECTS, wrong))
    assert (status, json.loads(out)["verdict"]) == (0, "forward")
    assert "Service shop/other: spec.ports[0].port" in err


HEALTH: dict[str, Any] = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}


@pytest.mark.parametrize(
    ("endpoints", "words", "status", "count"),
    [
        (("a1", "a2", "b1"), (), 200, 2),
        (("b1",), (), 503, 0),
        ((sets.endpoint("a1", "draining"),), (), 503, 0),
        (("a1",), ("--stale",), 503, 1),
    ],
)
def test_a_service_says_how_many_endpoints_are_here(
    call: Call, endpoints: tuple[sets.Object | str, ...], words: tuple[str, ...], status: int,
    count: int,
) -> None:  # fmt: skip
    objects = (*NODES, service(**HEALTH), piece(*endpoints))
    asked = ("--health", "shop/web", "-o", "json", *words)
    exit_status, out, _ = call(*asked, objects=objects)
    assert exit_status == 0
    assert json.loads(out) == {
        "status": status,
        "headers": {
            "Content-Type": "application/json",
            "X-Content-Type-Options": "nosniff",
            "X-Load-Balancing-Endpoint-Weight": str(count),
        },
        "body": {
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": count,
            "serviceProxyHealthy": not words,
        },
        "listen": ["192.0.2.1:31000"],
    }


def test_a_node_that_is_being_deleted_is_alive_but_wants_no_traffic(call: Call) -> None:
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    leaving = {**sets.HERE, "spec": {**sets.HERE["spec"], "taints": [taint]}}
    for node, words, healthz, livez in (
        (sets.HERE, (), 200, 200),
        (leaving, (), 503, 200),
        (sets.HERE, ("--stale",), 503, 503),
    ):
        status, out, _ = call("--node-health", "-o", "json", *words, objects=(node, sets.THERE))
        assert (status, json.loads(out)) == (0, {"/healthz": healthz, "/livez": livez})


def test_health_of_what_has_none_is_refused_by_name(call: Call) -> None:
    for asked, why in (("shop/web", "is not asked for"), ("shop/x", "no such"), ("x", "is no")):
        status, out, err = call("--health", asked)
        assert (status, out) == (2, "")
        assert f"--health {asked}: " in err
        assert why in err
