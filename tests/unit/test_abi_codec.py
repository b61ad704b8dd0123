# SPDX-License-Identifier: Apache-2.0
"""Rows to bytes and back: byte order, zeros, misfits, speed."""

from __future__ import annotations

import dataclasses
import time
import typing
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.abi.codec import codec
from dataplane.abi.layout import abi
from dataplane.model import flow, rows
from dataplane.model.errors import Contradiction
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import BackendRow, FrontendKey, NameRow, RouteRow, Table

V4 = IPv4Address("10.1.2.3")
V6 = IPv6Address("fd00::1:2:3")
ADDRESSES: dict[Family, IPAddress] = {Family.V4: V4, Family.V6: V6}


def _tables() -> list[Table]:
    """All tables less those of the programs alone."""
    found = []
    for name, declared in abi(Family.V4).maps.items():
        for family in Family if declared.per_family else [None]:
            with suppress(Contradiction):
                found.append(codec(Table(name, family)).table)
    return found


def test_every_table_that_core_writes_has_rows() -> None:
    names = {"node", "uplinks", "endpoints", "routes", "peers", "frontends", "services", "slots"}
    assert {table.name for table in _tables()} > names | {"backends", "names", "flows", "drops"}


def _value(draw: st.DrawFn, struct: str, name: str, kind: Any, family: Family | None) -> Any:
    """Something that this member of this struct may hold."""
    field = next(f for f in abi(family or Family.V4).struct(struct).fields if f.name == name)
    if kind == IPAddress:
        either = family is None
        return draw(st.ip_addresses(v=None if either else typing.cast(Any, int(family or 4))))
    if kind == IPAddress | None:
        return draw(st.none() | st.ip_addresses())
    if kind is bytes:
        return draw(st.binary(min_size=field.size, max_size=field.size))
    if kind is str:
        return draw(
            st.text(st.characters(min_codepoint=1, max_codepoint=0x7E), max_size=field.size - 1)
        )
    return draw(st.integers(0, (1 << 8 * field.size) - 1))


@st.composite
def _rows(draw: st.DrawFn, table: Table, part: str) -> Any:
    declared = abi(table.family or Family.V4).maps[table.name]
    c_type = declared.key if part == "key" else declared.value
    if c_type in ("__u32", "__u64"):
        return draw(st.integers(0, (1 << int(c_type[3:])) - 1))
    struct = c_type.removeprefix("struct ")
    if struct == "peer_key":
        return draw(st.ip_addresses())
    if struct == "addr":
        return draw(st.ip_addresses(v=typing.cast(Any, int(table.family or 4))))
    name = "".join(word.capitalize() for word in struct.split("_"))
    row = next(getattr(m, n) for m in (rows, flow) for n in (name, f"{name}Row") if hasattr(m, n))
    kinds = typing.get_type_hints(row)
    return row(
        **{
            f.name: _value(draw, struct, f.name, kinds[f.name], table.family)
            for f in dataclasses.fields(row)
        }
    )


@pytest.mark.parametrize("table", _tables(), ids=lambda table: table.pin)
@given(data=st.data())
def test_what_is_packed_is_parsed_again(table: Table, data: st.DataObject) -> None:
    entry = codec(table)
    key, row = data.draw(_rows(table, "key")), data.draw(_rows(table, "value"))
    assert entry.parse_key(entry.key(key)) == key
    assert entry.parse_value(entry.value(row)) == row
    assert (len(entry.key(key)), len(entry.value(row))) == (entry.key_size, entry.value_size)


@pytest.mark.parametrize("family", list(Family))
def test_ports_and_addresses_stand_in_network_order_all_else_in_host_order(family: Family) -> None:
    row = BackendRow(0x0102030405060708, ADDRESSES[family], 7, 8080, 6, 5)
    packed = codec(Table("backends", family)).value(row)
    seen = abi(family).struct("backend").ctype.from_buffer_copy(packed)
    assert (seen.generation, seen.service_id, seen.protocol, seen.flags) == (
        row.generation,
        7,
        6,
        5,
    )
    assert seen.port == 8080
    assert bytes(seen.address) == ADDRESSES[family].packed
    assert (8080).to_bytes(2, "big") in packed


def test_reserved_members_are_zero() -> None:
    key = codec(Table("frontends", Family.V4)).key(FrontendKey(V4, 0xFFFF, 0xFF))
    assert key == V4.packed + b"\xff\xff\xff\0"


@pytest.mark.parametrize("hop", [None, V4, V6])
def test_a_next_hop_says_its_family(hop: IPAddress | None) -> None:
    packed = codec(Table("routes", Family.V4)).value(RouteRow(4, hop=hop))
    seen = abi(Family.V4).struct("route").ctype.from_buffer_copy(packed)
    assert seen.hop_family == (hop.version if hop else 0)
    assert bytes(seen.hop) == (hop.packed if hop else b"").ljust(16, b"\0")


def test_an_address_of_the_other_family_is_refused() -> None:
    with pytest.raises(Contradiction, match="fd00::1:2:3 is of the other family"):
        codec(Table("backends", Family.V4)).value(BackendRow(1, V6, 1, 80, 6, 7))


@pytest.mark.parametrize(
    "row", [BackendRow(1, V4, 1 << 32, 80, 6, 7), BackendRow(1, V4, 1, 1 << 16, 6, 7)]
)
def test_a_number_that_does_not_fit_is_refused_with_its_table(row: BackendRow) -> None:
    with pytest.raises(Contradiction, match="table backends_4: BackendRow"):
        codec(Table("backends", Family.V4)).value(row)


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(Contradiction, match="has more than 319 bytes"):
        codec(Table("names")).value(NameRow("x" * 320))


def test_a_table_that_is_not_declared_is_refused() -> None:
    with pytest.raises(Contradiction, match="no such map"):
        codec(Table("peers", Family.V4))


def test_a_hundred_thousand_backends_are_packed_well_within_a_second() -> None:
    entries = [(i, BackendRow(i, V6, i, 80, 6, 7)) for i in range(100_000)]
    entry = codec(Table("backends", Family.V6))
    begun = time.process_time()
    _, _, count = entry.pack(entries)
    assert count == 100_000
    assert time.process_time() - begun < 0.7
