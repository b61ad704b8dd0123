# SPDX-License-Identifier: Apache-2.0
"""A process of the node, for a while: makes the calls that it is told, and says how they ended.

Run by path in the copy's network namespace (python -I -S caller.py CGROUP), it enters the
cgroup and reads a JSON line a call: {"family", "protocol", "source", "address", "port"}. It
answers {"cookie", "errno"}, keeps the socket open until the next line, and ends with its
input. If no such call can be made it answers {"refused", "errno"}, and keeps nothing. Must
not import anything of ours: it starts in a few milliseconds.
"""

import json
import socket
import sys
from pathlib import Path

_SO_COOKIE = 57
_FREEBIND = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_KIND = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Refused(Exception):
    """This machine makes no such socket: by which call, and its error number."""


def make(asked):  # type: ignore[no-untyped-def]
    """The socket that is to call. Raises Refused."""
    family = asked["family"]
    step = "socket"
    one = None
    try:
        one = socket.socket(_FAMILY[family], _KIND[asked["protocol"]] | socket.SOCK_NONBLOCK)
        # The sender's address is nowhere in this namespace, and need not be.
        step = "setsockopt"
        one.setsockopt(*_FREEBIND[family], 1)
        step = "bind"
        one.bind((asked["source"], 0))
    except OSError as error:
        if one is not None:
            one.close()
        raise Refused(step, error.errno) from None
    return one


def call(one, asked):  # type: ignore[no-untyped-def]
    """The error number of connect(2) or sendto(2)."""
    to = asked["address"], asked["port"]
    try:
        if asked["protocol"] == "tcp":
            one.connect(to)
        else:
            one.sendto(b"podlane", to)
    except OSError as error:
        return error.errno
    return 0


def enter(folder):  # type: ignore[no-untyped-def]
    """Into the cgroup; what refused, if anything did."""
    try:
        Path(folder, "cgroup.procs").write_text("0")
    except OSError as error:
        return Refused("cgroup.procs", error.errno)
    return None


def main() -> None:
    outside = enter(sys.argv[1])  # type: ignore[no-untyped-call]
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if outside:
                raise outside
            one = make(asked)  # type: ignore[no-untyped-call]
        except Refused as refused:
            print(json.dumps({"refused": refused.args[0], "errno": refused.args[1]}), flush=True)
            continue
        number = call(one, asked)  # type: ignore[no-untyped-call]
        cookie = int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)
        print(json.dumps({"cookie": cookie, "errno": number}), flush=True)
        sys.stdin.readline()
        one.close()


if __name__ == "__main__":
    main()
