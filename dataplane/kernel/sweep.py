# SPDX-License-Identifier: Apache-2.0
"""Forgetting flows that have been silent for too long, and counting each pod's live ones.

The programs only ever add flows; this deletes. A flow is two entries: it is dead when
both are, it is deleted as a whole, and its time is read again right before, because a
packet may have revived it since (pitfall: garbage collection races the packet). Works on
raw bytes, a batch at a time, so that half a million entries cost less than a second and
no more memory than one batch. Must not decide lifetimes (core.expiry does).
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dataplane.abi.layout import Struct, abi
from dataplane.core.expiry import STATES, Lifetimes, StateBits, table
from dataplane.kernel import bpf
from dataplane.model.net import Family

# Flows forgotten in one step, at a few microseconds each.
_STEP = 256


@dataclass(slots=True)
class Swept:
    """What one sweep of one family saw.

    entries are those read, deleted those that went, live the flows by their client's
    address (as bytes) that are neither silent for too long nor closed.
    """

    entries: int = 0
    deleted: int = 0
    live: Counter[bytes] = field(default_factory=Counter)


class Sweeper:
    """Sweeps the flow table of one family.

    Args:
        fd: the map `flows`.
        family: whose it is.
    """

    def __init__(self, fd: int, family: Family) -> None:
        layout = abi(family)
        bits = StateBits(
            seen_reply=layout.constant("FLOW_SEEN_REPLY"),
            fin_client=layout.constant("FLOW_FIN_CLIENT"),
            fin_backend=layout.constant("FLOW_FIN_BACKEND"),
            reset=layout.constant("FLOW_RESET"),
            backend_first=layout.constant("FLOW_BACKEND_FIRST"),
            lasting=layout.constant("FLOW_LASTING"),
        )
        lifetimes = Lifetimes(
            tcp_syn=layout.constant("LIFETIME_TCP_SYN"),
            tcp_established=layout.constant("LIFETIME_TCP_ESTABLISHED"),
            tcp_closing=layout.constant("LIFETIME_TCP_CLOSING"),
            tcp_time_wait=layout.constant("LIFETIME_TCP_TIME_WAIT"),
            udp_single=layout.constant("LIFETIME_UDP_SINGLE"),
            udp_stream=layout.constant("LIFETIME_UDP_STREAM"),
            sctp=layout.constant("LIFETIME_SCTP"),
            other=layout.constant("LIFETIME_OTHER"),
        )
        self._lifetimes: Mapping[int, int] = table(lifetimes, bits)
        self._closed = tuple(bits.closed(state) for state in range(STATES))
        self._fd = fd
        self._flow = layout.struct("flow")
        self._key = layout.struct("flow_key")
        self._entries = bpf.Entries(fd, self._key.size, self._flow.size)
        self._reply = layout.constant("FLOW_REPLY")
        self._via_stack = layout.constant("FLOW_VIA_STACK")
        at = {one.name: one for one in self._flow.fields}
        client = at["client"].size
        # client, last_seen, protocol, flags, state: all that most entries are asked for
        self._glance = struct.Struct(
            f"={client}s"
            f"{at['last_seen'].offset - client}xQ"
            f"{at['protocol'].offset - at['last_seen'].offset - 8}xBBB"
            f"{self._flow.size - at['state'].offset - 1}x"
        )
        self._original = _picker(self._flow, "client", "frontend", "client_port", "frontend_port")
        self._replied = _picker(self._flow, "backend", "source", "backend_port", "source_port")

    def sweep(self) -> Iterator[Swept]:
        """Go through the table once, a part a step; every step yields the same running `Swept`.

        The caller may do other work between steps.
        """
        swept = Swept()
        size, lifetimes, closed = self._key.size, self._lifetimes, self._closed
        live, hidden = swept.live, self._reply | self._via_stack
        for keys, values, count in bpf.map_batches(self._fd, size, self._flow.size):
            now = time.monotonic_ns()
            swept.entries += count
            silent = []
            for index, (client, seen, protocol, flags, state) in enumerate(
                self._glance.iter_unpack(values)
            ):
                if now - seen > lifetimes[protocol << 8 | state]:
                    silent.append(index * size)
                elif not (flags & hidden or closed[state]):
                    live[client] += 1
            for done, at in enumerate(silent, 1):
                swept.deleted += self._forget(keys[at : at + size])
                if done % _STEP == 0:
                    yield swept
            yield swept
        if not swept.entries:
            yield swept

    def _forget(self, key: bytes) -> int:
        """Delete the flow that has this key if all of it is dead by now; how many entries went."""
        held = self._entries.lookup(key)
        if held is None or not self._is_dead(held):
            return 0
        reply = self._glance.unpack(held)[3] & self._reply
        other = self._pack_key(held, self._original if reply else self._replied)
        half = self._entries.lookup(other)
        if half is None or self._original(half) != self._original(held):
            return int(self._entries.delete(key))  # another flow has the tuple by now, or none
        if not self._is_dead(half):
            return 0
        return self._entries.delete(other) + self._entries.delete(key)

    def _is_dead(self, value: bytes) -> bool:
        seen: int
        _, seen, protocol, _, state = self._glance.unpack(value)
        return time.monotonic_ns() - seen > self._lifetimes[protocol << 8 | state]

    def _pack_key(self, value: bytes, pick: _Picker) -> bytes:
        protocol = self._glance.unpack(value)[2]
        return b"".join((*pick(value), bytes((protocol, 0, 0, 0))))


class _Picker:
    """Members of a struct as bytes, in the order given."""

    def __init__(self, places: tuple[slice, ...]) -> None:
        self._places = places

    def __call__(self, value: bytes) -> tuple[bytes, ...]:
        return tuple(value[place] for place in self._places)


def _picker(layout: Struct, *names: str) -> _Picker:
    at = {one.name: one for one in layout.fields}
    return _Picker(tuple(slice(at[n].offset, at[n].offset + at[n].size) for n in names))
