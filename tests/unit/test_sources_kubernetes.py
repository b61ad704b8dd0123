# SPDX-License-Identifier: Apache-2.0
"""An API server is followed through everything it may do, and nothing is missed or told twice."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dataplane.model.errors import BadEnvironment, BadInput
from dataplane.model.objects import Batch, Node, Object, ObjectKey, ServiceCIDR
from dataplane.sources.kubernetes import Access, watch
from dataplane.sources.kubernetes.follower import Patience
from tests import api_server
from tests.api_server import ApiServer, endpoints, node, pod, service, service_cidr
from tests.cluster.pki import Pki

QUICK = Patience(first=0.05, longest=0.2, unknown=0.2, page=3)
KINDS = tuple(api_server.PATHS)


class Mirror:
    """All that a source told, as whoever listens has it."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, Object] = {}
        self.batches: list[Batch] = []
        self.said: list[str] = []
        self._news = asyncio.Event()

    async def listen(self, access: Access) -> None:
        async for batch in watch(access, "node1", service_cidrs=True, patience=QUICK):
            self.batches.append(batch)
            for key in batch.deletes:
                self.objects.pop(key, None)
            self.objects.update({one.key: one for one in batch.upserts})
            self.said += [str(p) for p in batch.problems if str(p) not in self.said]
            self._news.set()

    @property
    def problems(self) -> list[str]:
        return [str(problem) for problem in self.batches[-1].problems] if self.batches else []

    @property
    def synced(self) -> bool:
        return bool(self.batches) and self.batches[-1].synced

    async def started(self, api: ApiServer) -> None:
        """Synced, and every kind watched."""
        await self.until(lambda: self.synced)
        await until(lambda: len(api.watching) == len(KINDS))

    async def until(self, condition: Callable[[], object], seconds: float = 10) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"has {self.names()}, said {self.said}") from None

    def names(self) -> set[str]:
        return {key.name for key in self.objects}


Story = Callable[[Mirror], Awaitable[None]]


@pytest.fixture
def api() -> Iterator[ApiServer]:
    made = ApiServer()
    made.put(
        service("web"), endpoints("web", "10.244.1.5"), node("node1", "10.244.1.0/24"),
        node("node2"), pod("mine", "node1"), pod("other", "node2"),
        service_cidr("kubernetes", "10.96.0.0/16", "fd00:96::/112"),
    )  # fmt: skip
    yield made
    made.stop()


def follow(api: ApiServer, story: Story, access: Access | None = None) -> None:
    async def run() -> None:
        mirror = Mirror()
        listening = asyncio.create_task(mirror.listen(access or Access.by_address(api.url)))
        try:
            await asyncio.wait_for(story(mirror), 30)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    asyncio.run(run())


def asked(api: ApiServer, kind: str, *, watch: bool) -> list[api_server.Request]:
    return [r for r in api.requests if r.kind == kind and r.watch is watch]


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for something that no batch tells of."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def test_all_kinds_are_told_in_one_batch_and_only_this_nodes_pods(api: ApiServer) -> None:
    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        assert len(mirror.batches) == 1
        assert mirror.names() == {"web", "web-x", "node1", "node2", "mine", "kubernetes"}
        assert mirror.problems == []
        ranges = mirror.objects[ObjectKey("ServiceCIDR", "", "kubernetes")]
        assert isinstance(ranges, ServiceCIDR)
        assert [str(one) for one in ranges.cidrs] == ["10.96.0.0/16", "fd00:96::/112"]

    follow(api, story)


def test_changes_follow_and_a_status_that_nobody_uses_is_no_change(api: ApiServer) -> None:
    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        beat = node("node2")
        beat["status"]["conditions"] = [{"type": "Ready", "lastHeartbeatTime": "now"}]
        api.put(beat)
        api.put(node("node2", "10.244.2.0/24"))
        api.delete(("Service", "test", "web"))
        await mirror.until(lambda: "web" not in mirror.names())
        await mirror.until(lambda: len(mirror.batches) > 1 and _cidrs(mirror, "node2"))
        assert sum(len(b.upserts) for b in mirror.batches[1:]) == 1

    follow(api, story)


def _cidrs(mirror: Mirror, name: str) -> tuple[object, ...]:
    found = mirror.objects[ObjectKey("Node", "", name)]
    return found.pod_cidrs if isinstance(found, Node) else ()


