# SPDX-License-Identifier: Apache-2.0
"""Declarations in the text of abi.h, config.h and maps.h: structs, enums, constants, maps.

The headers keep to a small language, so no preprocessor is needed: `#define NAME
NUMBER`, structs of integers, arrays and structs, enums with a comment beside each
value. Anything else is refused by name. Must not know sizes of a family (layout does).
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dataplane.model.errors import Contradiction

# Bytes of each type that may stand in abi.h.
SCALARS = {
    "__u8": 1,
    "__u16": 2,
    "__u32": 4,
    "__u64": 8,
    "__be16": 2,
    "__be32": 4,
    "char": 1,
}

_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_DEFINE = re.compile(r"^#define[ \t]+(\w+)[ \t]+(\d+|0x[0-9a-fA-F]+)[ \t]*$", re.M)
_DIRECTIVE = re.compile(r"^[ \t]*#.*$", re.M)
_VALUE = re.compile(r"^[ \t]+([A-Z]\w*)[ \t]*=[^,/\n]*,?[ \t]*/\*((?:[^*]|\*(?!/))*)\*/", re.M)
_CONTINUED = re.compile(r"\s*\n[\s*]*")
_MAP = re.compile(
    r'^(FAMILY|SHARED)_MAP\s*\(\s*"(?P<type>\w+)"\s*,\s*(?P<key>[\w ]+?)\s*,'
    r"\s*(?P<value>[\w ]+?)\s*,\s*(?P<name>\w+)\s*,[^;]*?\)\s*;",
    re.M,
)
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a struct; count is a constant expression, empty for no array."""

    name: str
    type: str
    count: str = ""


@dataclass(frozen=True, slots=True)
class MapDeclaration:
    """One map of maps.h: whether there is one a family, and the C types of key and value."""

    name: str
    per_family: bool
    type: str
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Header:
    """What abi.h declares, for either family."""

    structs: Mapping[str, tuple[Member, ...]]
    enums: Mapping[str, Mapping[str, int]]
    texts: Mapping[str, str]
    constants: Mapping[str, int]


def parse(text: str) -> Header:
    """Declarations of abi.h (with config.h before it, if its constants are wanted)."""
    from pycparser import CParser, c_ast  # 15 ms, and only who needs layouts pays

    plain = _DIRECTIVE.sub("", _COMMENT.sub("", text))
    typedefs = "".join(f"typedef int {name};" for name in SCALARS if name != "char")
    structs: dict[str, tuple[Member, ...]] = {}
    enums: dict[str, dict[str, int]] = {}
    for declared in CParser().parse(typedefs + plain).ext:
        kind = declared.type if isinstance(declared, c_ast.Decl) else None
        if isinstance(kind, c_ast.Struct):
            structs[kind.name] = tuple(_member(kind.name, m, c_ast) for m in kind.decls)
        elif isinstance(kind, c_ast.Enum):
            enums[kind.name] = {e.name: int(e.value.value, 0) for e in kind.values.enumerators}
        elif kind is not None:
            raise Contradiction(f"bpf/abi.h: {declared.name}", "neither struct nor enum")
    return Header(
        structs=structs,
        enums=enums,
        texts={name: _CONTINUED.sub(" ", said).strip() for name, said in _VALUE.findall(text)},
        constants=defines(text),
    )


def _member(struct: str, declared: Any, c_ast: Any) -> Member:
    kind, count = declared.type, ""
    if isinstance(kind, c_ast.ArrayDecl):
        count, kind = _expression(kind.dim, c_ast), kind.type
    inner = getattr(kind, "type", None)
    if isinstance(inner, c_ast.Struct):
        return Member(declared.name, f"struct {inner.name}", count)
    name = inner.names[0] if isinstance(inner, c_ast.IdentifierType) else "?"
    if name not in SCALARS:
        raise Contradiction(f"bpf/abi.h: struct {struct}: {declared.name}", f"type {name}")
    return Member(declared.name, name, count)


def _expression(node: Any, c_ast: Any) -> str:
    if isinstance(node, c_ast.BinaryOp):
        return f"({_expression(node.left, c_ast)} {node.op} {_expression(node.right, c_ast)})"
    return str(node.name if isinstance(node, c_ast.ID) else node.value)


def defines(text: str) -> Mapping[str, int]:
    """`#define NAME NUMBER`, the last of a name's."""
    return {name: int(value, 0) for name, value in _DEFINE.findall(text)}


def maps(text: str) -> Mapping[str, MapDeclaration]:
    """The maps that maps.h (or any text that holds it) declares, by name."""
    return {
        match["name"]: MapDeclaration(
            match["name"], match[1] == "FAMILY", match["type"], match["key"], match["value"]
        )
        for match in _MAP.finditer(_COMMENT.sub("", text))
    }


def evaluate(expression: str, constants: Mapping[str, int]) -> int:
    """A constant expression of C: numbers, names, + - * / <<."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in constants:
                return constants[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise Contradiction(f"bpf/abi.h: {expression}", "no constant expression that is known here")

    return value(ast.parse(expression.replace("/", "//"), mode="eval").body)
