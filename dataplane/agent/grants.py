# SPDX-License-Identifier: Apache-2.0
"""What a new pod of this node gets: addresses, a number, names, a MAC; or why it can't.

Must not write anything or touch the kernel.
"""

from __future__ import annotations

import hashlib

from dataplane.agent.facts import Facts
from dataplane.agent.podnet import BUDGETS, COUNTERS, ENDPOINTS
from dataplane.agent.tables import Tables
from dataplane.cni import protocol
from dataplane.cni.protocol import CniError, Request
from dataplane.cni.store import Attachment, Store
from dataplane.core.addresses import next_free, ranges_of
from dataplane.model.errors import TableFull
from dataplane.model.net import IPAddress, IPNetwork, family_of


class Grants:
    """Decides by what the store knows to be given."""

    def __init__(self, store: Store, tables: Tables, facts: Facts) -> None:
        self._store, self._tables, self._facts = store, tables, facts
        self.abandoned: tuple[IPNetwork, ...] = ()  # ranges that new pods must not get

    def grant(self, request: Request) -> Attachment:
        """All that a pod gets, still to be written down.

        Raises:
            CniError: it asks for what it can't have.
            RangeFull, TableFull: there is no more of it.
        """
        _refuse_unsupported(request)
        addresses = request.addresses or self.addresses()
        for address in addresses:
            self._refuse_address(address)
        for port in request.runtime.host_ports:
            holder = self._store.port_holder(port)
            if holder is not None:
                raise CniError(
                    protocol.BAD_CONFIG, str(port), f"is held by pod {holder} of this node"
                )
        number = self.number(request.pod)
        digest = hashlib.sha256((request.container_id + request.interface).encode())
        return Attachment(
            container_id=request.container_id,
            interface=request.interface,
            veth=f"pl{digest.hexdigest()[:12]}",
            endpoint_id=number,
            # made up ones are locally administered
            mac=request.runtime.mac or b"\x0e" + digest.digest()[6:11],
            netns=request.netns or "",
            pod=request.pod,
            mtu=self._facts.pod_mtu,
            addresses=tuple(sorted(addresses, key=lambda address: address.version)),
            done=False,
            host_ports=request.runtime.host_ports,
            bandwidth=request.runtime.bandwidth,
        )

    def addresses(self) -> tuple[IPAddress, ...]:
        """The next free ones, one a family.

        Raises:
            RangeFull: how many there are of which range, all used.
            CniError: a range is not the node's any more.
        """
        for cidr in self.abandoned:
            raise _lost(cidr)
        return tuple(
            next_free(
                ranges_of(self._facts.pod_cidrs, family),
                self._store.given,
                self._store.last(family),
            )
            for family in self._facts.routers
        )

    def number(self, pod: str) -> int:
        """The smallest free place in the maps of endpoints.

        Raises:
            TableFull: there is none.
        """
        used = self._store.endpoint_ids()
        size = min(self._tables.size(t) for t in (COUNTERS, BUDGETS, *ENDPOINTS.values()))
        number = next((n for n in range(1, size) if n not in used), None)
        if number is None:
            raise TableFull(
                f"pod {pod}",
                f"all {size - 1} places of map endpoints are taken",
                "raise mapSizes.endpoints, endpoint_counters and endpoint_flows",
            )
        return number

    def _refuse_address(self, address: IPAddress) -> None:
        for cidr in self.abandoned:
            if address in cidr:
                raise _lost(cidr)
        ranges = ranges_of(self._facts.pod_cidrs, family_of(address))
        if not any(address in cidr for cidr in ranges):
            words = ", ".join(map(str, ranges)) or "none of its family"
            why = f"is outside this node's pod ranges ({words})"
        elif address == self._facts.routers[family_of(address)]:
            why = "is the node's own router address"
        elif (holder := self._store.holder(address)) is not None:
            why = f"is given to pod {holder}"
        else:
            return
        raise CniError(protocol.BAD_ENVIRONMENT, f"address {address}", why)


def _lost(cidr: IPNetwork) -> CniError:
    return CniError(
        protocol.TRY_LATER,
        f"pod range {cidr}",
        "this node's Node object has another one now, so that nobody would reach a pod here",
        "start this node's agent anew: delete its pod",
    )


def _refuse_unsupported(request: Request) -> None:
    """What is asked for and can't be had, by name."""
    ports = request.runtime.host_ports
    for place, port in enumerate(ports):
        if any(port.clashes(other) for other in ports[:place]):
            raise CniError(protocol.BAD_CONFIG, str(port), "is asked for twice")