def test_lists_come_in_pages(api: ApiServer) -> None:
    api.put(*(service(f"s{n}", f"10.96.1.{n}") for n in range(10)))

    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        assert len([n for n in mirror.names() if n.startswith("s")]) == 10
        lists = asked(api, "Service", watch=False)
        assert len(lists) == 4
        assert {request.query["limit"] for request in lists} == {"3"}

    follow(api, story)


def test_pages_that_expire_on_the_way_are_asked_for_as_a_whole(api: ApiServer) -> None:
    api.put(*(service(f"s{n}", f"10.96.1.{n}") for n in range(10)))

    def forget(handler: object) -> bool:
        api.compact()
        return False

    api.fault("Service", "list", lambda handler: False)
    api.fault("Service", "list", forget)

    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        assert len([n for n in mirror.names() if n.startswith("s")]) == 10
        assert "limit" not in asked(api, "Service", watch=False)[-1].query

    follow(api, story)


def test_a_watch_goes_on_from_the_last_event_or_bookmark(api: ApiServer) -> None:
    api.bookmark_seconds = 0.05

    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        listed = asked(api, "Service", watch=True)[0].query["resourceVersion"]
        api.put(node("node3"))  # Services did not change, yet their bookmarks move on
        now = api.now()
        assert int(listed) < now
        while int(asked(api, "Service", watch=True)[-1].query["resourceVersion"]) < now:
            await asyncio.sleep(0.1)
            api.break_watches()
        assert asked(api, "Service", watch=True)[-1].query["allowWatchBookmarks"] == "true"
        api.put(service("late", "10.96.0.11"))
        await mirror.until(lambda: "late" in mirror.names())
        assert len(asked(api, "Service", watch=False)) == 1

    follow(api, story)


@pytest.mark.parametrize("how", ["event", "status"])
def test_a_state_that_expired_is_listed_anew_without_a_gap(api: ApiServer, how: str) -> None:
    api.put(*(service(f"s{n}", f"10.96.1.{n}") for n in range(5)))

    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        before = len(mirror.batches)
        if how == "status":
            api.fault("Service", "watch", api_server.refuse(410, "too old"))
        else:
            for kind in KINDS:  # nobody may catch up before the state is gone
                api.fault(kind, "watch", api_server.refuse(500))
        api.break_watches()
        api.delete(("Service", "test", "s1"), ("Service", "test", "web"))
        api.put(service("s2", "10.96.1.2", port=81), service("new", "10.96.1.99"))
        api.compact()
        await mirror.until(lambda: "new" in mirror.names() and "s1" not in mirror.names())
        await mirror.until(lambda: mirror.problems == [])
        assert "web" not in mirror.names()
        told = [b for b in mirror.batches[before:] if b.upserts or b.deletes]
        assert {o.key.name for b in told for o in b.upserts} == {"s2", "new"}
        assert {k.name for b in told for k in b.deletes} == {"s1", "web"}

    follow(api, story)


def test_a_thousand_changes_are_each_told_once(api: ApiServer) -> None:
    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        before = len(mirror.batches)
        await asyncio.to_thread(
            api.put,
            *(service(f"s{n}", f"10.{n >> 8}.{n & 255}.9") for n in range(1000)),
        )
        await mirror.until(lambda: len(mirror.names()) >= 1000)
        assert sum(len(batch.upserts) for batch in mirror.batches[before:]) == 1000

    follow(api, story)


def test_the_first_change_of_a_quiet_time_goes_at_once(api: ApiServer) -> None:
    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        took = []
        for n in range(20):
            await asyncio.sleep(0.02)
            began = time.monotonic()
            api.put(endpoints("web", f"10.244.1.{n + 10}"))
            seen = len(mirror.batches)
            await mirror.until(lambda seen=seen: len(mirror.batches) > seen)  # type: ignore[misc]
            took.append(time.monotonic() - began)
        assert sorted(took)[10] < 0.02, took

    follow(api, story)


def test_nothing_is_synced_before_every_kind_is_and_the_kind_that_may_not_is_named(
    api: ApiServer,
) -> None:
    api.fault("EndpointSlice", "list", api_server.forbid("list", "EndpointSlice"), times=3)

    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.said)
        assert "list endpointslices" in mirror.said[0]
        assert "podlane may not list endpointslices (403" in mirror.said[0]
        assert "ClusterRole" in mirror.said[0]
        assert not mirror.synced
        await mirror.until(lambda: mirror.synced and mirror.problems == [])

    follow(api, story)


