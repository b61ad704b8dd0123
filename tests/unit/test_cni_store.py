# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import sqlite3
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.cni.runtime import Bandwidth, HostPort
from dataplane.cni.store import Attachment, Store
from dataplane.model.errors import BadEnvironment
from dataplane.model.net import Family, Protocol

POD = Attachment(
    container_id="c1",
    interface="eth0",
    veth="pl0123456789ab",
    endpoint_id=1,
    mac=bytes(6),
    netns="/run/netns/a",
    pod="shop/cart-0",
    mtu=1450,
    addresses=(ip_address("10.244.1.2"), ip_address("fd00::2")),
    done=False,
)


def test_what_was_given_outlives_the_process(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db") as store:
        store.add(POD)
        store.done(POD)
    with Store(tmp_path / "pods.db") as store:
        assert store.attachments() == [dataclasses.replace(POD, done=True)]
        assert store.get("c1", "eth0") == dataclasses.replace(POD, done=True)
        assert store.get("c1", "eth1") is None
        assert store.last(Family.V4) == ip_address("10.244.1.2")
        assert store.last(Family.V6) == ip_address("fd00::2")


def test_an_address_is_given_to_one_pod_only(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db") as store:
        store.add(POD)
        other = dataclasses.replace(
            POD, container_id="c2", veth="pl1", endpoint_id=2, addresses=POD.addresses[:1]
        )
        with pytest.raises(BadEnvironment, match="UNIQUE constraint failed"):
            store.add(other)
        assert store.holder(POD.addresses[0]) == "shop/cart-0"
        assert len(store.attachments()) == 1


def test_removing_a_pod_frees_its_addresses_and_can_be_repeated(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db") as store:
        store.add(POD)
        store.remove(POD)
        store.remove(POD)
        assert store.holder(POD.addresses[0]) is None
        store.add(dataclasses.replace(POD, container_id="c2"))
        assert store.last(Family.V4) == POD.addresses[0]


def test_what_was_before_is_kept_from_the_first_word_on(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db") as store:
        store.remember("sysctl a", "0", "1")
        store.remember("sysctl a", "1", "2")
        assert store.remembered() == [("sysctl a", "0", "2")]


def test_a_newer_form_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db"):
        pass
    with sqlite3.connect(tmp_path / "pods.db") as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(BadEnvironment, match="newer podlane"):
        Store(tmp_path / "pods.db")


def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "pods.db").write_text("no database" * 100)
    with Store(tmp_path / "pods.db") as store:
        assert store.fresh
        assert store.damaged is not None
        assert store.damaged.read_text().startswith("no database")
        store.add(POD)
    with Store(tmp_path / "pods.db") as store:
        assert not store.fresh
        assert len(store.attachments()) == 1


def test_a_damaged_page_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db") as store:
        for number in range(1, 200):
            one = dataclasses.replace(POD, container_id=f"c{number}", veth=f"pl{number}")
            store.add(dataclasses.replace(one, endpoint_id=number, addresses=()))
    text = bytearray((tmp_path / "pods.db").read_bytes())
    text[4096 : 4096 * 4] = b"\xa5" * (4096 * 3)
    (tmp_path / "pods.db").write_bytes(text)
    with Store(tmp_path / "pods.db") as store:
        assert store.damaged is not None
        assert store.attachments() == []


def test_a_host_port_has_one_holder(tmp_path: Path) -> None:
    web = HostPort(Protocol.TCP, 80, 8080)
    with Store(tmp_path / "pods.db") as store:
        store.add(dataclasses.replace(POD, host_ports=(web,)))
        got = store.get("c1", "eth0")
        assert got is not None
        assert got.host_ports == (web,)
        assert store.port_holder(web) == "shop/cart-0"
        inner = ip_address("192.0.2.1")
        assert store.port_holder(HostPort(Protocol.TCP, 80, 1, inner)) == "shop/cart-0"
        assert store.port_holder(HostPort(Protocol.UDP, 80, 1)) is None
        store.remove(POD)
        assert store.port_holder(web) is None


def test_limits_are_kept_with_their_pod(tmp_path: Path) -> None:
    limited = dataclasses.replace(POD, bandwidth=Bandwidth(1, 2, 3, (1 << 63) - 1))
    with Store(tmp_path / "pods.db") as store:
        store.add(limited)
        assert store.get(*POD.key) == limited
        store.remove(limited)
        store.add(POD)
        assert store.attachments() == [POD]


def test_given_addresses_are_asked_for_one_by_one(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db") as store:
        assert POD.addresses[0] not in store.given
        store.add(POD)
        assert all(address in store.given for address in POD.addresses)


def test_a_folder_without_room_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    with Store(tmp_path / "pods.db") as store:
        store._db.execute("PRAGMA max_page_count = 1")
        big = dataclasses.replace(POD, netns="/" + "x" * 100_000)
        with pytest.raises(BadEnvironment, match="full"):
            store.add(big)
        assert store.attachments() == []
