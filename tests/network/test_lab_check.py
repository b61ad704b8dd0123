# SPDX-License-Identifier: Apache-2.0
"""lab check tells a lab that works from one that does not, and says which row and where.

    outside ── underlay ──┬── node-1 ── web-0
                          └── node-2 ── web-1, other       (as the lab places them)

Each test breaks one thing from outside and mends it again.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane.abi.codec import codec
from dataplane.kernel import bpf
from dataplane.kernel.maps import Maps
from dataplane.model.net import Family
from dataplane.model.rows import Table
from tests.network.labs import SHOP, TWO_WEB, TestLab, failed, lab

BACKENDS = Table("backends", Family.V4)


@pytest.fixture(scope="module")
def running() -> Iterator[TestLab]:
    with lab(TWO_WEB, "--nodes", "2") as one:
        yield one


def servers(one: TestLab, pod: str) -> list[int]:
    """Processes in a pod's namespace."""
    wanted = (one.folder / "netns" / "pods" / "default" / pod).stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "ns" / "net").stat().st_ino == wanted:
                found.append(int(entry.name))
    return found


def expect_failure(one: TestLab, words: str) -> list[dict[str, Any]]:
    status, report = one.check()
    rows = failed(report)
    assert status == 1
    assert report["ok"] is False
    assert any(words in row["why"] for row in rows), [row["why"] for row in rows]
    return rows


def test_a_lab_that_works_is_fine(running: TestLab) -> None:
    status, report = running.check()
    assert status == 0, failed(report)
    assert report["ok"] is True
    kinds = {(row["from"]["kind"], row["family"], row["type"]) for row in report["services"]}
    for family in ("ipv4", "ipv6"):
        assert ("pod", family, "NodePort") in kinds
        assert ("outside", family, "NodePort") in kinds
        assert ("node", family, "Pod") in kinds
    asked = {
        row["from"]["node"]
        for row in report["services"]
        if (row["name"], row["from"]["kind"]) == ("web", "pod")
    }
    assert asked == {"node-1", "node-2"}
    for row in report["services"]:
        assert row["answered"] == row["requests"] == sum(row["by"].values())


def test_a_stopped_server_is_named(running: TestLab) -> None:
    [pod] = [p for p in running.pods("web") if p["node"] == "node-1"]
    pids = servers(running, pod["name"])
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        rows = expect_failure(running, f"default/{pod['name']} never answered")
        assert {row["name"] for row in rows} == {"web", pod["name"]}
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("device", "direction", "protocol", "priority", "name"),
    [
        ("pod", "ingress", "ip", "100", "from_pod_4"),
        ("eth0", "egress", "ipv6", "101", "to_uplink_6"),
    ],
)
def test_a_deleted_filter_is_named_with_its_place(
    running: TestLab, device: str, direction: str, protocol: str, priority: str, name: str
) -> None:
    if device == "pod":
        listing = running.on_node("node-1", "ip", "-br", "link")
        device = next(w.split("@")[0] for w in listing.split() if w.startswith("pl") and "@" in w)
    place = ("dev", device, direction, "protocol", protocol, "pref", priority)
    pin = running.folder / "nodes" / "node-1" / "bpf" / "podlane" / "v1" / "prog" / name
    running.on_node("node-1", "tc", "filter", "del", *place)
    try:
        expect_failure(running, f"node-1: tc filter {name} is missing at {direction} of {device}")
    finally:
        handle = ("handle", "0x706c", "bpf", "direct-action", "object-pinned", str(pin))
        running.on_node("node-1", "tc", "filter", "add", *place, *handle)


@contextlib.contextmanager
def backend(one: TestLab, node: str, at: str, **changes: object) -> Iterator[None]:
    """One backend record of a node's map written by hand, then put back."""
    folder = one.folder / "nodes" / node / "bpf" / "podlane"
    coder = codec(BACKENDS)
    maps = Maps(folder)
    [(place, row)] = [(place, row) for place, row in maps.items(BACKENDS) if str(row.address) == at]
    maps.close()
    fd = bpf.obj_get(folder / "v1" / "map" / BACKENDS.pin)
    changed = {name: getattr(row, name) for name in type(row).__slots__} | changes
    try:
        bpf.map_update(fd, coder.key(place), coder.value(type(row)(**changed)))
        yield
    finally:
        bpf.map_update(fd, coder.key(place), coder.value(row))
        os.close(fd)


def test_a_backend_changed_by_hand_is_named(running: TestLab) -> None:
    [pod] = [p for p in running.pods("web") if p["node"] == "node-2"]
    nowhere = ip_address("10.244.2.250")
    with backend(running, "node-1", pod["addresses"][0], address=nowhere):
        rows = expect_failure(
            running, "node-1: the kernel has backend 10.244.2.250:8080, which is no endpoint"
        )
        assert {(row["name"], row["from"]["node"]) for row in rows if row["type"] != "Pod"} == {
            ("web", "node-1")
        }


def test_another_pod_that_answers_is_named(running: TestLab) -> None:
    [pod] = [p for p in running.pods("web") if p["node"] == "node-2"]
    [other] = running.pods("other")
    stranger = ip_address(other["addresses"][0])
    with backend(running, "node-1", pod["addresses"][0], address=stranger):
        expect_failure(running, "were answered by default/other, which is not an endpoint here")


def test_another_server_in_a_pods_place_is_named(running: TestLab) -> None:
    [pod] = [p for p in running.pods("web") if p["node"] == "node-1"]
    stand_in = Path(__file__).resolve().parents[2] / "build" / "podlane-stand-in"
    for pid in servers(running, pod["name"]):
        os.kill(pid, signal.SIGKILL)
    namespace = f"--net={running.folder}/netns/pods/default/{pod['name']}"
    inside = os.spawnlp(
        os.P_WAIT, "nsenter", "nsenter", namespace, str(stand_in), "serve", "x/impostor", "tcp:8080"
    )
    assert inside == 0
    expect_failure(running, "were answered by x/impostor, which is not an endpoint here")


@pytest.mark.parametrize(
    ("mode", "family"),
    [("vxlan", "dual"), ("native", "dual"), ("vxlan", "ipv6"), ("native", "ipv4")],
)
def test_the_example_is_fine_in_every_mode_and_family(mode: str, family: str) -> None:
    with lab(SHOP.read_text(), "--mode", mode, "--family", family) as one:
        status, report = one.check()
        assert status == 0, failed(report)
        families = {"dual": {"ipv4", "ipv6"}}.get(family, {family})
        assert {row["family"] for row in report["services"]} == families
        types = {row["type"] for row in report["services"]}
        assert types == {"ClusterIP", "NodePort", "LoadBalancer", "Headless", "Pod"}
        assert {row["protocol"] for row in report["services"]} == {"TCP", "UDP"}


def test_nothing_to_ask_is_not_ok() -> None:
    with lab("{apiVersion: v1, kind: Namespace, metadata: {name: empty}}", "--nodes", "1") as one:
        status, report = one.check()
        assert (status, report["services"], report["ok"]) == (1, [], False)