FAULTS = {
    "401": (api_server.refuse(401, "Unauthorized"), "the credentials are refused (401"),
    "403": (api_server.forbid("watch", "Service"), "podlane may not watch services (403"),
    "429": (api_server.refuse(429, Retry_After="1"), "has too much to do (429)"),
    "500": (api_server.refuse(500, "etcd is away"), "the server failed (500: etcd is away)"),
    "503 no JSON": (api_server.refuse(503, "x"), "the server failed (503"),
    "mid-object": (
        api_server.stream(b'{"type": "ADDED", "object": {"metada', end=True),
        "broke off in the middle of an object",
    ),
    "mid-chunk": (api_server.stream(b'{"type"'), "broke off in the middle of an answer"),
    "no JSON": (api_server.stream(b"<html>\n"), "is no JSON; is it an API server?"),
    "no event": (api_server.stream(b"[1, 2]\n"), "is no object"),
    "no type": (api_server.stream(b'{"type": "WHAT", "object": {}}\n'), "its type is 'WHAT'"),
    "no name": (
        api_server.stream(b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "9"}}}\n'),
        "metadata.name: is missing",
    ),
    "no version": (
        api_server.stream(b'{"type": "ADDED", "object": {"metadata": {"name": "x"}}}\n'),
        "it has no resourceVersion",
    ),
    "error event": (
        api_server.stream(
            b'{"type": "ERROR", "object": {"code": 500, "message": "went wrong"}}\n', end=True
        ),
        "the server failed (500: went wrong)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_watch_that_fails_is_named_and_goes_on_where_it_was(api: ApiServer, fault: str) -> None:
    fails, words = FAULTS[fault]

    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        api.fault("Service", "watch", fails)
        api.put(service("before", "10.96.0.12"))
        await mirror.until(lambda: "before" in mirror.names())
        api.break_watches()
        await mirror.until(lambda: any(words in said for said in mirror.said))
        api.put(service("after", "10.96.0.13"))
        await mirror.until(lambda: "after" in mirror.names() and mirror.problems == [])
        assert len(asked(api, "Service", watch=False)) == 1
        assert sum(len(b.upserts) for b in mirror.batches) == 8
        assert not any(b.deletes for b in mirror.batches)

    follow(api, story)


LISTS = {
    "broken off": (api_server.break_list, "broke off in the middle of an answer"),
    "a page for people": (api_server.say(b"<!doctype html>"), "is no JSON; is it an API server?"),
    "no list": (
        api_server.say(b'{"kind": "ServiceList"}'),
        "it has no items or no resourceVersion",
    ),
    "nested": (api_server.say(b"[" * 100_000), "is no JSON"),
}


@pytest.mark.parametrize("fault", LISTS)
def test_a_list_that_fails_is_named_and_asked_for_again(api: ApiServer, fault: str) -> None:
    fails, words = LISTS[fault]
    api.fault("Service", "list", fails)

    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced and mirror.problems == [])
        assert any(words in said for said in mirror.said), mirror.said
        assert "web" in mirror.names()

    follow(api, story)


def test_a_server_that_is_gone_costs_nothing_and_differences_follow_when_it_is_back(
    api: ApiServer,
) -> None:
    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        api.stop()
        await mirror.until(lambda: len(mirror.problems) == 5)
        assert all("can't be reached" in p or "broke off" in p for p in mirror.problems)
        assert mirror.synced
        api.put(service("new", "10.96.0.14"))
        api.compact()
        before = len(mirror.batches)
        api.start()
        await mirror.until(lambda: "new" in mirror.names() and mirror.problems == [])
        after = mirror.batches[before:]
        assert [o.key.name for b in after for o in b.upserts] == ["new"]
        assert not any(b.deletes for b in after)

    follow(api, story)


def test_a_server_that_is_slow_is_waited_for_and_no_fault(api: ApiServer) -> None:
    api.put(*(service(f"s{n}", f"10.96.1.{n}") for n in range(5)))
    for kind in KINDS:
        api.fault(kind, "list", api_server.delay(0.2), times=2)
        api.fault(kind, "watch", api_server.delay(0.2))

    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        api.put(service("late", "10.96.0.11"))
        await mirror.until(lambda: "late" in mirror.names())
        assert mirror.said == []
        assert len(asked(api, "Service", watch=False)) == 2

    follow(api, story)


