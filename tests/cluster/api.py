# SPDX-License-Identifier: Apache-2.0
"""A real etcd and API server in a namespace of their own.

    control (etcd, API server) ── bridge, 172.29.0.0/24 ── the nodes that others make

No controllers: what is there was put there. Must not know who watches.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import ssl
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataplane.kernel import netns
from dataplane.model.errors import BadEnvironment
from tests.cluster import build, places
from tests.cluster.control import Control
from tests.cluster.hosts import Hosts
from tests.cluster.places import Places
from tests.cluster.services import NAMESPACE

_WRITERS = 4
_PATIENCE_SECONDS = 60


class Connection:
    """One connection to the API server, as the cluster's admin."""

    def __init__(self, at: Places) -> None:
        pki = at.folder / "pki"
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        address = (at.control.ipv4, places.PORT)
        place = Path("/run/netns", at.netns(at.control))
        plain = netns.run_in(place, socket.socket)
        plain.settimeout(_PATIENCE_SECONDS)
        plain.connect(address)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http = http.client.HTTPConnection(*address)
        self._http.sock = tls.wrap_socket(plain, server_hostname=at.control.ipv4)

    def send(self, method: str, path: str, body: dict[str, Any]) -> None:
        """A write. Raises BadEnvironment in the server's words."""
        self._http.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        words = answer.read()
        if answer.status >= 300:
            raise BadEnvironment(f"{method} {path}", words.decode(errors="replace")[:500])

    def follow(self, path: str) -> socket.socket:
        """Ask for a watch; the socket on which it comes, which does not block."""
        assert self._http.sock is not None
        self._http.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: api\r\n\r\n".encode())
        self._http.sock.setblocking(False)
        return self._http.sock

    def close(self) -> None:
        self._http.close()


class Api:
    """The running server. Its hosts' processes end with it."""

    def __init__(self, at: Places, hosts: Hosts, control: Control) -> None:
        self.places, self.hosts, self.control = at, hosts, control

    @property
    def prefix(self) -> str:
        """What the names of this cluster's namespaces begin with, less its last `-`."""
        return self.places.netns(self.places.control).rpartition("-")[0]

    def kubeconfig(self, user: str) -> Path:
        return self.places.folder / "pki" / f"{user}.kubeconfig"

    def create(self, pairs: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Objects, each with the path of its kind; several at a time, in no order."""
        todo = iter(list(pairs))

        def write() -> None:
            connection = Connection(self.places)
            while (pair := next(todo, None)) is not None:
                connection.send("POST", *pair)
            connection.close()

        with ThreadPoolExecutor(_WRITERS) as pool:
            for one in [pool.submit(write) for _ in range(_WRITERS)]:
                one.result()


@contextmanager
def api() -> Iterator[Api]:
    """An API server with our namespace in it, taken away again."""
    at = Places(f"bench-{secrets.token_hex(3)}", 0)
    hosts = Hosts(at)
    try:
        programs = build.programs()
        hosts.make()
        control = Control(at, hosts, programs)
        control.start(controllers=False)
        found = Api(at, hosts, control)
        found.create([("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})])
        yield found
    finally:
        hosts.destroy()
