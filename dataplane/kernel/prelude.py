# SPDX-License-Identifier: Apache-2.0
"""Gives a packet what a test run's context cannot: a tunnel key, a VLAN tag, tc_index.

A few instructions, written by hand so that no compiler is needed, that set it and
tail-call the program under test, all in one run. Must not judge what comes of it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from dataplane.kernel import bpf
from dataplane.model.net import IPAddress

_PROG_ARRAY = 3
_LICENSE = "Dual BSD/GPL"

# enum bpf_func_id
_TAIL_CALL, _VLAN_PUSH, _SET_TUNNEL_KEY, _CHANGE_TAIL = 12, 18, 21, 38
_TUNINFO_IPV6 = 1
_TC_INDEX = 44  # in struct __sk_buff
_ETH_P_8021Q = 0x8100

# struct bpf_tunnel_key, with the source that a received packet shows as its remote
_TUNNEL_KEY = struct.Struct("=I16sBBHI16s")

# What a run gives if the prelude itself failed; no tc verdict has these numbers.
FAILED_SETUP, FAILED_CALL = 0x7A01, 0x7A02


@dataclass(frozen=True, slots=True)
class Setup:
    """What the packet is to have when the program sees it; None for nothing.

    tunnel: (sender's address, VNI). vlan: tag. tc_index: mark. cut: length to keep.
    """

    tunnel: tuple[IPAddress, int] | None = None
    vlan: int | None = None
    tc_index: int | None = None
    cut: int | None = None


def load(target: int, setup: Setup) -> int:
    """The fd of a program that sets up and goes on in `target` (an fd)."""
    # The array keeps itself alive by the program, and is emptied with its last fd: never closed.
    array = bpf.map_create("prelude", _PROG_ARRAY, 4, 4, 1)
    bpf.map_update(array, bytes(4), struct.pack("=I", target))
    try:
        return bpf.prog_load("prelude", bpf.PROG_SCHED_CLS, _code(array, setup), _LICENSE)
    except OSError:
        os.close(array)
        raise


def _insn(code: int, dst: int = 0, src: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, offset, number)


def _set(register: int, number: int) -> bytes:
    return _insn(0xB7, register, number=number)  # mov


def _copy(to: int, register: int) -> bytes:
    return _insn(0xBF, to, register)


def _call(helper: int) -> bytes:
    return _copy(1, 6) + _insn(0x85, number=helper)


def _checked(helper: int) -> bytes:
    """A call that ends the run with FAILED_SETUP unless it gives 0."""
    stop = _set(0, FAILED_SETUP) + _insn(0x95)
    return _call(helper) + _insn(0x15, 0, offset=2) + stop  # if r0 == 0 go past stop


def _code(array: int, setup: Setup) -> bytes:
    code = _copy(6, 1)
    if setup.tunnel:
        sender, vni = setup.tunnel
        key = _TUNNEL_KEY.pack(vni, bytes(16), 0, 64, 0, 0, _host_words(sender))
        for at in range(0, len(key), 4):
            (word,) = struct.unpack_from("=i", key, at)
            code += _insn(0x62, 10, offset=at - 48, number=word)  # *(u32 *)(fp + offset) = word
        code += _copy(2, 10) + _insn(0x07, 2, number=-48) + _set(3, len(key))
        code += _set(4, _TUNINFO_IPV6 if sender.version == 6 else 0) + _checked(_SET_TUNNEL_KEY)
    if setup.vlan is not None:
        code += _set(2, int.from_bytes(struct.pack(">H", _ETH_P_8021Q), "little"))
        code += _set(3, setup.vlan) + _checked(_VLAN_PUSH)
    if setup.tc_index is not None:
        code += _set(1, setup.tc_index) + _insn(0x63, 6, 1, _TC_INDEX)
    if setup.cut is not None:
        code += _set(2, setup.cut) + _set(3, 0) + _checked(_CHANGE_TAIL)
    code += _insn(0x18, 2, 1, number=array) + _insn(0)  # r2 = the array
    code += _set(3, 0) + _call(_TAIL_CALL)
    return code + _set(0, FAILED_CALL) + _insn(0x95)


def _host_words(address: IPAddress) -> bytes:
    """An IPv4 address is in host order there, an IPv6 one in network order."""
    if address.version == 4:
        return struct.pack("=I", int(address)).ljust(16, b"\0")
    return address.packed
