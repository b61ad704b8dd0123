# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server that lists and watches as an API server does, and fails as told.

Objects have one resourceVersion counter; lists come in pages of one state (`limit`,
`continue`); watches go on from a version, in chunks, with bookmarks for who wants them; a
state that was compacted away is 410. Faults are queued by path. It allocates nothing and
validates nothing: it stands where a real one's storage and HTTP would.
"""

from __future__ import annotations

import copy
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATHS = {
    "Service": "/api/v1/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
    "Node": "/api/v1/nodes",
    "Pod": "/api/v1/pods",
    "ServiceCIDR": "/apis/networking.k8s.io/v1/servicecidrs",
}
_KINDS = {path: kind for kind, path in PATHS.items()}

Object = dict[str, Any]
# What is done instead of the answer; what it returns false for is answered all the same.
Fault = Callable[["_Handler"], bool]


@dataclass
class _Event:
    version: int
    type: str
    kind: str
    object: Object
    before: Object | None


@dataclass
class Request:
    """What was asked, for tests to look at."""

    kind: str
    watch: bool
    query: Mapping[str, str]
    token: str


@dataclass
class _State:
    version: int = 100
    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    events: list[_Event] = field(default_factory=list)
    compacted: int = 100
    pages: dict[str, tuple[int, list[Object]]] = field(default_factory=dict)


class ApiServer:
    """Serves on loopback, or on another address of the namespace it is made in."""

    def __init__(self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._state = _State()
        self.changed = threading.Condition()
        self.requests: list[Request] = []
        self.faults: dict[tuple[str, str], list[Fault]] = {}
        self.token = ""
        self.missing: set[str] = set()
        self.bookmark_seconds = 60.0
        self.watching: set[_Handler] = set()
        self._address, self._tls = address, tls
        self._port = 0
        self._http: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://{self._address}:{self._port}"

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Serve, on the port as before if it was stopped; with other certificates if they are given."""
        self._tls = tls or self._tls
        handler = type("Handler", (_Handler,), {"api": self})
        http = ThreadingHTTPServer((self._address, self._port), handler, bind_and_activate=False)
        http.daemon_threads = True
        http.allow_reuse_address = True
        if self._tls is not None:
            http.socket = self._tls.wrap_socket(http.socket, server_side=True)
        http.server_bind()
        http.server_activate()
        self._port = http.server_address[1]
        self._http = http
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """No answer any more, and every connection broken."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None
        self.break_watches()

    def break_watches(self) -> None:
        """Break every watch off, as a server that is killed does."""
        with self.changed:
            for one in self.watching:
                one.broken = True
            self.changed.notify_all()

    def fault(self, kind: str, verb: str, fault: Fault, times: int = 1) -> None:
        """Do this the next few times that `verb` (list, watch) of `kind` is asked for."""
        with self.changed:
            self.faults.setdefault((kind, verb), []).extend([fault] * times)

    # -- objects -------------------------------------------------------------------

    def put(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects."""
        with self.changed:
            for one in objects:
                self._put(copy.deepcopy(dict(one)))
            self.changed.notify_all()

    def delete(self, *keys: tuple[str, str, str]) -> None:
        """Delete by kind, namespace and name."""
        with self.changed:
            state = self._state
            for key in keys:
                gone = state.objects.pop(key)
                state.version += 1
                last = {
                    **gone,
                    "metadata": {**gone["metadata"], "resourceVersion": str(state.version)},
                }
                state.events.append(_Event(state.version, "DELETED", key[0], last, gone))
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget all states before the present one: watches from there are 410."""
        with self.changed:
            state = self._state
            state.version += 1
            state.compacted = state.version
            state.events.clear()
            state.pages.clear()
            self.changed.notify_all()

    def _put(self, one: Object) -> None:
        state, meta = self._state, one["metadata"]
        key = (one["kind"], meta.get("namespace", ""), meta["name"])
        state.version += 1
        meta["resourceVersion"] = str(state.version)
        meta.setdefault("uid", f"uid-{state.version}")
        meta.setdefault("managedFields", [{"manager": "test", "fieldsV1": {"f:spec": {}}}])
        before = state.objects.get(key)
        state.objects[key] = one
        type_ = "ADDED" if before is None else "MODIFIED"
        state.events.append(_Event(state.version, type_, key[0], one, before))

    # -- requests ------------------------------------------------------------------

    def page(self, kind: str, query: Mapping[str, str]) -> tuple[int, list[Object], str]:
        """A list's version, its objects, and what asks for the rest; raises KeyError if that expired."""
        with self.changed:
            state = self._state
            if token := query.get("continue"):
                version, rest = state.pages.pop(token)
            else:
                version = state.version
                rest = [
                    one for key, one in sorted(state.objects.items())
                    if key[0] == kind and _selected(one, query)
                ]  # fmt: skip
            limit = int(query.get("limit", 0)) or len(rest)
            more = ""
            if len(rest) > limit:
                more = f"{kind}-{version}-{len(rest)}"
                state.pages[more] = (version, rest[limit:])
            return version, rest[:limit], more

    def events_after(
        self, kind: str, version: int, query: Mapping[str, str]
    ) -> list[_Event] | None:
        """What happened to objects of the query; None if that is forgotten. Needs the lock."""
        state = self._state
        if version < state.compacted:
            return None
        found = []
        for event in state.events:
            if event.version <= version or event.kind != kind:
                continue
            is_in = event.type != "DELETED" and _selected(event.object, query)
            was_in = event.before is not None and _selected(event.before, query)
            if is_in or was_in:
                type_ = event.type if is_in and was_in else "ADDED" if is_in else "DELETED"
                found.append(_Event(event.version, type_, kind, event.object, None))
        return found

    def now(self) -> int:
        return self._state.version


