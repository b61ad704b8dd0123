# SPDX-License-Identifier: Apache-2.0
"""Servers in pods that tell each client who they are and as whom they see it, and who asks them.

Threads and sockets of this process: a test under emulation has no time for one process a question.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from dataplane.model.net import Family
from tests.network import life
from tests.network.cluster import AgentNode

PICKS = 16  # of two backends both are picked, but once in 2^15 times


@contextmanager
def serving(
    node: AgentNode, *pods: str, families: Sequence[Family] = tuple(Family), protocol: int = 0
) -> Iterator[None]:
    """Each of these pods answers "NAME CLIENT" on port TARGET. protocol: TCP (0) or SCTP."""
    ending = threading.Event()

    def serve(pod: str, server: socket.socket) -> None:
        while not ending.is_set():
            with suppress(TimeoutError):
                accepted, client = server.accept()
                with accepted, suppress(OSError):  # a client that left is no reason to end
                    accepted.settimeout(life.SLOW)
                    if accepted.recv(99):
                        accepted.sendall(f"{pod} {client[0]}".encode())

    with ExitStack() as undo:
        threads = []
        for pod in pods:
            for family in families:
                server = life.make(node.pods[pod], family, socket.SOCK_STREAM, protocol)
                undo.enter_context(server)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family is Family.V6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.bind(("", life.TARGET))
                server.listen(64)
                server.settimeout(0.2)  # a listening SCTP socket can't be shut down
                threads.append(threading.Thread(target=serve, args=(pod, server)))
        for thread in threads:  # once all servers are there, for each waits for the end
            thread.start()
            undo.callback(thread.join)
        undo.callback(ending.set)
        yield


def ask_once(ns: str, family: Family, to: str, port: int, protocol: int = 0) -> str:
    """What is answered; nothing if it is refused or nobody accepts within a second."""
    with life.make(ns, family, socket.SOCK_STREAM, protocol) as client, suppress(OSError):
        client.settimeout(1)
        client.connect((to, port))
        client.settimeout(life.SLOW)
        client.sendall(b"who")
        return client.recv(99).decode()
    return ""


def answers(ns: str, family: Family, to: str, port: int = life.PORT) -> set[str]:
    """The pods that answer a few connections; none if one of them fails."""
    names = set[str]()
    for _ in range(PICKS):
        answer = ask_once(ns, family, to, port)
        if not answer:
            return set()
        names.add(answer.split()[0])
    return names
