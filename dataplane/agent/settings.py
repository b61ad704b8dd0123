# SPDX-License-Identifier: Apache-2.0
"""The kernel settings that forwarding needs, each with its value before kept in the store.

Only what is not as needed is written. Must not touch settings of devices that are
neither ours nor uplinks.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from dataplane.agent.facts import MASQUERADE_PORTS
from dataplane.cni.store import Store
from dataplane.kernel.netlink import Sysctls

_RESERVED = "net/ipv4/ip_local_reserved_ports"
_PREFIX = "sysctl "


# A device of ours needs no address of its own, and replies may come by another device than
# the route's: the larger of this and "all" counts, and 2 (loose) wins over 1.
_OUR_DEVICE = (
    ("net/ipv4/conf/{device}/rp_filter", "2"),
    ("net/ipv6/conf/{device}/addr_gen_mode", "1"),
    ("net/ipv6/conf/{device}/disable_ipv6", "0"),
    ("net/ipv6/conf/{device}/accept_ra", "0"),
)


def apply_to_ours(sysctls: Sysctls, device: str) -> None:
    """Settings of a device that podlane made, before it is up."""
    for name, value in _OUR_DEVICE:
        path = name.format(device=device)
        if sysctls.read(path) not in (None, value):
            sysctls.write(path, value)


def apply(
    sysctls: Sysctls,
    store: Store,
    uplinks: Iterable[str],
    undo: ExitStack,
) -> list[str]:
    """Set what is needed; the names of the settings that changed."""
    changed = []

    def need(name: str, value: str) -> None:
        there = sysctls.read(name)
        if there is None or there == value:
            return  # this kernel has none of it (no IPv6), or it is so already
        store.remember(_PREFIX + name, there, value)
        sysctls.write(name, value)
        undo.callback(sysctls.write, name, there or "\n")
        changed.append(name)

    for device in uplinks:
        # Forwarding makes the kernel ignore router advertisements unless told 2; a node
        # whose default route comes from them would lose it.
        if sysctls.read(f"net/ipv6/conf/{device}/accept_ra") == "1":
            need(f"net/ipv6/conf/{device}/accept_ra", "2")
        need(f"net/ipv4/conf/{device}/rp_filter", "2")
    need("net/ipv4/ip_forward", "1")
    need("net/ipv6/conf/all/forwarding", "1")
    need(_RESERVED, with_range(sysctls.read(_RESERVED) or "", MASQUERADE_PORTS))
    return changed


def restore(sysctls: Sysctls, store: Store) -> list[str]:
    """Put back what `apply` changed and nobody else has changed since; their names."""
    restored = []
    for what, before, ours in store.remembered():
        name = what.removeprefix(_PREFIX)
        if what.startswith(_PREFIX) and before != ours and sysctls.read(name) == ours:
            sysctls.write(name, before or "\n")
            restored.append(name)
    return restored


def with_range(listed: str, wanted: tuple[int, int]) -> str:
    """A list of port ranges ("1,5-7") joined with one more, as the kernel writes it."""
    ranges = [wanted]
    for part in filter(None, listed.split(",")):
        low, _, high = part.partition("-")
        ranges.append((int(low), int(high or low)))
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in joined)
