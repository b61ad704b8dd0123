# SPDX-License-Identifier: Apache-2.0
"""Who is who on the node of the program tests, as bytes of one family. Knows no program."""

from __future__ import annotations

from ipaddress import ip_network

from dataplane.model.net import Family
from tests.program import world
from tests.program.fuzz.sight import SIZE, Address, Party


class Net:
    """Whether an address lies in a range, at the price of one comparison."""

    def __init__(self, text: str) -> None:
        network = ip_network(text)
        self._mask, self._value = int(network.netmask), int(network.network_address)

    def __contains__(self, address: Address) -> bool:
        return int.from_bytes(address, "big") & self._mask == self._value


class Place:
    """Names, ranges and Services of `world`, and what kind of address one is."""

    def __init__(self, family: Family) -> None:
        at = family is Family.V6
        self.names = {name: a.packed for name, a in world.addresses(family).items()}
        self.pods = {world.PODS[p]: self.names[p] for p in ("client", "neighbour")}
        self.own = frozenset(self.names[n] for n in ("here", "here2", "router"))
        self.services = Net(world.SERVICE_RANGE[at])
        self.cluster = Net(world.CLUSTER_RANGE[at])
        self.there = Net(world.POD_RANGE["there"][at])
        self.here = Net(world.POD_RANGE["here"][at])
        self._not_hidden = [Net(r[at]) for r in (world.KEPT_RANGE, world.LAN_RANGE)]
        self._group = Net("224.0.0.0/4" if not at else "ff00::/8")
        self._link = Net("fe80::/10" if at else "169.254.1.1/32")
        self._loop = Net("127.0.0.0/8" if not at else "::1/128")
        self._broadcast = self.names["broadcast"]
        self.zero = bytes(SIZE[family])
        self.frontends: dict[tuple[int, Address, int], frozenset[Party]] = {}
        for service in world.SERVICES:
            backends = frozenset((self.names[b.pod], b.port) for b in service.backends)
            for name, port, _ in service.frontends:
                self.frontends[service.protocol, self.names[name], port] = backends

    def is_group(self, address: Address) -> bool:
        """Multicast or broadcast."""
        return address in self._group or address == self._broadcast

    def is_on_link(self, address: Address) -> bool:
        """Never to be routed. IPv4's link-local may be: a cloud's metadata are there."""
        return self.is_no_source(address) or address in self._link

    def is_no_source(self, address: Address) -> bool:
        """RFC 1122 3.2.1.3, RFC 4291 2.5, 2.7: no packet that is routed comes from there."""
        return address == self.zero or address in self._loop or self.is_group(address)

    def hides(self, address: Address) -> bool:
        """Whether pods' packets to there are masqueraded."""
        return not (
            address in self.cluster
            or address in self.services
            or address in self.own
            or any(address in net for net in self._not_hidden)
        )
