# SPDX-License-Identifier: Apache-2.0
"""The tables of a node under test: filled as an agent would, read as the CLI would.

Must not run programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from dataplane.abi.codec import codec
from dataplane.kernel import bpf
from dataplane.kernel.loader import Datapath
from dataplane.kernel.maps import Maps
from dataplane.model import rows
from dataplane.model.constants import BackendFlag, FrontendKind, NodeFlag, ServiceFlag
from dataplane.model.flow import EndpointCounter, Flow, ServiceCounter
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table
from tests.program import packets, world
from tests.program.result import ABI, Drop, Hook

DROP_MAX = ABI.constant("DROP_MAX")
# Entries of the maps that the tests need few of; small ones are cleared sooner.
SIZES = {
    "services": 32,
    "slots": 1024,
    "backends": 64,
    "service_counters": 32,
    "backend_counters": 64,
    "endpoint_counters": 8,
    "endpoint_flows": 8,
}
# Programs' own, and never of interest afterwards.
UNCLEARED = frozenset({"scratch"})

_Entry = tuple[int, bytes, bytes]


class Tables:
    """Maps of one node, of one family at a time."""

    def __init__(self, name: str, datapath: Datapath) -> None:
        self.name = name
        self.family = Family.V4
        self.underlay = world.Underlay()
        self.addresses: dict[str, IPAddress] = {}
        self.datapath, self._maps = datapath, Maps(datapath)
        made = (
            (fd, bpf.map_info(fd)) for t, fd in datapath.maps.items() if t.name not in UNCLEARED
        )
        self._maps_made = [
            (fd, info, nothing(info) if info.type in bpf.ARRAY_TYPES else None) for fd, info in made
        ]
        self._written: list[_Entry] = []
        self._fills: dict[tuple[Family, world.Underlay], tuple[_Entry, ...]] = {}

    # ---- tables ----
    def table(self, name: str, family: Family | None = None) -> Table:
        shared = Table(name)
        return shared if shared in self.datapath.maps else Table(name, family or self.family)

    def put(self, name: str, key: Any, row: Any) -> None:
        table = self.table(name)
        form = codec(table)
        entry = self.datapath.maps[table], form.key(key), form.value(row)
        bpf.map_update(*entry)
        self._written.append(entry)

    def get(self, name: str, key: Any) -> Any:
        return self._maps.get(self.table(name), key)

    def delete(self, name: str, key: Any) -> bool:
        table = self.table(name)
        return bpf.map_delete(self.datapath.maps[table], codec(table).key(key))

    def items(self, name: str, family: Family | None = None) -> dict[Any, Any]:
        return dict(self._maps.items(self.table(name, family)))

    def clear(self) -> None:
        """All tables as after a fresh load."""
        for fd, info, empty in self._maps_made:
            if empty is not None:
                bpf.map_update_batch(fd, *empty)
            elif info.type == bpf.MAP_LPM_TRIE:  # the last that batches came to
                while (key := bpf.map_next_key(fd, None, info.key_size)) is not None:
                    bpf.map_delete(fd, key)
            else:
                for keys, _, count in list(bpf.map_batches(fd, info.key_size, info.value_size)):
                    bpf.map_delete_batch(fd, keys, count)

    def fill(self, family: Family, underlay: world.Underlay) -> None:
        """What an agent would write."""
        self.clear()
        self.family, self.underlay = family, underlay
        self.addresses = world.addresses(family)
        known = self._fills.get((family, underlay))
        if known is not None:
            for entry in known:
                bpf.map_update(*entry)
            return
        self._written.clear()
        self._fill()
        self._fills[family, underlay] = tuple(self._written)

    def _fill(self) -> None:
        family, underlay = self.family, self.underlay
        here = self.name == "here"
        self.put("node", 0, self._node_row())
        uplinks = (world.UPLINK, world.UPLINK2) if here else (world.UPLINK_THERE,)
        for device in uplinks:
            address = self.addresses["here2" if device == world.UPLINK2 else self.name]
            self.put("uplinks", device, rows.UplinkRow(address, 1500, world.mac_of(device)))
        for pod, device in world.PODS.items():
            if (pod == "remote") != here:
                row = rows.EndpointRow(device, world.POD_IDS[pod], world.mac_of(device))
                self.put("endpoints", self.addresses[pod], row)
        for key, route in world.routes(self.name, family, underlay, uplinks).items():
            self.put("routes", key, route)
        if underlay.vxlan:
            other = "there" if here else "here"
            for version in Family:
                self.put("peers", world.addresses(version)[other], rows.PeerRow(1))
        for service in world.SERVICES:
            self.put_service(service)

    def _node_row(self) -> rows.NodeRow:
        here = self.name == "here"
        return rows.NodeRow(
            router=self.addresses["router" if here else "router-there"],
            gateway=self.addresses["gateway"],
            flags=int(NodeFlag.VXLAN) if self.underlay.vxlan else 0,
            overlay_ifindex=world.OVERLAY if here else world.OVERLAY_THERE,
            vni=world.VNI,
            hash_seed=world.HASH_SEED,
            masquerade_min=world.MASQUERADE_MIN,
            masquerade_max=world.MASQUERADE_MAX,
            vxlan_port=world.VXLAN_PORT,
            pod_mtu=world.POD_MTU,
            overlay_mac=world.OVERLAY_MAC,
            gateway_mac=world.GATEWAY_MAC,
            primary=self.addresses["here" if here else "there"],
        )

    def change(self, name: str, key: Any, **fields: Any) -> None:
        """Write an entry anew with other fields."""
        self.put(name, key, replace(self.get(name, key), **fields))

    def put_service(self, service: world.Service, flags: int = world.USABLE) -> None:
        """A Service with all its backends, in an agent's order of writes."""
        for backend in service.backends:
            self.put_backend(service, backend, flags)
        for text in service.ranges:
            self.put_range(service, text[self.family is Family.V6])
        self.put_set(service, service.backends)
        for name, port, kind in service.frontends:
            # A NodePort is served on each node's own addresses.
            address = self.addresses[self.name if name == "here" else name]
            key = rows.FrontendKey(address, port, service.protocol)
            self.put("frontends", key, rows.FrontendRow(service.id, int(kind)))
            if kind is FrontendKind.CLUSTER_IP:
                whole = rows.FrontendRow(0, int(FrontendKind.ADDRESS))
                self.put("frontends", rows.FrontendKey(address, 0, 0), whole)

    def put_range(self, service: world.Service, text: str, odd: bool | None = None) -> None:
        """A range of one of a Service's two lists; by default of the one that counts."""
        network = ip_network(text)
        if odd is None:
            odd = ServiceFlag.RANGES_ODD in service.flags
        key = rows.SourceKey(service.id << 1 | odd, 32 + network.prefixlen, network.network_address)
        self.put("source_ranges", key, rows.SourceRow(service.id))

    def put_backend(
        self, service: world.Service, backend: world.Backend, flags: int, **fields: int
    ) -> None:
        local = self.has(backend.pod) and flags
        if local:
            flags |= BackendFlag.LOCAL
        if flags & BackendFlag.SELECTABLE:
            flags |= BackendFlag.IN_CLUSTER | (BackendFlag.IN_LOCAL if local else 0)
        self.put(
            "backends",
            backend.id,
            rows.BackendRow(
                fields.get("generation", backend.generation),
                self.addresses[backend.pod],
                service.id,
                backend.port,
                service.protocol,
                int(flags),
            ),
        )

    def put_set(self, service: world.Service, backends: Iterable[world.Backend]) -> None:
        """The backends that new flows may choose."""
        backends = list(backends)
        local = [b for b in backends if self.has(b.pod)]
        base = service.id * world.SLOTS_PER_SERVICE
        half = world.SLOTS_PER_SERVICE // 2
        for place, backend in (*enumerate(backends, base), *enumerate(local, base + half)):
            self.put("slots", place, rows.SlotRow(backend.id, world.EPOCH))
        all_, here = (
            int(rows.BackendSet(start, len(some), world.EPOCH))
            for start, some in ((base, backends), (base + half, local))
        )
        row = rows.ServiceRow(all_, here, int(service.flags), service.affinity_seconds)
        self.put("services", service.id, row)

    def flag(self, service: world.Service, flags: ServiceFlag) -> None:
        self.change("services", service.id, flags=int(flags))

    def has(self, pod: str) -> bool:
        """Whether this node is where it runs."""
        return (pod in ("remote", "there")) != (self.name == "here")

    # ---- flows ----
    def flow(self, line: str) -> Flow:
        """The flow table's entry of a packet's tuple, which must be there."""
        key = packets.key(line, self.family, self.addresses)
        found: Flow | None = self.get("flows", key)
        assert found is not None, f"no flow {key} among {list(self.flows())}"
        return found

    def forget(self, line: str) -> None:
        """Evict the entry of a packet's tuple, which must be there."""
        key = packets.key(line, self.family, self.addresses)
        assert self.delete("flows", key), f"no flow {key} among {list(self.flows())}"

    def later(self, seconds: float) -> None:
        """Let time pass: what the programs have written of flows and clients happened earlier."""
        nanoseconds = int(seconds * 1e9)
        for key, flow in self.flows().items():
            seen, checked = flow.last_seen - nanoseconds, flow.checked - (nanoseconds >> 20)
            self.put("flows", key, replace(flow, last_seen=seen, checked=checked & 0xFFFFFFFF))
        for key, memory in self.items("affinity").items():
            self.put("affinity", key, replace(memory, last_used=memory.last_used - nanoseconds))

    def flows(self, family: Family | None = None) -> dict[Any, Flow]:
        return self.items("flows", family)

    # ---- counters ----
    def drops(self, family: Family | None = None) -> Counter[tuple[str, str]]:
        """Packets dropped, by hook and reason."""
        counted: Counter[tuple[str, str]] = Counter()
        for place, counter in self._maps.counters(self.table("drops", family)).items():
            hook, reason = divmod(place, DROP_MAX)
            name = Hook(hook).name.removeprefix("HOOK_"), Drop(reason).name.removeprefix("DROP_")
            counted[name] = counter.packets
        return counted

    def service_counter(self, service: world.Service) -> ServiceCounter:
        found = self._maps.counters(self.table("service_counters")).get(service.id)
        return found or ServiceCounter(0, 0, 0)

    def backend_counter(self, backend: world.Backend) -> ServiceCounter:
        found = self._maps.counters(self.table("backend_counters")).get(backend.id)
        return found or ServiceCounter(0, 0, 0)

    def endpoint_counter(self, pod: str) -> EndpointCounter:
        found = self._maps.counters(self.table("endpoint_counters")).get(world.POD_IDS[pod])
        return found or EndpointCounter(0, 0, 0, 0)


def nothing(info: bpf.MapInfo) -> tuple[bytes, bytes, int]:
    """Keys, values and number of entries of an array that holds nothing, for a batch."""
    per_cpu = info.type in bpf.PERCPU_TYPES
    size = (info.value_size + 7) // 8 * 8 * bpf.possible_cpus() if per_cpu else info.value_size
    keys = b"".join(place.to_bytes(4, "little") for place in range(info.max_entries))
    return keys, bytes(size * info.max_entries), info.max_entries