def _selected(one: Object, query: Mapping[str, str]) -> bool:
    if wanted := query.get("fieldSelector"):
        node = wanted.removeprefix("spec.nodeName=")
        if one.get("spec", {}).get("nodeName", "") != node:
            return False
    labels = one["metadata"].get("labels", {})
    for part in filter(None, query.get("labelSelector", "").split(",")):
        name = part.removeprefix("!")
        if (name in labels) == part.startswith("!"):
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer
    broken = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.kind = _KINDS.get(parts.path, "")
        watch = self.query.get("watch") in ("1", "true")
        token = self.headers.get("Authorization", "")
        with api.changed:
            api.requests.append(Request(self.kind, watch, self.query, token))
            queue = api.faults.get((self.kind, "watch" if watch else "list"))
            fault = queue.pop(0) if queue else None
        if api.token and token != f"Bearer {api.token}":
            return self.status(401, "Unauthorized")
        if fault is not None and fault(self):
            return None
        if not self.kind or self.kind in api.missing:
            return self.status(404, "the server could not find the requested resource")
        if watch:
            return self._watch()
        return self._list()

    def status(self, code: int, message: str, **headers: str) -> None:
        """Answer with a Status."""
        self.answer(code, {"kind": "Status", "code": code, "message": message}, **headers)

    def answer(self, code: int, body: object, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def hang_up(self) -> None:
        """End the connection without another word."""
        self.wfile.flush()
        self.connection.close()
        self.close_connection = True

    def chunk(self, text: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.flush()

    def chunks_begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _list(self) -> None:
        try:
            version, items, more = self.api.page(self.kind, self.query)
        except KeyError:
            return self.status(410, "The provided continue parameter is too old")
        meta = {"resourceVersion": str(version), **({"continue": more} if more else {})}
        bare = [{k: v for k, v in one.items() if k not in ("kind", "apiVersion")} for one in items]
        kind = f"{self.kind}List"
        return self.answer(200, {"kind": kind, "metadata": meta, "items": bare})

    def _watch(self) -> None:
        api, query = self.api, self.query
        version = int(query["resourceVersion"])
        until = time.monotonic() + int(query.get("timeoutSeconds", 300))
        bookmark = time.monotonic() + api.bookmark_seconds
        self.chunks_begin()
        with api.changed:
            api.watching.add(self)
        try:
            while True:
                with api.changed:
                    events = api.events_after(self.kind, version, query)
                    if events == [] and not self.broken and time.monotonic() < until:
                        api.changed.wait(max(0.0, min(until, bookmark) - time.monotonic()))
                        events = api.events_after(self.kind, version, query)
                    now = api.now()
                if self.broken:
                    return self.hang_up()
                if events is None:
                    gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
                    self._event("ERROR", gone)
                    return self.chunk_end()
                for event in events:
                    self._event(event.type, event.object)
                    version = event.version
                if time.monotonic() >= bookmark and "allowWatchBookmarks" in query:
                    meta = {"resourceVersion": str(now)}
                    self._event("BOOKMARK", {"kind": self.kind, "metadata": meta})
                    version, bookmark = now, time.monotonic() + api.bookmark_seconds
                if time.monotonic() >= until:
                    return self.chunk_end()
        except OSError:
            self.close_connection = True
        finally:
            with api.changed:
                api.watching.discard(self)

    def chunk_end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, kind: str, one: Object) -> None:
        self.chunk(json.dumps({"type": kind, "object": one}).encode() + b"\n")


# -- faults ------------------------------------------------------------------------


def refuse(code: int, message: str = "", **headers: str) -> Fault:
    """Answer with this status."""

    def fault(handler: _Handler) -> bool:
        handler.status(code, message, **headers)
        return True

    return fault


def forbid(verb: str, kind: str) -> Fault:
    """403, in the words of RBAC."""
    resource = PATHS[kind].rpartition("/")[2]
    words = f'User "system:serviceaccount:podlane:podlane" cannot {verb} resource "{resource}"'
    return refuse(403, f"{resource} is forbidden: {words}")


def say(raw: bytes) -> Fault:
    """Answer 200 with these bytes."""

    def fault(handler: _Handler) -> bool:
        handler.answer(200, raw)
        return True

    return fault


def stream(*texts: bytes, end: bool = False) -> Fault:
    """Answer with these chunks, then break off (or end as HTTP says)."""

    def fault(handler: _Handler) -> bool:
        handler.chunks_begin()
        for text in texts:
            handler.chunk(text)
        if end:
            handler.chunk_end()
        else:
            handler.hang_up()
        return True

    return fault


def break_list(handler: _Handler) -> bool:
    """Break off in the middle of a list."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"kind": "ServiceList", "items": [{"metada')
    handler.hang_up()
    return True


def delay(seconds: float) -> Fault:
    """Be slow, then answer."""

    def fault(handler: _Handler) -> bool:
        time.sleep(seconds)
        return False

    return fault


# -- objects -----------------------------------------------------------------------


def service(name: str, address: str = "10.96.0.10", port: int = 80, **spec: Any) -> Object:
    family = "IPv6" if ":" in address else "IPv4"
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "test", "name": name},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                 "ipFamilies": [family], "selector": {"app": name},
                 "ports": [{"port": port, "targetPort": 8080, "protocol": "TCP"}], **spec},
        "status": {"loadBalancer": {}},
    }  # fmt: skip


def endpoints(name: str, *addresses: str, node: str = "node1", port: int = 8080) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "test", "name": f"{name}-x",
                     "labels": {"kubernetes.io/service-name": name}},
        "endpoints": [{"addresses": [one], "nodeName": node, "conditions": {"ready": True}}
                      for one in addresses],
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
    }  # fmt: skip


def node(name: str, *cidrs: str, addresses: tuple[str, ...] = ("192.0.2.1",)) -> Object:
    spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec,
        "status": {"addresses": [{"type": "InternalIP", "address": one} for one in addresses]},
    }  # fmt: skip


def pod(name: str, on: str, address: str = "") -> Object:
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "test", "name": name},
        "spec": {"nodeName": on, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", **({"podIPs": [{"ip": address}]} if address else {})},
    }  # fmt: skip


def service_cidr(name: str, *cidrs: str) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs)},
    }  # fmt: skip
