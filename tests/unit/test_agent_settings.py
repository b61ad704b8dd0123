# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dataplane.agent import settings
from dataplane.agent.facts import MASQUERADE_PORTS
from dataplane.cni.store import Store
from dataplane.kernel.netlink import Sysctls

PORTS = "-".join(map(str, MASQUERADE_PORTS))
BEFORE = {
    "net/ipv4/ip_forward": "0",
    "net/ipv6/conf/all/forwarding": "0",
    "net/ipv4/ip_local_reserved_ports": "",
    "net/ipv4/conf/eth0/rp_filter": "1",
    "net/ipv6/conf/eth0/accept_ra": "1",
    "net/ipv4/conf/other/rp_filter": "1",
}


@pytest.fixture
def sysctls(tmp_path: Path) -> Sysctls:
    """Files that stand where /proc/sys would."""
    for name, value in BEFORE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    return Sysctls(root=tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "pods.db") as opened:
        yield opened


def values(sysctls: Sysctls) -> dict[str, str | None]:
    return {name: sysctls.read(name) for name in BEFORE}


def test_only_what_forwarding_needs_is_changed_and_put_back(sysctls: Sysctls, store: Store) -> None:
    settings.apply(sysctls, store, ["eth0"], ExitStack())
    assert values(sysctls) == {
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv4/ip_local_reserved_ports": PORTS,
        "net/ipv4/conf/eth0/rp_filter": "2",
        "net/ipv6/conf/eth0/accept_ra": "2",
        "net/ipv4/conf/other/rp_filter": "1",
    }
    assert settings.apply(sysctls, store, ["eth0"], ExitStack()) == []
    settings.restore(sysctls, store)
    assert values(sysctls) == BEFORE


def test_a_setting_that_someone_changed_since_stays_theirs(sysctls: Sysctls, store: Store) -> None:
    settings.apply(sysctls, store, [], ExitStack())
    sysctls.write("net/ipv4/ip_local_reserved_ports", f"8080,{PORTS}")
    settings.restore(sysctls, store)
    assert sysctls.read("net/ipv4/ip_local_reserved_ports") == f"8080,{PORTS}"
    assert sysctls.read("net/ipv4/ip_forward") == "0"


def test_a_start_that_fails_puts_settings_back(sysctls: Sysctls, store: Store) -> None:
    with ExitStack() as undo:
        settings.apply(sysctls, store, ["eth0"], undo)
    assert values(sysctls) == BEFORE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "61000-64999"),
        ("8080", "8080,61000-64999"),
        ("8080,9000-9010", "8080,9000-9010,61000-64999"),
        ("61000-64999", "61000-64999"),
        ("60000-61500", "60000-64999"),
        ("65000", "61000-65000"),
        ("60999", "60999-64999"),
        ("62000,65001", "61000-64999,65001"),
    ],
)
def test_reserved_ports_keep_what_others_reserved(before: str, after: str) -> None:
    assert settings.with_range(before, (61000, 64999)) == after
