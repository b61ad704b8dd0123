# SPDX-License-Identifier: Apache-2.0
"""What is asked: the first packet of one flow. From options or from a batch file.

Pure. Must not know the node: whether an address makes sense there is the programs' answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from dataplane.model.errors import BadInput
from dataplane.model.net import Family, IPAddress, Protocol, family_of

_KEYS = ("from", "to", "protocol")
# Bad lines of a batch that are named one by one.
_NAMED = 10
DEFAULT_PROTOCOL = "tcp"
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


def batch(name: str, lines: Iterable[str]) -> list[Question]:
    """The questions of a batch, one JSON object a line; empty lines are left out.

    Raises:
        BadInput: some lines are no such object; says file and line of each, up to a few.
    """
    found: list[Question] = []
    wrong: list[BadInput] = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                found.append(_line(f"{name}:{number}", line))
        except BadInput as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        # An answer a line is the contract, so none is given where some lines could have none.
        named = "".join(f"\n  {error}" for error in wrong[:_NAMED])
        more = f"\n  and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise BadInput(name, f"{len(wrong)} lines can't be asked, so none was:{named}{more}")
    return found


def _line(where: str, line: str) -> Question:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(where, f"is not JSON: {error}") from None
    form = 'give {"from":"IP","to":"IP:PORT","protocol":"tcp"}'
    if not isinstance(found, dict):
        raise BadInput(where, "is no JSON object", form)
    given = {"protocol": DEFAULT_PROTOCOL, **found}
    for key in given:
        if key not in _KEYS:
            raise BadInput(f"{where}: {key}", "unknown key", form)
    for key in _KEYS:
        if key not in given:
            raise BadInput(f"{where}: {key}", "is missing", form)
        if not isinstance(given[key], str):
            raise BadInput(f"{where}: {key}", "is not a text", form)
    return question(given["from"], given["to"], given["protocol"], where)


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
