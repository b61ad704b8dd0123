# SPDX-License-Identifier: Apache-2.0
"""Deleting a device on a real kernel: gone when the call returns, and refusals are heard."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.netlink import Links, NetlinkError, open_netns, wire
from dataplane.kernel.netns import Netns
from tests.program.sandbox import Sandbox

MACS = {number: bytes((2, 0, 0, 0, 0, number - 1000)) for number in range(1000, 1020)}
UNLIST = sys.modules["dataplane.kernel.netlink.unlist"]  # the package has a function of that name


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


def test_its_name_and_the_mac_of_its_peer_can_be_given_again_at_once(sandbox: Sandbox) -> None:
    def work() -> None:
        with Links() as links:
            here = open_netns("/proc/thread-self/ns/net")
            for number, mac in MACS.items():
                before = links.link(f"d{number}")
                links.unlist_link(f"d{number}")
                made = links.create_veth(f"d{number}", mac, f"p{number}", mac, here, 1500)
                assert before is not None
                assert made.index != before.index
            os.close(here)

    sandbox.do(work)


def test_words_that_are_lost_are_made_up_for_by_the_answer(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is full already: its first word is that others were lost."""

    def full(netns: Netns | None, groups: int) -> socket.socket:
        made = wire.listen(netns, groups)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
        with Links() as links:
            lo = links.link("lo")
            assert lo is not None
            for mtu in range(1500, 1600):
                links.set_mtu(lo.index, mtu)
        poll = select.poll()
        poll.register(made, 0)
        assert [what for _, what in poll.poll(0)] == [select.POLLERR]
        return made

    def work() -> None:
        monkeypatch.setattr(UNLIST, "listen", full)
        with Links() as links:
            links.unlist_link("d1000")
            assert links.link("d1000") is None

    sandbox.do(work)


def test_a_process_without_room_for_a_thread_waits_itself(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def work() -> None:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with Links() as links:
            links.unlist_link("d1000")
            assert links.link("d1000") is None
            with pytest.raises(NetlinkError):
                links.unlist_link("lo")

    sandbox.do(work)
