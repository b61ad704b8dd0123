# SPDX-License-Identifier: Apache-2.0
"""Layouts of one family: where each member of each struct of abi.h stands.

`abi(family)` reads bpf/abi.h once a process. Must not know rows (codec does).
"""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dataplane
from dataplane.abi import header
from dataplane.model.errors import BadEnvironment, Contradiction
from dataplane.model.net import Family

_NATIVE: Mapping[str, type[ctypes._SimpleCData[int]]] = {
    "__u8": ctypes.c_uint8,
    "__u16": ctypes.c_uint16,
    "__u32": ctypes.c_uint32,
    "__u64": ctypes.c_uint64,
    "__be16": ctypes.c_uint16.__ctype_be__,
    "__be32": ctypes.c_uint32.__ctype_be__,
}


@dataclass(frozen=True, slots=True)
class Field:
    """A member with its place: offset and size in bytes; count 0 for no array."""

    name: str
    type: str
    count: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct's layout, and the same as a ctypes class (values in host order)."""

    name: str
    fields: tuple[Field, ...]
    size: int
    ctype: type[ctypes.Structure]


class Abi:
    """bpf/abi.h and bpf/maps.h for one family."""

    def __init__(self, family: Family, declared: header.Header, maps_text: str) -> None:
        self._header = declared
        self._constants = dict(declared.constants)
        self._constants |= {"FAMILY": int(family), "ADDR_WORDS": family.bits // 32}
        for values in declared.enums.values():
            self._constants |= values
        self.maps = header.maps(maps_text)
        self._structs: dict[str, Struct] = {}
        self._enums: dict[str, type[enum.IntEnum]] = {}

    def struct(self, name: str) -> Struct:
        """Layout of `struct name`. Raises Contradiction for one that has implicit padding."""
        if name not in self._structs:
            self._structs[name] = self._layout(name)
        return self._structs[name]

    @property
    def structs(self) -> tuple[str, ...]:
        """Names of all structs, in the order of abi.h."""
        return tuple(self._header.structs)

    def enum(self, name: str) -> type[enum.IntEnum]:
        """`enum name`, members by their full names, without the end mark (…_MAX)."""
        if name not in self._enums:
            values = {n: v for n, v in self._header.enums[name].items() if not n.endswith("_MAX")}
            self._enums[name] = enum.IntEnum(name, values)  # type: ignore[assignment]
        return self._enums[name]

    @property
    def enums(self) -> tuple[str, ...]:
        """Names of all enums, in the order of abi.h."""
        return tuple(self._header.enums)

    def text(self, enum_name: str, value: int) -> str:
        """The words beside a value. Raises ValueError for a value that the enum lacks."""
        return self._header.texts[self.enum(enum_name)(value).name]

    def constant(self, name: str) -> int:
        """A #define's number or an enum value (also …_MAX)."""
        return self._constants[name]

    def size_of(self, c_type: str) -> int:
        """Bytes of a C type: `__u32`, `struct flow`."""
        kind, _, name = c_type.partition(" ")
        return self.struct(name).size if kind == "struct" else header.SCALARS[c_type]

    def _layout(self, name: str) -> Struct:
        fields = []
        members: list[tuple[str, type]] = []
        offset = 0
        for member in self._header.structs[name]:
            count = header.evaluate(member.count, self._constants) if member.count else 0
            size = self.size_of(member.type) * (count or 1)
            fields.append(Field(member.name, member.type, count, offset, size))
            members.append((member.name, self._ctype(member.type, count)))
            offset += size
        ctype = type(name, (ctypes.Structure,), {"_fields_": members})
        if ctypes.sizeof(ctype) != offset:
            raise Contradiction(f"bpf/abi.h: struct {name}", "has implicit padding", "say zero[]")
        for field in fields:
            if getattr(ctype, field.name).offset != field.offset:
                raise Contradiction(f"bpf/abi.h: struct {name}", f"padding before {field.name}")
        return Struct(name, tuple(fields), offset, ctype)

    def _ctype(self, c_type: str, count: int) -> Any:
        if c_type == "char":
            return ctypes.c_char * count
        kind, _, name = c_type.partition(" ")
        base: Any = self.struct(name).ctype if kind == "struct" else _NATIVE[c_type]
        return base * count if count else base


@functools.cache
def abi(family: Family) -> Abi:
    """The layouts of one family; shared maps' structs are equal in both."""
    return Abi(family, *_texts())


@functools.cache
def _texts() -> tuple[header.Header, str]:
    folder = Path(dataplane.__file__).resolve().parents[1] / "bpf"
    try:
        text = "".join((folder / name).read_text() for name in ("config.h", "abi.h"))
        maps = (folder / "maps.h").read_text()
    except OSError as error:
        raise BadEnvironment(
            f"{error.filename}", f"{error.strerror}", "reinstall podlane: layouts are read from it"
        ) from error
    return header.parse(text), maps
