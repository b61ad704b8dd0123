# SPDX-License-Identifier: Apache-2.0
"""A node under test: the real programs on maps of their own, fed with packets.

`node.from_pod("client", "tcp client:40000 > near:80")` gives a `Result`, whose
`expect` compares verdict, packet and drop counters with what was meant.
Must not know what is right: the tables of the tests say it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, socket
from typing import Any

from scapy.layers.l2 import Ether

from dataplane.abi.codec import codec
from dataplane.abi.layout import abi
from dataplane.kernel import bpf
from dataplane.kernel.loader import Datapath
from dataplane.kernel.maps import Maps
from dataplane.kernel.testrun import Outcome, Runner
from dataplane.model import rows
from dataplane.model.constants import BackendFlag, FrontendKind, NodeFlag, ServiceFlag
from dataplane.model.flow import EndpointCounter, Flow, ServiceCounter
from dataplane.model.net import Family, IPAddress
from dataplane.model.rows import Table
from tests.program import packets, prelude, world
from tests.program.prelude import Setup
from tests.program.sandbox import Sandbox

ABI = abi(Family.V4)
Drop, Action, Hook = ABI.enum("drop"), ABI.enum("action"), ABI.enum("hook")
# Their members are known when abi.h is read, so not to a type checker.
Flag: Any = ABI.enum("flow_flag")
State: Any = ABI.enum("flow_state")
DROP_MAX = ABI.constant("DROP_MAX")

# tc verdicts: TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
TC_VERDICTS = {"PASS": 0xFFFFFFFF, "DROP": 2}
TC_REDIRECT = 7

Frame = bytes

# In a line: the port of the node's range that the program has chosen.
MASQUERADED = "MASQ"


# ---- what is expected ----
@dataclass(frozen=True, slots=True)
class Verdict:
    """What a packet comes to; None is not compared. device: where it goes; hop: over whom."""

    action: str
    reason: str = "NONE"
    device: int | None = None
    hop: str | None = None

    def __str__(self) -> str:
        parts = [self.action, self.reason if self.reason != "NONE" else "", self.hop or ""]
        return " ".join(p for p in (*parts, f"to {self.device}" if self.device else "") if p)


PASSED = Verdict("PASS")
ANSWERED = Verdict("ANSWER")


def into(pod: str) -> Verdict:
    return Verdict("POD", device=world.PODS[pod])


def through_tunnel(device: int = world.OVERLAY, to: str = "there") -> Verdict:
    return Verdict("TUNNEL", device=device, hop=to)


def by_next_hop(to: str = "there") -> Verdict:
    return Verdict("NATIVE", device=world.UPLINK, hop=to)


def out_by(device: int = world.UPLINK) -> Verdict:
    return Verdict("WORLD", device=device)


def dropped(reason: str) -> Verdict:
    return Verdict("DROP", reason)


def refused(reason: str) -> Verdict:
    """Dropped by name, and answered with TCP RST or ICMP unreachable."""
    return Verdict("ANSWER", reason)


# ---- what came of it ----
@dataclass(frozen=True, slots=True)
class Result:
    """One packet through one hook."""

    node: Node
    hook: str
    device: int
    given: Frame
    outcome: Outcome
    drops: Mapping[tuple[str, str], int]

    @property
    def frame(self) -> Frame:
        return self.outcome.packet

    @property
    def verdict(self) -> Verdict:
        left = self.outcome.verdict
        action = Action(left.action).name.removeprefix("ACTION_")
        return Verdict(action, Drop(left.reason).name.removeprefix("DROP_"), left.ifindex)

    def expect(self, verdict: Verdict, packet: str | Frame | None = None) -> Result:
        """Verdict, tc verdict, next hop, drop counters; and the packet byte for byte.

        Without one, a packet that passes must be as it was.
        """
        failed = [*self._wrong_verdict(verdict), *self._wrong_counters(verdict)]
        if packet is None and verdict.action == "PASS":
            packet = self.given
        if packet is not None:
            wanted = packet if isinstance(packet, bytes) else self._frame(packet, verdict)
            if isinstance(packet, str) and MASQUERADED in packet:
                failed += self._wrong_port()
            if self.frame != wanted:
                failed += packets.differences(self.frame, wanted)
                failed += [f"wanted {packets.shown(wanted)}"]
        if self.frame != self.given and verdict.action != "DROP":
            failed += [f"wrong checksum: {w}" for w in packets.wrong_checksums(self.frame)]
        assert not failed, "\n".join(
            [
                f"{self.hook} of node {self.node.name}, device {self.device}, IPv{self.node.family:d}",
                f"in     {packets.shown(self.given)}",
                f"out    {packets.shown(self.frame)}",
                *failed,
            ]
        )
        return self

    def _wrong_verdict(self, meant: Verdict) -> Iterable[str]:
        was = self.verdict
        if (was.action, was.reason) != (meant.action, meant.reason):
            yield f"verdict {was}, not {meant}"
        code = TC_VERDICTS.get(meant.action, TC_REDIRECT)
        if self.outcome.retval != code:
            yield f"tc verdict {self.outcome.retval:#x}, not {code:#x}"
        if meant.device is not None and was.device != meant.device:
            yield f"to device {was.device}, not {meant.device}"
        if meant.action == "ANSWER" and was.device != self.device:
            yield f"answered on device {was.device}, not {self.device}"
        hop = self.node.hop(meant.hop)
        if meant.device is not None and self.outcome.verdict.hop != hop:
            yield f"next hop {self.outcome.verdict.hop}, not {hop}"

    def _wrong_counters(self, meant: Verdict) -> Iterable[str]:
        hook = "from_pod" if self.hook == "from_pod_l2" else self.hook
        counted = {} if meant.reason == "NONE" else {(hook.upper(), meant.reason): 1}
        if self.drops != counted:
            yield f"drops counted: {dict(self.drops)}, not {counted}"

    def _frame(self, line: str, verdict: Verdict) -> Frame:
        """MACs as the verdict demands: what is redirected to a neighbour gets them later."""
        dst, src = self.given[:6], self.given[6:12]
        if verdict.action == "POD":
            pod = next(p for p, device in world.PODS.items() if device == verdict.device)
            dst, src = world.mac_of(world.PODS[pod]), world.GATEWAY_MAC
        elif verdict.action == "TUNNEL" or self.hook == "to_overlay":
            dst = src = world.OVERLAY_MAC
        elif verdict.action == "ANSWER":
            dst, src = src, dst
        return self.node.build(self.named(line), dst, src)

    @property
    def port(self) -> int:
        """The port that the packet has left with; an echo's identifier."""
        packet = Ether(self.frame).payload
        layer = packet.payload
        if layer.name.startswith("ICMP"):
            return int(layer.id)
        return int(layer.sport)

    def named(self, line: str) -> str:
        """A line with the port that was chosen in place of MASQUERADED."""
        return line.replace(MASQUERADED, str(self.port)) if MASQUERADED in line else line

    def _wrong_port(self) -> Iterable[str]:
        if not world.MASQUERADE_MIN <= self.port <= world.MASQUERADE_MAX:
            yield f"source port {self.port} is not of the masquerade range"


