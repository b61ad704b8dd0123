# SPDX-License-Identifier: Apache-2.0
"""Pods whose kernel refuses some of them; what the kernel does is for the network tests."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest

from dataplane.agent.chains import Chains
from dataplane.agent.facts import Facts
from dataplane.agent.pods import Pods
from dataplane.agent.releases import Releases
from dataplane.agent.tables import Tables
from dataplane.cni.protocol import CniError, Request
from dataplane.cni.store import Attachment, Store
from dataplane.kernel.hooks import Hooks
from dataplane.kernel.netlink import Links, NetlinkError

FACTS = Facts("node1", "vxlan", (), (), {}, (), 1450, 0, 0)
STUCK = "plstuck"


class Kernel:
    """Links that go, but for one; and tables with nothing in them."""

    def __init__(self) -> None:
        self.gone: list[str] = []

    def unlist_link(self, name: str) -> None:
        if name == STUCK:
            raise NetlinkError(errno.EBUSY, "Device or resource busy")
        self.gone.append(name)

    def get(self, *_: Any) -> None:
        return None

    def drop(self, *_: Any) -> None:
        return None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "pods.db") as opened:
        for number, veth in enumerate(("pl1", STUCK, "pl3", "pl4"), 1):
            opened.add(
                Attachment(
                    f"c{number}", "eth0", veth, number, bytes(6), "", f"shop/pod-{number}", 1450,
                    (ip_address(f"10.0.0.{number}"),),
                )
            )  # fmt: skip
        yield opened


def pods_of(kernel: Kernel, store: Store, state: Path) -> Pods:
    return Pods(
        cast(Links, kernel), store, cast(Hooks, None), cast(Tables, kernel), FACTS,
        Releases(state), Chains(state), lambda _: (), lambda: (),
    )  # fmt: skip


def test_releases_go_past_a_pod_that_stays(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "releases"
    folder.mkdir()
    for number in range(1, 6):  # of the fifth nothing is known
        (folder / f"c{number}:eth0").touch()
    kernel = Kernel()
    pods_of(kernel, store, tmp_path).care()
    assert kernel.gone == ["pl1", "pl3", "pl4"]
    assert [one.pod for one in store.attachments()] == ["shop/pod-2"]
    assert [file.name for file in folder.iterdir()] == ["c2:eth0"]


def test_collection_goes_past_a_pod_that_stays(tmp_path: Path, store: Store) -> None:
    kernel = Kernel()
    pods = pods_of(kernel, store, tmp_path)
    request = Request("GC", "1.1.0", valid=frozenset({("c4", "eth0")}))
    with pytest.raises(CniError, match=r"shop/pod-2: .*busy") as refused:
        pods.collect(request)
    assert "pod-1" not in str(refused.value)
    assert kernel.gone == ["pl1", "pl3"]
    assert [one.pod for one in store.attachments()] == ["shop/pod-2", "shop/pod-4"]
    nothing_named = dataclasses.replace(request, valid=None)
    pods.collect(nothing_named)
    assert len(store.attachments()) == 2