def test_a_kind_that_fails_holds_up_no_other(api: ApiServer) -> None:
    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        api.fault("Node", "watch", api_server.refuse(500, "etcd is away"), times=1000)
        api.break_watches()
        await mirror.until(lambda: mirror.problems)
        await until(lambda: len(api.watching) == len(KINDS) - 1)
        api.put(service("meanwhile", "10.96.0.11"))
        await mirror.until(lambda: "meanwhile" in mirror.names())
        words = "watch nodes: the server failed (500: etcd is away)"
        # Watches that broke off are problems, too, until they are there again.
        await mirror.until(lambda: [words in one for one in mirror.problems] == [True])

    follow(api, story)


def test_retry_after_is_heeded(api: ApiServer) -> None:
    api.fault("Node", "list", api_server.refuse(429, Retry_After="1"))

    async def story(mirror: Mirror) -> None:
        began = time.monotonic()
        await mirror.until(lambda: mirror.synced)
        assert time.monotonic() - began >= 0.95

    follow(api, story)


def test_an_old_server_without_service_cidrs_is_enough(api: ApiServer) -> None:
    api.missing.add("ServiceCIDR")

    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        assert "web" in mirror.names()
        assert any("give `serviceCIDRs`" in said for said in mirror.said)

    follow(api, story)


def test_an_object_that_can_not_be_used_is_named_and_the_rest_served(api: ApiServer) -> None:
    api.put(service("odd", "10.96.0.300"), endpoints("web", "10.244.1.5", "127.0.0.1"))

    async def story(mirror: Mirror) -> None:
        await mirror.until(lambda: mirror.synced)
        assert {"web", "web-x"} <= mirror.names()
        assert "odd" not in mirror.names()
        assert [p.partition(": ")[0] for p in mirror.problems] == [
            "EndpointSlice test/web-x", "Service test/odd",
        ]  # fmt: skip
        api.put(service("odd", "10.96.0.30"))
        api.delete(("EndpointSlice", "test", "web-x"))
        await mirror.until(lambda: mirror.problems == [] and "odd" in mirror.names())

    follow(api, story)


def account(folder: Path, token: str) -> Path:
    (folder / "token").write_text(token)
    return folder


def test_a_token_that_rotates_is_read_again(api: ApiServer, tmp_path: Path) -> None:
    api.token = "one"
    access = Access.by_address(api.url, account(tmp_path, "one\n"))

    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        api.token = "two"
        api.break_watches()
        await mirror.until(lambda: any("(401" in said for said in mirror.said))
        account(tmp_path, "two")
        await mirror.until(lambda: mirror.problems == [])
        api.put(service("after", "10.96.0.15"))
        await mirror.until(lambda: "after" in mirror.names())

    follow(api, story, access)


def tls(pki: Pki, clients: bool = False) -> ssl.SSLContext:
    """A server's side; with `clients` only those with a certificate of this CA are let in."""
    pki.certificate("server", "server", sans=("127.0.0.1",))
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki.folder / "ca.crt"))
    made.load_cert_chain(pki.folder / "server.crt", pki.folder / "server.key")
    made.verify_mode = ssl.CERT_REQUIRED if clients else ssl.CERT_NONE
    return made


def over_tls(
    before: ssl.SSLContext, after: ssl.SSLContext, access_to: Callable[[str], Access],
    words: str, replace: Callable[[str], object],
) -> None:  # fmt: skip
    """The server comes back with other certificates, which is named; then ours are replaced too."""
    api = ApiServer(tls=before)
    api.put(service("web"), node("node1"))

    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        api.stop()
        api.start(after)
        await mirror.until(lambda: any(words in said for said in mirror.said))
        assert mirror.names() == {"web", "node1"}
        replace(api.url)
        await mirror.until(lambda: mirror.problems == [])
        api.put(service("after", "10.96.0.15"))
        await mirror.until(lambda: "after" in mirror.names())

    try:
        follow(api, story, access_to(api.url))
    finally:
        api.stop()


