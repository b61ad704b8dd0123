# SPDX-License-Identifier: Apache-2.0
"""Forgetting flows that have been silent for too long, and counting each pod's live ones.

The programs only ever add flows; this deletes. A flow is two entries: it is dead when
both are, it is deleted as a whole, and its time is read again right before, because a
packet may have revived it since (pitfall: garbage collection races the packet). Works on
raw bytes, a batch at a time, so that half a million entries cost a second and no more
memory than one batch. Must not decide lifetimes (core.expiry does).
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dataplane.abi.layout import Struct, abi
from dataplane.core.expiry import Lifetimes, StateBits, table
from dataplane.kernel import bpf
from dataplane.model.net import Family


@dataclass(slots=True)
class Swept:
    """What one sweep of one family saw: entries, flows deleted, live flows by client address."""

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
        self._fd = fd
        self._flow = layout.struct("flow")
        self._key = layout.struct("flow_key")
        self._reply = layout.constant("FLOW_REPLY")
        self._via_stack = layout.constant("FLOW_VIA_STACK")
        self._lifetimes: Mapping[int, int] = table(
            Lifetimes(
                tcp_syn=layout.constant("LIFETIME_TCP_SYN"),
                tcp_established=layout.constant("LIFETIME_TCP_ESTABLISHED"),
                tcp_closing=layout.constant("LIFETIME_TCP_CLOSING"),
                tcp_time_wait=layout.constant("LIFETIME_TCP_TIME_WAIT"),
                udp_single=layout.constant("LIFETIME_UDP_SINGLE"),
                udp_stream=layout.constant("LIFETIME_UDP_STREAM"),
                other=layout.constant("LIFETIME_OTHER"),
            ),
            StateBits(
                seen_reply=layout.constant("FLOW_SEEN_REPLY"),
                fin_client=layout.constant("FLOW_FIN_CLIENT"),
                fin_backend=layout.constant("FLOW_FIN_BACKEND"),
                reset=layout.constant("FLOW_RESET"),
                backend_first=layout.constant("FLOW_BACKEND_FIRST"),
            ),
        )
        at = {one.name: one for one in self._flow.fields}
        self._client = at["client"].size
        # client, last_seen, protocol, flags, state: all that most entries are asked for
        self._glance = struct.Struct(
            f"={self._client}s"
            f"{at['last_seen'].offset - self._client}xQ"
            f"{at['protocol'].offset - at['last_seen'].offset - 8}xBBB"
            f"{self._flow.size - at['state'].offset - 1}x"
        )
        self._original = _picker(self._flow, "client", "frontend", "client_port", "frontend_port")
        self._replied = _picker(self._flow, "backend", "source", "backend_port", "source_port")

    def sweep(self) -> Iterator[Swept]:
        """Go through the table once, a batch a step; every step yields the same running `Swept`.

        The caller may do other work between steps.
        """
        swept = Swept()
        key_size, size = self._key.size, self._flow.size
        lifetimes, reply, hidden = self._lifetimes, self._reply, self._reply | self._via_stack
        for keys, values, count in bpf.map_batches(self._fd, key_size, size):
            now = time.monotonic_ns()
            swept.entries += count
            silent = []
            live = swept.live
            for index, (client, seen, protocol, flags, state) in enumerate(
                self._glance.iter_unpack(values)
            ):
                if now - seen > lifetimes[protocol << 8 | state & 31]:
                    silent.append(index)
                elif not flags & hidden:
                    live[client] += 1
            gone: set[bytes] = set()
            for index in silent:
                key = keys[index * key_size : (index + 1) * key_size]
                if key not in gone:
                    value = values[index * size : (index + 1) * size]
                    gone.update(self._dead_halves(key, value, now, reply))
            if gone:
                self._delete(gone)
                swept.deleted += len(gone)
            yield swept
        if not swept.entries:
            yield swept

    def _dead_halves(self, key: bytes, value: bytes, now: int, reply: int) -> tuple[bytes, ...]:
        """Both keys of a flow, or the one that is left, if the whole flow is dead now."""
        flags = self._glance.unpack(value)[3]
        other = self._pack_key(value, self._original if flags & reply else self._replied)
        halves = []
        for half in (key, other):
            held = bpf.map_lookup(self._fd, half, self._flow.size)
            if held is None:
                continue
            if half is other and self._original(held) != self._original(value):
                continue  # another flow has this tuple by now
            _, seen, protocol, _, state = self._glance.unpack(held)
            if now - seen <= self._lifetimes[protocol << 8 | state & 31]:
                return ()
            halves.append(half)
        return tuple(halves)

    def _pack_key(self, value: bytes, pick: _Picker) -> bytes:
        protocol = self._glance.unpack(value)[2]
        return b"".join((*pick(value), bytes((protocol, 0, 0, 0))))

    def _delete(self, keys: set[bytes]) -> None:
        for key in keys:
            bpf.map_delete(self._fd, key)


class _Picker:
    """Members of a struct as bytes, in the order given."""

    def __init__(self, places: tuple[slice, ...]) -> None:
        self._places = places

    def __call__(self, value: bytes) -> tuple[bytes, ...]:
        return tuple(value[place] for place in self._places)


def _picker(layout: Struct, *names: str) -> _Picker:
    at = {one.name: one for one in layout.fields}
    return _Picker(tuple(slice(at[n].offset, at[n].offset + at[n].size) for n in names))
