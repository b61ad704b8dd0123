# SPDX-License-Identifier: Apache-2.0
"""The one renderer: rows of values as a table for people, or as JSON or YAML for programs.

Must not read maps or know what a row means. A row is a frozen dataclass; its field names in
camelCase are the keys of JSON and YAML, which always hold every row and every field. A table
holds what matters at a glance; `-o wide` holds the rest too.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TextIO

import yaml
from rich.console import Console
from rich.table import Table

FORMATS = ("table", "wide", "json", "yaml")
# A pipe has no width: no cell is cut or folded there.
PIPE_WIDTH = 10_000
# rich takes a millisecond a row; beyond this many nobody reads them one by one.
RICH_ROWS = 500


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, the text of a row's cell, and whether only `-o wide` has it."""

    heading: str
    text: Callable[[Any], str]
    wide: bool = False
    number: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """How rows of one type are shown. `plain` says whether a row is in the short table.

    nothing is what to say, on stderr, if the table has no row.
    """

    columns: tuple[Column, ...]
    nothing: str
    plain: Callable[[Any], bool] = lambda _row: True


def add_output(parser: argparse.ArgumentParser) -> None:
    """The -o that every command with rows has."""
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="default: a table")


def show(
    view: View,
    rows: Sequence[Any],
    output: str,
    out: TextIO | None = None,
    words: TextIO | None = None,
) -> None:
    """Writes rows, in the order given, in one of FORMATS."""
    out, words = out or sys.stdout, words or sys.stderr
    if output == "json":
        json.dump(as_data(rows), out, indent=2, ensure_ascii=False)
        out.write("\n")
    elif output == "yaml":
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        yaml.dump(as_data(rows), out, dumper, sort_keys=False, allow_unicode=True, width=PIPE_WIDTH)
    else:
        wide = output == "wide"
        kept = [row for row in rows if wide or view.plain(row)]
        if kept:
            _table([c for c in view.columns if wide or not c.wide], kept, out)
        else:
            words.write(view.nothing + "\n")


def _table(columns: Sequence[Column], rows: Sequence[Any], out: TextIO) -> None:
    cells = [[column.text(row) for column in columns] for row in rows]
    if out.isatty() and len(rows) <= RICH_ROWS:
        _for_terminal(columns, cells, out)
    else:
        _for_pipe(columns, cells, out)


def _for_terminal(columns: Sequence[Column], cells: Sequence[Sequence[str]], out: TextIO) -> None:
    """As wide as the terminal, long cells folded."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.heading, justify="right" if column.number else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*row)
    Console(file=out, highlight=False, markup=False, emoji=False).print(table)


def _for_pipe(columns: Sequence[Column], cells: Sequence[Sequence[str]], out: TextIO) -> None:
    """The same look with no cell cut or folded, and quick for a hundred thousand rows."""
    lines = [[column.heading for column in columns], *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        )
        out.write("  ".join(padded).rstrip() + "\n")


def numbered(facts: Mapping[str, str], steps: Sequence[str], out: TextIO) -> None:
    """Facts by name, then steps by number, indented below a headline of the caller's."""
    width = max(map(len, facts), default=0)
    for name, text in facts.items():
        out.write(f"  {name.ljust(width)}  {text}\n")
    for number, step in enumerate(steps, start=1):
        out.write(f"  {number:2}. {step}\n")


def as_data(value: Any) -> Any:
    """Rows as JSON's own types: addresses and MACs as text, field names in camelCase."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {camel(f.name): as_data(getattr(value, f.name)) for f in fields}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return mac(value)
    if isinstance(value, IPv4Address | IPv6Address | IPv4Network | IPv6Network):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): as_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(v) for v in value]
    return value


def camel(name: str) -> str:
    """snake_case as camelCase."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def mac(value: bytes) -> str:
    """A hardware address as people write it."""
    return value.hex(":")


def socket_text(address: IPv4Address | IPv6Address, port: int) -> str:
    """address:port, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def bytes_text(count: int) -> str:
    """A number of bytes with a binary unit, three digits at most before it."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
