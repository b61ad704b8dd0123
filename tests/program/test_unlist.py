# SPDX-License-Identifier: Apache-2.0
"""Deleting a device on a real kernel: gone when the call returns, and refusals are heard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.netlink import Links, NetlinkError
from tests.program.sandbox import Sandbox

MACS = {number: bytes((2, 0, 0, 0, 0, number - 1000)) for number in range(1000, 1020)}


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path, MACS)
    yield made
    made.close()


def test_a_deleted_device_and_its_peer_are_gone_at_once(sandbox: Sandbox) -> None:
    def work() -> None:
        with Links() as links:
            for number in MACS:
                links.unlist_link(f"d{number}")
                there = {link.name for link in links.links()}
                assert not there & {f"d{number}", f"p{number}"}
            assert there == {"lo"}

    sandbox.do(work)


def test_a_device_that_is_not_there_is_nothing_to_do(sandbox: Sandbox) -> None:
    def work() -> None:
        with Links() as links:
            links.unlist_link("d1000")
            links.unlist_link("d1000")

    sandbox.do(work)


def test_a_refusal_is_heard(sandbox: Sandbox) -> None:
    def work() -> None:
        with Links() as links, pytest.raises(NetlinkError):
            links.unlist_link("lo")

    sandbox.do(work)
