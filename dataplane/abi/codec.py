# SPDX-License-Identifier: Apache-2.0
"""Rows to the bytes of a map's entry and back, by field names.

A row's fields are its struct's members less what is always zero (`zero…`) and less
the family beside an address of either family, which the address itself says. A row
class that does not fit its struct is refused when its codec is made. Must not know
file descriptors.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter, itemgetter
from typing import Any

from dataplane.abi.layout import Field, Struct, abi
from dataplane.model import flow, rows
from dataplane.model.errors import Contradiction
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table

# Structs whose row is not a class but the one address in it.
_ADDRESSES = frozenset({"addr", "peer_key"})
_ROWS: Mapping[str, type] = {
    "node": rows.NodeRow,
    "uplink": rows.UplinkRow,
    "endpoint": rows.EndpointRow,
    "route_key": rows.RouteKey,
    "route": rows.RouteRow,
    "peer": rows.PeerRow,
    "frontend_key": rows.FrontendKey,
    "frontend": rows.FrontendRow,
    "source_key": rows.SourceKey,
    "source": rows.SourceRow,
    "service": rows.ServiceRow,
    "slot": rows.SlotRow,
    "backend": rows.BackendRow,
    "name_key": rows.NameKey,
    "name": rows.NameRow,
    "affinity_key": flow.AffinityKey,
    "affinity": flow.Affinity,
    "flow_key": flow.FlowKey,
    "flow": flow.Flow,
    "socket_key": flow.SocketKey,
    "socket_flow": flow.SocketFlow,
    "counter": flow.Counter,
    "flow_budget": rows.FlowBudget,
    "sweep": rows.SweepRow,
    "exhausted_key": flow.ExhaustedKey,
    "service_counter": flow.ServiceCounter,
    "endpoint_counter": flow.EndpointCounter,
    "verdict": flow.Verdict,
}
_FORMATS = {"__u8": "B", "__u16": "H", "__u32": "I", "__u64": "Q", "__be16": "H", "__be32": "I"}
_SWAPPED = tuple((port >> 8) | (port & 0xFF) << 8 for port in range(1 << 16))

Pack = Callable[[Any], bytes]
Parse = Callable[[bytes], Any]
_Convert = Callable[[Any], Any]
_Step = Callable[[list[Any]], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """Bytes of one table's keys and values; `parse_value` takes the value of one CPU.

    `key` and `value` raise Contradiction for a row that does not fit.
    """

    table: Table
    key_size: int
    value_size: int
    key: Pack
    value: Pack
    parse_key: Parse
    parse_value: Parse

    def pack(self, entries: Iterable[tuple[Any, Any]]) -> tuple[bytes, bytes, int]:
        """Entries as packed keys, packed values, and how many, for a batch."""
        keys: list[bytes] = []
        values: list[bytes] = []
        key, value = self.key, self.value
        for one, row in entries:
            keys.append(key(one))
            values.append(value(row))
        return b"".join(keys), b"".join(values), len(keys)


@functools.cache
def codec(table: Table) -> Codec:
    """The codec of a table. Raises Contradiction for a table without rows, or a misfit."""
    layouts = abi(table.family or Family.V4)
    declared = layouts.maps.get(table.name)
    if declared is None or declared.per_family == (table.family is None):
        raise Contradiction(f"table {table.pin}", "bpf/maps.h has no such map")
    key, parse_key = _type(table, declared.key)
    value, parse_value = _type(table, declared.value)
    return Codec(
        table,
        layouts.size_of(declared.key),
        layouts.size_of(declared.value),
        key,
        value,
        parse_key,
        parse_value,
    )


def _type(table: Table, c_type: str) -> tuple[Pack, Parse]:
    kind, _, name = c_type.partition(" ")
    if kind != "struct":
        form = struct.Struct(f"={_FORMATS[c_type]}")
        return form.pack, lambda data: form.unpack(data)[0]
    if name not in _ADDRESSES and name not in _ROWS:
        raise Contradiction(f"table {table.pin}", f"no row class for struct {name}")
    layout = abi(table.family or Family.V4).struct(name)
    if name == "addr":
        return _address_codec(table, layout)
    return _build(table, layout, _ROWS.get(name))


def _address_codec(table: Table, layout: Struct) -> tuple[Pack, Parse]:
    def pack(address: Any) -> bytes:
        try:
            return _packed(layout.size, address)
        except (ValueError, AttributeError) as error:
            raise Contradiction(f"table {table.pin}", str(error)) from None

    return pack, IPv4Address if table.family is Family.V4 else IPv6Address


def _build(table: Table, layout: Struct, row: type | None) -> tuple[Pack, Parse]:
    formats, names = ["="], list[str]()
    converted: list[tuple[int, _Convert]] = []
    steps: list[_Step] = []
    places = {field.name: field for field in layout.fields}
    positions: dict[str, int] = {}
    for field in layout.fields:
        if field.name.startswith("zero"):
            formats.append(f"{field.size}x")
            continue
        place = len(names)
        owner = _said_by(field, places)
        names.append(owner or field.name)
        positions[field.name] = place
        formats.append(_format(field))
        if owner:
            converted.append((place, _version))
        elif (family := _family_field(field, places)) is not None:
            converted.append((place, _any_packed))
            steps.append(functools.partial(_any_parse, place, family, positions))
        elif (pair := _conversion(field, table.family)) is not None:
            converted.append((place, pair[0]))
            steps.append(functools.partial(_apply, place, pair[1]))
    form = struct.Struct("".join(formats))
    if form.size != layout.size:
        raise Contradiction(f"struct {layout.name}", f"{form.size} bytes, not {layout.size}")
    getter: Callable[[Any], Iterable[Any]]
    make: Callable[[list[Any]], Any]
    if row is None:
        count = len(names)
        getter, make = (lambda one: (one,) * count), itemgetter(0)
    else:
        wanted = [field.name for field in dataclasses.fields(row)]
        if set(wanted) != set(names):
            odd = ", ".join(sorted(set(wanted) ^ set(names)))
            raise Contradiction(f"struct {layout.name}", f"{row.__name__} differs from it: {odd}")
        getter, make = _getter(names), _maker(row, [positions[name] for name in wanted])
    what = f"table {table.pin}"

    def pack(value: Any) -> bytes:
        try:
            values = list(getter(value))
            for place, convert in converted:
                values[place] = convert(values[place])
            return form.pack(*values)
        except (struct.error, ValueError, IndexError, AttributeError) as error:
            why = f"{value} does not fit struct {layout.name}: {error}"
            raise Contradiction(what, why) from None

    def parse(data: bytes) -> Any:
        values = list(form.unpack(data))
        for step in steps:
            step(values)
        return make(values)

    return pack, parse


def _getter(names: list[str]) -> Callable[[Any], Iterable[Any]]:
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda row: (get(row),)


def _maker(row: type, order: list[int]) -> Callable[[list[Any]], Any]:
    if len(order) == 1:
        return lambda values: row(values[order[0]])
    pick = itemgetter(*order)
    return lambda values: row(*pick(values))


# ---- members ----
def _format(field: Field) -> str:
    if field.type == "struct addr" or field.count:
        return f"{field.size}s"
    return _FORMATS[field.type]


def _family_field(field: Field, places: Mapping[str, Field]) -> str | None:
    """The member that says the family of this 16-byte address; None if it is none."""
    if field.type == "__u8" and field.count == 16:
        return next((n for n in (f"{field.name}_family", "family") if n in places), None)
    return None


def _said_by(field: Field, places: Mapping[str, Field]) -> str | None:
    """The address that says this family; None if this is no such family."""
    for other in places.values():
        if _family_field(other, places) == field.name:
            return other.name
    return None


def _conversion(field: Field, family: Family | None) -> tuple[_Convert, _Convert] | None:
    """How a member's value is packed and parsed; None if it needs nothing."""
    if field.type == "struct addr":
        kind: type[IPv4Address] | type[IPv6Address] = (
            IPv4Address if family is Family.V4 else IPv6Address
        )
        return functools.partial(_packed, field.size), kind
    if field.type == "char":
        return functools.partial(_text, field.count), _text_parse
    if field.count:
        return functools.partial(_exactly, field.size), bytes
    if field.type == "__be16":
        return _SWAPPED.__getitem__, _SWAPPED.__getitem__
    return None


def _packed(size: int, address: IPAddress) -> bytes:
    packed = address.packed
    if len(packed) != size:
        raise ValueError(f"{address} is of the other family")
    return packed


def _exactly(size: int, value: bytes) -> bytes:
    if len(value) != size:
        raise ValueError(f"{value!r} has not {size} bytes")
    return value


def _text(size: int, value: str) -> bytes:
    encoded = value.encode()
    if len(encoded) >= size:
        raise ValueError(f"{value!r} has more than {size - 1} bytes")
    return encoded


def _text_parse(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="replace")


def _version(address: IPAddress | None) -> int:
    return 0 if address is None else address.version


def _any_packed(address: IPAddress | None) -> bytes:
    return b"" if address is None else address.packed


def _any_parse(place: int, family: str, positions: Mapping[str, int], values: list[Any]) -> None:
    raw, version = values[place], values[positions[family]]
    values[place] = {4: lambda: IPv4Address(raw[:4]), 6: lambda: IPv6Address(raw)}.get(
        version, lambda: None
    )()


def _apply(place: int, convert: _Convert, values: list[Any]) -> None:
    values[place] = convert(values[place])
