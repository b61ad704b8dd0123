# SPDX-License-Identifier: Apache-2.0
"""What is asked: the first packet of one flow. From options or from a batch file.

Pure. Must not know the node: whether an address makes sense there is the programs' answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from dataplane.model.errors import BadInput
from dataplane.model.net import Family, IPAddress, Protocol, family_of

_KEYS = ("from", "to", "protocol")
_PROTOCOLS = {protocol.name.lower(): protocol for protocol in Protocol}


@dataclass(frozen=True, slots=True)
class Question:
    """A new flow from a bare address to address and port."""

    source: IPAddress
    address: IPAddress
    port: int
    protocol: Protocol

    @property
    def family(self) -> Family:
        return family_of(self.address)

    def __str__(self) -> str:
        to = place(self.address, self.port)
        return f"{self.source} to {to} over {self.protocol.name}"


def place(address: IPAddress, port: int) -> str:
    """address:port, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def question(source: str, to: str, protocol: str, where: str = "") -> Question:
    """One question; `where` (file and line) begins the name of what is wrong.

    Raises:
        BadInput: names the option or key, and why.
    """

    def name(key: str) -> str:
        return f"{where}: {key}" if where else f"--{key}"

    sender = _address(source, name("from"))
    address, port = _place(to, name("to"))
    known = _PROTOCOLS.get(protocol.lower())
    if known is None:
        raise BadInput(name("protocol"), f"{protocol!r} is none of {', '.join(_PROTOCOLS)}")
    if sender.version != address.version:
        raise BadInput(name("from"), f"{sender} and {address} are of two families")
    return Question(sender, address, port, known)


def batch(name: str, lines: Iterable[str]) -> Iterator[Question]:
    """The questions of a batch, one JSON object a line; empty lines are left out.

    Raises:
        BadInput: a line is no such object; says file and line.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _line(f"{name}:{number}", line)


def _line(where: str, line: str) -> Question:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(where, f"is not JSON: {error}") from None
    form = 'give {"from":"IP","to":"IP:PORT","protocol":"tcp"}'
    if not isinstance(found, dict):
        raise BadInput(where, "is no JSON object", form)
    for key in found:
        if key not in _KEYS:
            raise BadInput(f"{where}: {key}", "unknown key", form)
    for key in _KEYS:
        if key not in found:
            raise BadInput(f"{where}: {key}", "is missing", form)
        if not isinstance(found[key], str):
            raise BadInput(f"{where}: {key}", "is not a text", form)
    return question(found["from"], found["to"], found["protocol"], where)


def _address(text: str, name: str) -> IPAddress:
    try:
        found = ip_address(text)
    except ValueError:
        why = f"{text!r} is no IP address"
        if any(part.isdecimal() and part[0] == "0" != part for part in text.split(".")):
            why += ": programs differ in how they read leading zeros"
        raise BadInput(name, why, "give it in its usual form, as 10.0.0.1 or fd00::1") from None
    if found.version == 6 and (found.scope_id or found.ipv4_mapped):
        raise BadInput(name, f"{text!r} has a zone or is a mapped IPv4 address")
    return found


def _place(text: str, name: str) -> tuple[IPAddress, int]:
    form = "give ADDRESS:PORT, IPv6 as [ADDRESS]:PORT"
    host, colon, number = text.rpartition(":")
    if not colon or not number.isascii() or not number.isdecimal():
        raise BadInput(name, f"{text!r} has no port", form)
    bracketed = host.startswith("[") and host.endswith("]")
    address = _address(host[1:-1] if bracketed else host, name)
    if bracketed is not (address.version == 6):
        raise BadInput(name, f"{text!r} is not in the form of its family", form)
    port = int(number) if len(number) <= 5 else 0
    if not 1 <= port <= 65535:
        raise BadInput(name, f"{number} is no port (1 to 65535)")
    return address, port