def test_a_ca_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    old, new = Pki(tmp_path / "old"), Pki(tmp_path / "new")
    account(tmp_path, "token")

    def ca(pki: Pki) -> None:
        shutil.copyfile(pki.folder / "ca.crt", tmp_path / "ca.crt")

    ca(old)
    over_tls(
        tls(old), tls(new), lambda url: Access.by_address(url, tmp_path),
        "the server's certificate is not trusted", lambda _: ca(new),
    )  # fmt: skip


def test_a_client_certificate_that_is_no_longer_good_is_named_and_read_again(
    tmp_path: Path,
) -> None:
    old, new = Pki(tmp_path / "old"), Pki(tmp_path / "new")
    path = tmp_path / "kubeconfig"

    def write(url: str, pki: Pki) -> Path:
        pki.certificate("us", "us")
        path.write_text(pki.kubeconfig("us", url).read_text())
        return path

    def renewed(url: str) -> None:
        # The server's CA is the old one still; ours is signed by the new one.
        write(url, new)
        text = json.loads(path.read_text())
        text["clusters"][0]["cluster"]["certificate-authority-data"] = base64.b64encode(
            (old.folder / "ca.crt").read_bytes()
        ).decode()
        path.write_text(json.dumps(text))

    server = tls(old, clients=True)
    strict = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(new.folder / "ca.crt"))
    strict.load_cert_chain(old.folder / "server.crt", old.folder / "server.key")
    strict.verify_mode = ssl.CERT_REQUIRED
    over_tls(
        server, strict, lambda url: Access.by_kubeconfig(write(url, old)),
        "no TLS with the server", renewed,
    )  # fmt: skip


def kubeconfig(path: Path, server: str, token: str) -> Path:
    text = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": token}}],
    }  # fmt: skip
    path.write_text(json.dumps(text))
    return path


def test_a_kubeconfig_names_the_server_and_is_read_again_when_refused(
    api: ApiServer, tmp_path: Path
) -> None:
    api.token = "one"
    path = kubeconfig(tmp_path / "kubeconfig", api.url, "one")
    access = Access.by_kubeconfig(path)
    assert access.server == api.url

    async def story(mirror: Mirror) -> None:
        await mirror.started(api)
        api.token = "two"
        kubeconfig(path, api.url, "two")
        api.break_watches()
        api.put(service("after", "10.96.0.15"))
        await mirror.until(lambda: "after" in mirror.names() and mirror.problems == [])

    follow(api, story, access)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "kubeconfig:2:1: does not parse as YAML"),
        ("{}", "current-context"),
        ("[]", "kubeconfig"),
        ("a: [b", "kubeconfig:2:1: does not parse as YAML"),
        ("a: !!int ''", "kubeconfig:1:4: does not parse as YAML"),
        ("a: !!bool x", "kubeconfig:1:4: does not parse as YAML: 'x' is no value of !!bool"),
        ("a: 2026-99-99", "kubeconfig .*is not YAML: month must be"),
        ("{}\n---\n{}", "kubeconfig.*is a second document"),
        ("a: \0", "kubeconfig:1:4.* has a character"),
        ("- " * 100_000 + "x", "is nested too deep"),
    ],
)
def test_a_kubeconfig_that_is_none_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=words):
        Access.by_kubeconfig(path)


def test_a_kubeconfig_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    """It may be another program's: a key given twice has its last value."""
    path = kubeconfig(tmp_path / "kubeconfig", "https://192.0.2.1:6443", "one")
    path.write_text(path.read_text().replace('{"server"', '{"server": "https://a", "server"'))
    assert Access.by_kubeconfig(path).server == "https://192.0.2.1:6443"
    path.write_text(path.read_text().replace('"current-context": "c"', '"current-context": "d"'))
    with pytest.raises(BadInput, match=r"kubeconfig: .*Expected object with name d"):
        Access.by_kubeconfig(path)


@pytest.mark.parametrize("server", ["10.0.0.1:6443", "ftp://a", "https://", "", "https://a?b=c"])
def test_an_address_that_is_none_is_refused(server: str) -> None:
    with pytest.raises(BadInput, match="is no address of a server"):
        Access.by_address(server)


def test_the_cluster_ip_that_podlane_serves_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    with pytest.raises(BadInput, match="podlane itself serves"):
        Access.by_address("https://10.96.0.1:443")


def test_https_without_a_service_account_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadEnvironment, match="has no token"):
        Access.by_address("https://192.0.2.1:6443", tmp_path)
