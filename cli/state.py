# SPDX-License-Identifier: Apache-2.0
"""Where the map commands get their rows: the pinned maps of one node, read only.

Needs no agent, no source and no compiler: what is pinned is what packets see. Must not write.
"""

from __future__ import annotations

import argparse
import socket
import typing
from collections.abc import Iterable, Mapping
from fcntl import ioctl
from pathlib import Path
from typing import Any, TypeAlias

from cli.render import add_output
from dataplane.abi.layout import abi
from dataplane.kernel.loader import check_bpffs
from dataplane.kernel.maps import Maps
from dataplane.model.constants import NameKind
from dataplane.model.errors import BadEnvironment, BadInput
from dataplane.model.names import ServiceName
from dataplane.model.net import Family, Protocol
from dataplane.model.rows import Table
from dataplane.sources.documents import read_one

DEFAULT_BPFFS = Path("/sys/fs/bpf/podlane")
_SIOCGIFHWADDR = 0x8927  # linux/sockios.h


class Tables(typing.Protocol):
    """What a view reads; rows have the field names of bpf/abi.h."""

    def items(self, table: Table) -> Iterable[tuple[Any, Any]]:
        """Entries of a table; array entries that nobody ever wrote are left out."""

    def counters(self, table: Table) -> Mapping[int, Any]:
        """Counters by place, summed over CPUs; all-zero ones may be left out."""


Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def map_command(subparsers: Subparsers, name: str, help_line: str) -> argparse.ArgumentParser:
    """A command that shows rows of one node: which node, and in what form."""
    parser = subparsers.add_parser(name, help=help_line, description=help_line)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--bpffs", type=Path, metavar="DIR", help=f"folder of the pins (default {DEFAULT_BPFFS})"
    )
    where.add_argument("--config", type=Path, metavar="FILE", help="take bpffsDir of this config")
    add_output(parser)
    return parser


def open_tables(args: argparse.Namespace) -> Tables:
    """The pinned maps of the node that the arguments name.

    Raises:
        BadInput: the config can't be read.
        BadEnvironment: nothing is pinned there, or the folder is no bpf filesystem.
    """
    folder = bpffs(args)
    try:
        check_bpffs(folder)
    except BadEnvironment as error:
        step = "name the folder of a node's pins with --bpffs, or its config with --config"
        raise BadEnvironment(error.what, error.why, step) from error
    return Maps(folder)


def bpffs(args: argparse.Namespace) -> Path:
    """The folder of the pins that the arguments name."""
    if args.bpffs is not None:
        return Path(args.bpffs)
    if args.config is None:
        return DEFAULT_BPFFS
    what, step = f"config {args.config}", "give the config file that the agent runs with"
    config = read_one(what, args.config)
    folder = config.get("bpffsDir", str(DEFAULT_BPFFS)) if isinstance(config, dict) else None
    if not isinstance(folder, str) or "\0" in folder:
        raise BadInput(what, "it is no mapping, or its bpffsDir no path", step)
    return Path(folder)


# ---- words of bpf/abi.h ----
def members(enum: str) -> list[int]:
    """The values of an enum that mean something: all but …_NONE."""
    return [int(m) for m in abi(Family.V4).enum(enum) if not m.name.endswith("_NONE")]


def word(enum: str, value: int) -> str:
    """An enum value's own name without its prefix (drop 1 is no_backend), or its number."""
    kinds = abi(Family.V4).enum(enum)
    if value not in set(kinds):
        return str(value)
    return kinds(value).name.partition("_")[2].lower()


def text(enum: str, value: int) -> str:
    """The words beside an enum value, or its number if this version has none."""
    kinds = abi(Family.V4).enum(enum)
    return abi(Family.V4).text(enum, value) if value in set(kinds) else str(value)


def bits(value: int) -> list[int]:
    """The bits that are set, one number each."""
    return [1 << bit for bit in range(value.bit_length()) if value & 1 << bit]


def constant(name: str) -> int:
    """A #define or end mark of bpf/abi.h."""
    return abi(Family.V4).constant(name)


def number(enum: str, member: str) -> int:
    """The number of an enum value by its name in bpf/abi.h."""
    return int(abi(Family.V4).enum(enum)[member])


def protocol_word(value: int) -> str:
    """TCP, UDP, SCTP, or what people call the others."""
    others = {1: "ICMP", 58: "ICMPv6"}
    return Protocol(value).name if value in set(Protocol) else others.get(value, str(value))


# ---- names ----
class Names:
    """What ids mean to people; an id that has no name stands for itself."""

    def __init__(self, tables: Tables) -> None:
        rows = tables.items(Table("names"))
        self._texts: dict[tuple[int, int], str] = {
            (key.kind, key.id): row.text for key, row in rows
        }

    def service(self, id_: int) -> str:
        """namespace/name:port."""
        text = self._get(NameKind.SERVICE, id_)
        try:
            return ServiceName.parse(text).service
        except ValueError:
            return text

    def endpoint(self, id_: int) -> str:
        """namespace/pod."""
        return self._get(NameKind.ENDPOINT, id_)

    def _get(self, kind: NameKind, id_: int) -> str:
        return self._texts.get((kind, id_), f"id {id_}")


def device(ifindex: int, mac: bytes) -> str:
    """Name of the device that has this index and hardware address here; empty if none has.

    The maps may be another network namespace's, where the index means another device.
    """
    try:
        name = socket.if_indextoname(ifindex)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = ioctl(any_socket, _SIOCGIFHWADDR, name.encode().ljust(64, b"\0"))
    except OSError:
        return ""
    return name if answer[18:24] == mac else ""
