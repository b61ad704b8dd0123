# SPDX-License-Identifier: Apache-2.0
"""A typed view of one decoded JSON object: every access checks the type and knows its path.

Must not know kinds of objects, files or positions. As in Kubernetes, null is
absent, and a field that nobody asks for is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from dataplane.model.net import IPAddress, IPNetwork

Path = tuple[str | int, ...]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_]+")


class Fault(Exception):
    """A field that can't be used: where it is in its object, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{show_path(path)}: {reason}")


def show_path(path: Path) -> str:
    """A path as Kubernetes writes it: `spec.ports[0].port`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def is_label(name: str) -> bool:
    """Whether `name` is a DNS-1123 label (at most 63 characters)."""
    return _LABEL.fullmatch(name) is not None


def is_subdomain(name: str) -> bool:
    """Whether `name` is a DNS-1123 subdomain (at most 253 characters)."""
    return len(name) <= 253 and _SUBDOMAIN.fullmatch(name) is not None


def is_port_name(name: str) -> bool:
    """Whether `name` is an IANA service name, as container ports are named."""
    return len(name) <= 15 and _PORT_NAME.fullmatch(name) is not None


def parse_address(text: str) -> IPAddress:
    """An address in the one spelling that nobody reads differently.

    Raises:
        ValueError: not an address; leading zeros (octal to some); IPv4-mapped IPv6
            (an IPv4 address to some); a zone.
    """
    if ":" not in text:
        return IPv4Address(text)
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which means something on one host only")
    address = IPv6Address(text)
    if address.ipv4_mapped is not None:
        raise ValueError(f"{text!r} is IPv4-mapped; write {address.ipv4_mapped}")
    return address


def parse_network(text: str) -> IPNetwork:
    """A range in CIDR form; bits beyond the prefix are cleared, as Kubernetes does.

    Raises:
        ValueError: as parse_address; or the prefix length is missing or out of range.
    """
    address_text, slash, prefix = text.partition("/")
    address = parse_address(address_text)
    if not slash:
        raise ValueError(f"{text!r} has no prefix length; write {text}/{address.max_prefixlen}")
    if not _PREFIX.fullmatch(prefix) or int(prefix) > address.max_prefixlen:
        raise ValueError(
            f"{text!r}: prefix length is not a number from 0 to {address.max_prefixlen}"
        )
    if isinstance(address, IPv4Address):
        return IPv4Network((address, int(prefix)), strict=False)
    return IPv6Network((address, int(prefix)), strict=False)


class Fields:
    """One JSON object at a path inside its root object."""

    __slots__ = ("data", "path")

    def __init__(self, data: object, path: Path = ()) -> None:
        if not isinstance(data, dict):
            raise Fault(path, f"is {_type(data)}, not an object")
        self.data: Mapping[object, object] = data
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self.data.get(name) is not None

    def fault(self, name: str, reason: str) -> Fault:
        """A fault of field `name` of this object."""
        return Fault((*self.path, name), reason)

    def text(self, name: str, default: str = "") -> str:
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fault(name, f"is {_type(value)}, not a string")
        return value

    def choice(
        self, name: str, choices: Mapping[str, object] | tuple[str, ...], default: str
    ) -> str:
        """A string out of `choices`; an empty one counts as absent."""
        value = self.text(name) or default
        if value != default and value not in choices:
            raise self.fault(name, f"{value!r} is none of {', '.join(choices)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fault(name, f"is {_type(value)}, not true or false")
        return value

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer from low to high; without a default it must be there."""
        value = self.data.get(name)
        if value is None:
            if default is None:
                raise self.fault(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fault(name, f"is {_type(value)}, not an integer")
        if not low <= value <= high:
            raise self.fault(name, f"{value} is not from {low} to {high}")
        return value

    def address(self, name: str) -> IPAddress | None:
        """An address; None if absent or empty."""
        text = self.text(name)
        try:
            return parse_address(text) if text else None
        except ValueError as error:
            raise self.fault(name, str(error)) from None

    def fields(self, name: str) -> Fields:
        """The object in field `name`; an empty one if absent."""
        value = self.data.get(name)
        return Fields({} if value is None else value, (*self.path, name))

    def values(self, name: str) -> Iterator[tuple[Path, object]]:
        """Path and value of each item of a list; nothing if absent."""
        value = self.data.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.fault(name, f"is {_type(value)}, not a list")
        for index, item in enumerate(value):
            yield (*self.path, name, index), item

    def texts(self, name: str) -> Iterator[tuple[Path, str]]:
        """Path and text of each item of a list of strings."""
        for path, item in self.values(name):
            if not isinstance(item, str):
                raise Fault(path, f"is {_type(item)}, not a string")
            yield path, item

    def labels(self, name: str) -> dict[str, str]:
        """A map of strings to strings; empty if absent."""
        inner = self.fields(name)
        for key, value in inner.data.items():
            if not isinstance(key, str):
                raise Fault(inner.path, f"key {key!r} is {_type(key)}, not a string; quote it")
            if not isinstance(value, str):
                raise inner.fault(key, f"is {_type(value)}, not a string; quote it")
        return {str(key): str(value) for key, value in inner.data.items()}


def _type(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number with a fraction"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case None:
            return "empty"
    return f"a {type(value).__name__}"
