# SPDX-License-Identifier: Apache-2.0
"""Why an entry found no room: the map is full, or the kernel has no memory. Real maps: program tests."""

from __future__ import annotations

import errno
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from dataplane.abi.codec import codec
from dataplane.core.plan import Plan, Upsert
from dataplane.kernel import bpf
from dataplane.kernel.bpf import BpfError, MapInfo
from dataplane.kernel.maps import Writer
from dataplane.model.errors import BadEnvironment
from dataplane.model.rows import PeerRow, Table

PEERS = Table("peers")
ROWS = [(ip_address(f"192.0.2.{number}"), PeerRow(number)) for number in (1, 2, 3)]
_HASH = 1


class Kernel:
    """One hash map: the batch ends at once; then each write has the next of these errors (0: none)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: int) -> None:
        self.errors, self.waited = list(errors), list[float]()
        self.written: list[bytes] = []
        info = MapInfo(_HASH, 1, codec(PEERS).key_size, codec(PEERS).value_size, 3, 0, "peers")
        monkeypatch.setattr(bpf, "map_info", lambda _fd: info)
        monkeypatch.setattr(bpf, "map_update_batch", self._batch)
        monkeypatch.setattr(bpf, "map_update", self._update)
        monkeypatch.setattr("time.sleep", self.waited.append)

    def _batch(self, *_: object) -> None:
        raise BpfError(self.errors[0], "MAP_UPDATE_BATCH")

    def _update(self, _fd: int, key: bytes, _value: bytes) -> None:
        number = self.errors.pop(0)
        if number:
            raise BpfError(number, "MAP_UPDATE_ELEM")
        self.written.append(key)


def refused() -> list[str]:
    datapath = SimpleNamespace(maps={PEERS: 0})
    writer = Writer(datapath)  # type: ignore[arg-type]
    return [str(full) for full in writer.execute(Plan((Upsert(PEERS, ROWS),)))]


@pytest.mark.parametrize("number", [errno.E2BIG, errno.ENOSPC])
def test_a_full_map_is_to_be_made_larger(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    kernel = Kernel(monkeypatch, number, 0, number)
    first, second = refused()
    assert first == "peers: 192.0.2.1: the map is full at 3 entries; raise mapSizes.peers"
    assert second.startswith("peers: 192.0.2.3: ")
    assert (len(kernel.written), kernel.waited) == (1, [])


def test_memory_that_comes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, errno.ENOMEM, 0, errno.ENOMEM, 0, 0)
    assert refused() == []
    assert len(kernel.written) == 3
    assert kernel.waited == [0.001, 0.01]


def test_want_of_memory_is_no_full_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited is bounded for all entries together: the datapath's loop stands still."""
    kernel = Kernel(monkeypatch, *[errno.ENOMEM] * 6)
    found = refused()
    assert len(found) == 3
    assert found[0] == (
        "peers: 192.0.2.1: the kernel has no memory for it; give the machine, or the agent's"
        " cgroup, more memory and restart the agent"
    )
    assert sum(kernel.waited) < 0.1


def test_another_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, errno.EPERM)
    with pytest.raises(BadEnvironment, match="Operation not permitted"):
        refused()
