# SPDX-License-Identifier: Apache-2.0
"""A load on Services from inside of one pod, as a program: `python life_load.py`, then JSON on stdin.

The first line is {"short": [[ADDRESS, PORT], …], "long": [[ADDRESS, PORT], …], "pause": SECONDS}.
Each short target is asked by new TCP connections and by datagrams from new sockets; each
long one by one connection that is kept. Ends when stdin does. On stdout, at once, a line
for each failure, and at the end one with the totals. Times are CLOCK_MONOTONIC. Knows
nothing of podlane.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections import Counter

TIMEOUT = 3.0
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

totals: Counter[str] = Counter()
by: Counter[str] = Counter()
ending = threading.Event()


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def fail(kind: str, target: tuple[str, int], began: float, port: int, error: object) -> None:
    line = {"kind": kind, "to": target, "began": began, "ended": time.monotonic(), "port": port,
            "error": str(error)}  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def once(kind: str, target: tuple[str, int]) -> None:
    began, port = time.monotonic(), 0
    shape = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(family_of(target[0]), shape) as client:
            client.settimeout(TIMEOUT)
            client.bind(("", 0))
            port = client.getsockname()[1]
            client.connect(target)
            client.sendall(b"who\n")
            answer = client.recv(4096)
        by[json.loads(answer)["pod"]] += 1
    except (OSError, ValueError) as error:
        fail(kind, target, began, port, error)
        totals["failed"] += 1
    totals[kind] += 1


def ask_again_and_again(targets: list[tuple[str, int]], pause: float) -> None:
    while not ending.is_set():
        for target in targets:
            for kind in ("tcp", "udp"):
                once(kind, target)
        time.sleep(pause)


def keep(target: tuple[str, int]) -> None:
    """One connection, asked every few milliseconds; it is never made again."""
    began = time.monotonic()
    with socket.socket(family_of(target[0])) as client:
        client.settimeout(TIMEOUT)
        try:
            client.connect(target)
            port = client.getsockname()[1]
            while not ending.is_set():
                client.sendall(REQUEST)
                if not client.recv(4096):
                    raise OSError("the connection was ended")
                totals["long"] += 1
                time.sleep(0.01)
        except OSError as error:
            fail("long", target, began, port, error)
            totals["broken"] += 1


def main() -> None:
    wish = json.loads(sys.stdin.readline())
    short = [(address, port) for address, port in wish["short"]]
    threads = [threading.Thread(target=ask_again_and_again, args=(short, wish["pause"]))]
    threads += [threading.Thread(target=keep, args=((a, p),)) for a, p in wish["long"]]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ending.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({"totals": totals, "by": by, "pid": os.getpid()}) + "\n")


if __name__ == "__main__":
    main()
