# SPDX-License-Identifier: Apache-2.0
"""Addresses, families and protocols: the words that all other values use.

Must not parse user input leniently: `ipaddress` decides what an address is.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class Family(enum.IntEnum):
    """Address family, by the number its users say. Not AF_INET's numbers."""

    V4 = 4
    V6 = 6

    @property
    def bits(self) -> int:
        """Length of an address in bits."""
        return 32 if self is Family.V4 else 128


class Protocol(enum.IntEnum):
    """Transport protocol, by its IANA number; `.name` is Kubernetes' word for it."""

    TCP = 6
    UDP = 17
    SCTP = 132


def family_of(address: IPAddress | IPNetwork) -> Family:
    """The family of an address or network."""
    return Family.V4 if address.version == 4 else Family.V6