class Node:
    """`here` or `there`, of one family at a time."""

    def __init__(self, name: str, datapath: Datapath, sandbox: Sandbox) -> None:
        self.name = name
        self.family = Family.V4
        self.underlay = world.Underlay()
        self.addresses: dict[str, IPAddress] = {}
        self._datapath, self._sandbox = datapath, sandbox
        self._runner, self._maps = Runner(datapath), Maps(datapath)
        self._arrays = {t: bpf.map_info(fd) for t, fd in datapath.maps.items()}

    # ---- tables ----
    def table(self, name: str, family: Family | None = None) -> Table:
        shared = Table(name)
        return shared if shared in self._datapath.maps else Table(name, family or self.family)

    def put(self, name: str, key: Any, row: Any) -> None:
        table = self.table(name)
        form = codec(table)
        bpf.map_update(self._datapath.maps[table], form.key(key), form.value(row))

    def get(self, name: str, key: Any) -> Any:
        return self._maps.get(self.table(name), key)

    def delete(self, name: str, key: Any) -> bool:
        table = self.table(name)
        return bpf.map_delete(self._datapath.maps[table], codec(table).key(key))

    def items(self, name: str, family: Family | None = None) -> dict[Any, Any]:
        return dict(self._maps.items(self.table(name, family)))

    def clear(self) -> None:
        """All tables as after a fresh load."""
        for table, fd in self._datapath.maps.items():
            info = self._arrays[table]
            if info.type in bpf.ARRAY_TYPES:
                if table.name != "scratch":
                    _zero(fd, info)
            else:
                while (key := bpf.map_next_key(fd, None, info.key_size)) is not None:
                    bpf.map_delete(fd, key)

    def fill(self, family: Family, underlay: world.Underlay) -> None:
        """What an agent would write."""
        self.clear()
        self.family, self.underlay = family, underlay
        self.addresses = world.addresses(family)
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
        )

    def change(self, name: str, key: Any, **fields: Any) -> None:
        """Write an entry anew with other fields."""
        self.put(name, key, replace(self.get(name, key), **fields))

    def put_service(self, service: world.Service, flags: int = world.USABLE) -> None:
        """A Service with all its backends, in an agent's order of writes."""
        for backend in service.backends:
            self.put_backend(service, backend, flags)
        self.put_set(service, service.backends)
        for name, port, kind in service.frontends:
            # A NodePort is served on each node's own addresses.
            address = self.addresses[self.name if name == "here" else name]
            key = rows.FrontendKey(address, port, service.protocol)
            self.put("frontends", key, rows.FrontendRow(service.id, int(kind)))
            if kind is FrontendKind.CLUSTER_IP:
                whole = rows.FrontendRow(0, int(FrontendKind.ADDRESS))
                self.put("frontends", rows.FrontendKey(address, 0, 0), whole)

    def put_backend(
        self, service: world.Service, backend: world.Backend, flags: int, **fields: int
    ) -> None:
        local = int(BackendFlag.LOCAL) if self.has(backend.pod) and flags else 0
        self.put(
            "backends",
            backend.id,
            rows.BackendRow(
                fields.get("generation", backend.generation),
                self.addresses[backend.pod],
                service.id,
                backend.port,
                service.protocol,
                flags | local,
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
        self.put("services", service.id, rows.ServiceRow(all_, here, int(service.flags)))

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
        """Let time pass for all flows: what the programs have written happened earlier."""
        nanoseconds = int(seconds * 1e9)
        for key, flow in self.flows().items():
            seen, checked = flow.last_seen - nanoseconds, flow.checked - (nanoseconds >> 20)
            self.put("flows", key, replace(flow, last_seen=seen, checked=checked & 0xFFFFFFFF))

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

    # ---- packets ----
    def build(self, line: str, dst: bytes, src: bytes) -> Frame:
        packet = packets.build(line, self.family, self.addresses)
        return packets.frame(packet, self.family, dst, src)

    def hop(self, name: str | None) -> IPAddress | None:
        """What a verdict calls a next hop of this name."""
        if name is None:
            return None
        outer = self.underlay.outer if self.underlay.vxlan else self.family
        return ip_address(world.CAST[name][outer is Family.V6])

    def from_pod(self, pod: str, packet: str | Frame) -> Result:
        device = world.PODS[pod]
        return self.run("from_pod", device, self._from(packet, world.GATEWAY_MAC, device))

    def to_pod(self, pod: str, packet: str | Frame, setup: Setup | None = None) -> Result:
        device = world.PODS[pod]
        frame = self._frame(packet, world.mac_of(device), world.GATEWAY_MAC)
        return self.run("to_pod", device, frame, setup)

    def from_uplink(self, packet: str | Frame, device: int = 0) -> Result:
        device = device or self.uplink
        frame = self._frame(packet, world.mac_of(device), world.SWITCH_MAC)
        return self.run("from_uplink", device, frame)

    def to_uplink(self, packet: str | Frame, setup: Setup | None = None) -> Result:
        frame = self._frame(packet, world.SWITCH_MAC, world.mac_of(self.uplink))
        return self.run("to_uplink", self.uplink, frame, setup)

    def from_overlay(
        self, packet: str | Frame, sender: IPAddress | None = None, vni: int = world.VNI
    ) -> Result:
        """By default from the other node, with our VNI."""
        sender = sender or self.hop("there" if self.name == "here" else "here")
        assert sender is not None
        frame = self._frame(packet, world.OVERLAY_MAC, world.OVERLAY_MAC)
        return self.run("from_overlay", self.overlay, frame, Setup(tunnel=(sender, vni)))

    def to_overlay(self, packet: str | Frame, setup: Setup | None = None) -> Result:
        frame = self._frame(packet, bytes(6), world.OVERLAY_MAC)
        return self.run("to_overlay", self.overlay, frame, setup)

    @contextmanager
    def socket(self, protocol: str, port: int) -> Iterator[None]:
        """A socket of the node itself, bound to any address."""
        kind = SOCK_STREAM if protocol == "tcp" else SOCK_DGRAM

        def bind() -> socket:
            made = socket(AF_INET if self.family is Family.V4 else AF_INET6, kind)
            made.bind(("", port))
            if protocol == "tcp":
                made.listen()
            return made

        with self._sandbox.do(bind):
            yield

    @property
    def uplink(self) -> int:
        return world.UPLINK if self.name == "here" else world.UPLINK_THERE

    @property
    def overlay(self) -> int:
        return world.OVERLAY if self.name == "here" else world.OVERLAY_THERE

    def run(
        self,
        hook: str,
        device: int,
        frame: Frame,
        setup: Setup | None = None,
        gso_size: int = 0,
    ) -> Result:
        """One frame through one hook of a device, prepared by a prelude if need be."""
        program = hook if hook == "from_pod_l2" else f"{hook}_{self.family:d}"
        if setup is not None:
            program = self._with_prelude(program, setup)
        # The one program for all other protocols is of the IPv4 compile.
        family = Family.V4 if hook == "from_pod_l2" else self.family
        before = self.drops(family)
        outcome = self._sandbox.do(
            lambda: self._runner.run(program, frame, ifindex=device, gso_size=gso_size)
        )
        assert outcome.retval not in (prelude.FAILED_SETUP, prelude.FAILED_CALL), (
            f"the prelude failed: {outcome.retval:#x}"
        )
        return Result(self, hook, device, frame, outcome, self.drops(family) - before)

    def _with_prelude(self, program: str, setup: Setup) -> str:
        name = f"{program} after {setup}"
        if name not in self._datapath.programs:
            fd = prelude.load(self._datapath.programs[program], setup)
            self._datapath.programs[name] = fd
        return name

    def _from(self, packet: str | Frame, dst: bytes, device: int) -> Frame:
        return self._frame(packet, dst, world.mac_of(device))

    def _frame(self, packet: str | Frame, dst: bytes, src: bytes) -> Frame:
        return packet if isinstance(packet, bytes) else self.build(packet, dst, src)


def _zero(fd: int, info: bpf.MapInfo) -> None:
    per_cpu = info.type in bpf.PERCPU_TYPES
    size = (info.value_size + 7) // 8 * 8 * bpf.possible_cpus() if per_cpu else info.value_size
    keys = b"".join(place.to_bytes(4, "little") for place in range(info.max_entries))
    bpf.map_update_batch(fd, keys, bytes(size * info.max_entries), info.max_entries)
