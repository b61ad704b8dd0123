# SPDX-License-Identifier: Apache-2.0
"""A process of the node, for a while: makes the calls that it is told, and says how they ended.

Run by path in the copy's network namespace (python -I -S caller.py CGROUP), it enters the
cgroup and reads a JSON line a call: {"family", "protocol", "source", "address", "port"}. It
answers {"cookie", "errno"}, keeps the socket open until the next line, and ends with its
input. Must not import anything of ours: it starts in a few milliseconds.
"""

import json
import socket
import sys
from pathlib import Path

_SO_COOKIE = 57
_FREEBIND = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_KIND = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def call(asked):  # type: ignore[no-untyped-def]
    """The open socket, and the error number of connect(2) or sendto(2)."""
    family, to = asked["family"], (asked["address"], asked["port"])
    one = socket.socket(_FAMILY[family], _KIND[asked["protocol"]] | socket.SOCK_NONBLOCK)
    # The sender's address is nowhere in this namespace, and need not be.
    one.setsockopt(*_FREEBIND[family], 1)
    one.bind((asked["source"], 0))
    try:
        if asked["protocol"] == "tcp":
            one.connect(to)
        else:
            one.sendto(b"podlane", to)
    except OSError as error:
        return one, error.errno
    return one, 0


def main() -> None:
    Path(sys.argv[1], "cgroup.procs").write_text("0")
    for line in sys.stdin:
        one, number = call(json.loads(line))  # type: ignore[no-untyped-call]
        cookie = int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)
        print(json.dumps({"cookie": cookie, "errno": number}), flush=True)
        sys.stdin.readline()
        one.close()


if __name__ == "__main__":
    main()
