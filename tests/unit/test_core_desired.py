# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from dataplane.core.desired import Desired, Limits, Settings
from dataplane.core.draft import NO_SERVICE
from dataplane.core.plan import (
    BACKENDS,
    FRONTENDS,
    SERVICES,
    SOURCE_RANGES,
    Delete,
    Grace,
    Plan,
    Upsert,
)
from dataplane.core.pools import REST_SECONDS
from dataplane.model.constants import BackendFlag, FrontendKind
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Node,
    Object,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from dataplane.model.rows import (
    BackendRow,
    BackendSet,
    FrontendKey,
    FrontendRow,
    NameKey,
    NameRow,
    ServiceRow,
    SlotRow,
)
from tests.unit.fakes import FakeMaps
from tests.unit.service_spec import meaning_of

SETTINGS = Settings(
    node="one",
    families=(Family.V4, Family.V6),
    addresses=(ip_address("192.0.2.1"), ip_address("2001:db8::1")),
    service_cidrs=(ip_network("10.96.0.0/16"), ip_network("fd00:96::/112")),
)
LIMITS = Limits(frontends=100, services=50, slots=200, backends=100)
TCP, V4 = Protocol.TCP, Family.V4


def service(name: str, address: str = "10.96.0.1", **fields: object) -> Service:
    base = Service(
        "shop", name, ServiceType.CLUSTER_IP, (ip_address(address),),
        (ServicePort("http", TCP, 80, 30080),),
    )  # fmt: skip
    return replace(base, **fields)  # type: ignore[arg-type]


def pods(name: str, *endpoints: SliceEndpoint | str, slice_name: str = "") -> EndpointSlice:
    found = tuple(SliceEndpoint(ip_address(e)) if isinstance(e, str) else e for e in endpoints)
    return EndpointSlice(
        "shop", slice_name or f"{name}-1", name, V4, (SlicePort("http", TCP, 8080),), found
    )


class Node1:
    """One node's Desired with maps that execute its plans."""

    def __init__(self, limits: Limits = LIMITS, settings: Settings = SETTINGS) -> None:
        self.desired, self.maps, self.now = Desired(settings, limits, {}), FakeMaps(limits), 0.0

    def put(self, *objects: Object, synced: bool = True) -> Plan:
        return self.do(Batch(objects, (), synced))

    def delete(self, *objects: Object) -> Plan:
        return self.do(Batch((), tuple(o.key for o in objects)))

    def do(self, batch: Batch = Batch(), wait: float = 1.0) -> Plan:  # noqa: B008
        self.now += wait
        self.desired.apply(batch)
        plan = self.desired.plan(self.now)
        self.maps.execute(plan, self.now)
        return plan

    def frontends(self, kind: FrontendKind) -> set[str]:
        return {
            f"{k.address}:{k.port}"
            for family in Family
            for k, row in self.maps.frontends(family).items()
            if row.kind == kind
        }

    def chosen(self, name: str) -> set[str]:
        """Addresses that new flows of shop/NAME:http may choose."""
        return {str(a) for a, _ in meaning_of(self.maps).services[f"shop/{name}:http/TCP/4"][0]}

    def state(self, address: str) -> BackendFlag | None:
        """What the one backend with this address may be sent; None if there never was one."""
        rows = [b for _, b in self.maps.all_backends() if str(b.address) == address]
        return BackendFlag(max(rows, key=lambda b: b.generation).flags) if rows else None

    def problems(self) -> list[str]:
        return [str(problem) for problem in self.desired.problems()]


def tables(plan: Plan) -> list[str]:
    return [
        "grace" if isinstance(s, Grace) else f"{'-' if isinstance(s, Delete) else ''}{s.table.pin}"
        for s in plan.steps
    ]


def test_new_service_is_written_from_the_inside_out() -> None:
    plan = Node1().put(service("web"), pods("web", "10.244.0.5"))
    assert tables(plan) == [
        "grace", "-service_counters", "names", "backends_4", "slots", "services", "frontends_4",
    ]  # fmt: skip


def test_removed_service_goes_from_the_outside_in() -> None:
    node = Node1()
    node.put(service("web"), pods("web", "10.244.0.5"))
    plan = node.delete(service("web"))
    assert tables(plan) == ["-frontends_4", "services", "backends_4", "-names"]
    assert node.maps.services()[1] == NO_SERVICE


def test_removed_backend_is_gone_after_the_set_without_it_and_changes_generation() -> None:
    node = Node1()
    node.put(service("web"), pods("web", "10.244.0.5", "10.244.0.6"))
    before = {r.address: r.generation for _, r in node.maps.all_backends()}
    plan = node.put(pods("web", "10.244.0.6"))
    assert tables(plan) == ["slots", "services", "backends_4"]
    assert node.chosen("web") == {"10.244.0.6"}
    assert node.state("10.244.0.5") == BackendFlag(0)
    after = {r.address: r.generation for _, r in node.maps.all_backends()}
    assert [str(a) for a in after if after[a] != before[a]] == ["10.244.0.5"]


def test_unready_or_draining_backend_is_retained_with_its_generation() -> None:
    node = Node1()
    five = SliceEndpoint(ip_address("10.244.0.5"))
    node.put(service("web"), pods("web", five, "10.244.0.6"))
    generations = {r.generation for _, r in node.maps.all_backends()}
    node.put(pods("web", replace(five, ready=False, terminating=True), "10.244.0.6"))
    assert node.state("10.244.0.5") == BackendFlag.LISTED | BackendFlag.SERVING
    node.put(pods("web", replace(five, ready=False, serving=False), "10.244.0.6"))
    assert node.state("10.244.0.5") == BackendFlag.LISTED
    assert node.chosen("web") == {"10.244.0.6"}
    assert {r.generation for _, r in node.maps.all_backends()} == generations


def test_backend_that_comes_back_is_a_new_one() -> None:
    node = Node1()
    node.put(service("web"), pods("web", "10.244.0.5"))
    node.put(pods("web"))
    node.put(pods("web", "10.244.0.5"))
    assert sorted(r.flags > 0 for r in node.maps.backends(V4).values()) == [False, True]
    assert len({r.generation for r in node.maps.backends(V4).values()}) == 2


def test_change_that_means_nothing_to_us_writes_nothing() -> None:
    node = Node1()
    node.put(service("web"), pods("web", "10.244.0.5"))
    assert not node.put(service("web", health_check_node_port=31000))
    assert not node.put(pods("web", SliceEndpoint(ip_address("10.244.0.5"), target="shop/web-0")))
    assert not node.put(Node("two"))


def test_service_without_endpoints_keeps_its_frontends_and_an_empty_set() -> None:
    node = Node1()
    node.put(service("web"))
    assert node.frontends(FrontendKind.CLUSTER_IP) == {"10.96.0.1:80"}
    assert node.frontends(FrontendKind.ADDRESS) == {"10.96.0.1:0"}
    assert node.chosen("web") == set()


def test_draining_endpoints_serve_when_none_is_ready() -> None:
    node = Node1()
    draining = SliceEndpoint(ip_address("10.244.0.5"), ready=False, terminating=True)
    unready = SliceEndpoint(ip_address("10.244.0.6"), ready=False)
    node.put(service("web"), pods("web", draining, unready))
    assert node.chosen("web") == {"10.244.0.5"}


def test_same_endpoint_in_two_slices_is_one_backend() -> None:
    node = Node1()
    node.put(
        service("web"),
        pods("web", "10.244.0.5"),
        pods("web", "10.244.0.5", "10.244.0.6", slice_name="web-2"),
    )
    assert node.chosen("web") == {"10.244.0.5", "10.244.0.6"}
    node.delete(pods("web", slice_name="web-2"))
    assert node.chosen("web") == {"10.244.0.5"}


def test_slice_that_changes_its_service_leaves_the_old_one() -> None:
    node = Node1()
    node.put(service("web"), service("api", "10.96.0.2"), pods("web", "10.244.0.5"))
    node.put(replace(pods("web", "10.244.0.5"), service="api"))
    assert (node.chosen("web"), node.chosen("api")) == (set(), {"10.244.0.5"})


def test_node_port_is_served_on_the_primary_address_of_each_family() -> None:
    node = Node1(settings=replace(SETTINGS, addresses=tuple(
        map(ip_address, ("192.0.2.1", "192.0.2.7", "2001:db8::1"))
    )))  # fmt: skip
    both = (ip_address("10.96.0.1"), ip_address("fd00:96::1"))
    node.put(service("web", type=ServiceType.NODE_PORT, cluster_ips=both))
    assert node.frontends(FrontendKind.NODE_PORT) == {"192.0.2.1:30080", "2001:db8::1:30080"}


def test_two_services_with_one_cluster_ip_the_older_wins_and_the_other_takes_over() -> None:
    node = Node1()
    older = service("web", created="2026-01-01T00:00:00Z")
    rival = service("api", created="2026-01-02T00:00:00Z")
    node.put(rival)
    assert node.problems() == []
    plan = node.put(older)
    assert not any(isinstance(step, Delete) for step in plan.steps[1:]), "a gap in between"
    assert node.problems() == [
        "Service shop/api: spec.clusterIP: 10.96.0.1 is taken by Service shop/web"
    ]
    key = FrontendKey(ip_address("10.96.0.1"), 80, 6)
    names = node.maps.names()
    assert names[node.maps.frontends(V4)[key].service_id] == "shop/web:http/TCP/4"
    plan = node.delete(older)
    assert tables(plan)[0] == "frontends_4"
    assert names[node.maps.frontends(V4)[key].service_id] == "shop/api:http/TCP/4"
    assert node.problems() == []


def test_cluster_ip_outside_the_range_is_named_and_the_rest_served() -> None:
    node = Node1()
    node.put(service("web", "10.99.0.1", external_ips=(ip_address("198.51.100.1"),)))
    assert node.problems() == [
        "Service shop/web: spec.clusterIP: 10.99.0.1 is outside the range 10.96.0.0/16"
    ]
    assert not node.frontends(FrontendKind.CLUSTER_IP)
    assert node.frontends(FrontendKind.EXTERNAL_IP) == {"198.51.100.1:80"}


def test_external_ip_does_not_take_a_cluster_ip_away() -> None:
    node = Node1()
    thief = service("a", "10.96.0.2", external_ips=(ip_address("10.96.0.1"),), created="2020")
    node.put(thief, service("web", created="2026"))
    assert node.frontends(FrontendKind.CLUSTER_IP) == {"10.96.0.1:80", "10.96.0.2:80"}
    assert node.problems() == [
        "Service shop/a: spec.externalIPs: 10.96.0.1:80/TCP is taken by Service shop/web"
    ]


def test_ports_of_one_service_are_ranked_as_services_are() -> None:
    node = Node1()
    ports = (ServicePort("a", TCP, 30080), ServicePort("b", TCP, 80, 30080))
    here = SETTINGS.addresses[:1]
    node.put(service("web", type=ServiceType.LOAD_BALANCER, ports=ports, load_balancer_ips=here))
    row = node.maps.frontends(V4)[FrontendKey(here[0], 30080, 6)]
    assert node.maps.names()[row.service_id] == "shop/web:b/TCP/4"
    assert node.problems() == [
        "Service shop/web: status.loadBalancer.ingress: "
        "192.0.2.1:30080/TCP is taken by Service shop/web"
    ]


def test_service_without_an_address_yet_is_named_and_has_no_frontend() -> None:
    node = Node1()
    node.put(service("web", type=ServiceType.NODE_PORT, cluster_ips=(), families=(V4,)))
    assert node.problems() == ["Service shop/web: spec.clusterIP: no address is assigned"]
    assert not node.maps.names()


def guarded(*ranges: str) -> Service:
    return service(
        "web", type=ServiceType.LOAD_BALANCER, load_balancer_ips=(ip_address("198.51.100.1"),),
        source_ranges=tuple(map(ip_network, ranges)),
    )  # fmt: skip


def admitted(node: Node1) -> set[str] | None:
    """Who may ask web's load-balancer address; None: everybody."""
    ranges = meaning_of(node.maps).ranges.get("shop/web:http/TCP/4")
    return None if ranges is None else set(map(str, ranges))


@pytest.mark.parametrize(
    ("ranges", "who"),
    [
        pytest.param([], None, id="none"),
        pytest.param(["10.0.0.0/8", "10.1.0.0/16"], {"10.0.0.0/8", "10.1.0.0/16"}, id="two"),
        pytest.param(["fd00::/8"], None, id="of the other family only"),
        pytest.param(["10.0.0.0/8", "0.0.0.0/0"], None, id="everybody among them"),
        pytest.param(
            ["192.0.2.0/31"], {"192.0.2.0/31", "198.51.100.1/32"}, id="this node among them"
        ),
    ],
)
def test_source_ranges_of_a_family(ranges: list[str], who: set[str] | None) -> None:
    node = Node1()
    node.put(guarded(*ranges))
    assert admitted(node) == who
    assert node.frontends(FrontendKind.LOAD_BALANCER) == {"198.51.100.1:80"}
    assert not node.problems()


def test_changed_ranges_are_written_beside_the_old_ones_and_named_by_one_write() -> None:
    node = Node1()
    node.put(guarded("10.0.0.0/8"))
    plan = node.put(guarded("172.16.0.0/12", "10.0.0.0/8"))
    assert tables(plan) == ["source_ranges_4", "services", "grace", "-source_ranges_4"]
    assert admitted(node) == {"172.16.0.0/12", "10.0.0.0/8"}
    node.put(guarded())
    assert admitted(node) is None
    assert not node.maps.table(SOURCE_RANGES[V4])


def test_ranges_without_room_admit_nobody_else_and_are_taken_in_later() -> None:
    node = Node1(replace(LIMITS, source_ranges=3))
    ports = (ServicePort("http", TCP, 80),)
    api = guarded("10.9.0.0/16", "10.8.0.0/16")
    other = replace(api, name="api", cluster_ips=(ip_address("10.96.0.2"),), ports=ports)
    other = replace(other, load_balancer_ips=())
    node.put(other)
    node.put(guarded("10.0.0.0/8", "172.16.0.0/12"))
    assert admitted(node) == {"10.0.0.0/8"}
    reason = "no room in the map source_ranges_4 for 1 of 2 ranges"
    assert node.problems() == [f"Service shop/web: spec.loadBalancerSourceRanges: {reason}"]
    assert node.desired.wake() is None
    node.delete(other)
    assert node.desired.wake() is not None
    node.do()
    assert admitted(node) == {"10.0.0.0/8", "172.16.0.0/12"}
    assert (node.problems(), node.desired.wake()) == ([], None)


def test_one_port_number_of_three_protocols_is_three_frontends() -> None:
    node = Node1()
    node.put(service("web", ports=tuple(ServicePort(p.name.lower(), p, 53) for p in Protocol)))
    assert len(node.maps.names()) == 3
    keys = {key.protocol for key in node.maps.frontends(V4) if key.port == 53}
    assert keys == {6, 17, 132}


def test_nothing_is_written_before_every_source_has_synced() -> None:
    node = Node1()
    assert not node.put(service("web"), synced=False)
    assert node.do(Batch(synced=True))


def test_restarted_agent_deletes_nothing_before_the_sync_and_what_went_meanwhile_after() -> None:
    node = Node1()
    node.put(service("web"), service("api", "10.96.0.2"), pods("web", "10.244.0.5"))
    node.desired = Desired(SETTINGS, LIMITS, node.maps.state())
    assert not node.put(service("web"), synced=False)
    assert not node.put(pods("web", "10.244.0.5"), synced=False)
    plan = node.do(Batch(synced=True))
    assert "services" not in tables(plan), "api had an empty record already"
    assert list(node.maps.names().values()) == ["shop/web:http/TCP/4"]


def test_service_that_finds_no_room_is_named_and_served_later() -> None:
    node = Node1(replace(LIMITS, services=2))
    web, api = service("web"), service("api", "10.96.0.2")
    node.put(web, pods("web", "10.244.0.5"))
    node.put(api)
    assert node.problems() == ["Service shop/api: spec.ports[http]: no room in the map services"]
    assert node.frontends(FrontendKind.CLUSTER_IP) == {"10.96.0.1:80"}
    node.delete(web)
    wake = node.desired.wake()
    assert wake == pytest.approx(node.now + REST_SECONDS)
    plan = node.do(wait=REST_SECONDS)
    assert isinstance(plan.steps[0], Grace), "the id was in use before"
    assert node.frontends(FrontendKind.CLUSTER_IP) == {"10.96.0.2:80"}
    assert (node.problems(), node.desired.wake()) == ([], None)


def test_frontend_that_finds_no_room_is_named_and_served_later() -> None:
    node = Node1(replace(LIMITS, frontends=3))
    node.put(service("web", external_ips=(ip_address("198.51.100.1"),)))
    node.put(service("api", "10.96.0.2"))
    assert {p.object for p in node.desired.problems()} == {"Service shop/api"}
    node.delete(service("web"))
    assert node.desired.wake() is not None
    node.do()
    assert node.frontends(FrontendKind.CLUSTER_IP) == {"10.96.0.2:80"}
    assert not node.problems()


def test_set_without_room_for_newcomers_keeps_those_it_has() -> None:
    node = Node1(replace(LIMITS, slots=3))
    node.put(service("web"), pods("web", "10.244.0.5", "10.244.0.6"))
    node.put(pods("web", "10.244.0.5", "10.244.0.6", "10.244.0.7"))
    assert node.chosen("web") == {"10.244.0.5", "10.244.0.6"}
    assert node.problems() == [
        "Service shop/web: spec.ports[http]: no room in the map slots for 3 endpoints"
    ]


def test_set_without_room_never_keeps_one_that_is_gone() -> None:
    node = Node1(replace(LIMITS, slots=3))
    node.put(service("web"), pods("web", "10.244.0.5", "10.244.0.6"))
    node.put(pods("web", "10.244.0.6", "10.244.0.7"))
    assert node.state("10.244.0.5") == BackendFlag(0)
    assert len(node.chosen("web")) == 1
    node.do()
    assert node.chosen("web") == {"10.244.0.6", "10.244.0.7"}
    assert not node.problems()


def test_ready_endpoints_come_before_others_where_backends_find_no_room() -> None:
    node = Node1(replace(LIMITS, backends=2))
    unready = SliceEndpoint(ip_address("10.244.0.5"), ready=False, serving=False)
    node.put(service("web"), pods("web", unready, "10.244.0.6"))
    assert node.chosen("web") == {"10.244.0.6"}
    assert node.problems() == [
        "Service shop/web: spec.ports[http]: no room in the map backends_4 for 1 of 2 endpoints"
    ]


def test_service_ids_used_again_lose_the_counts_of_their_owner_before() -> None:
    node = Node1(replace(LIMITS, services=2, backends=2))
    node.put(service("web"), pods("web", "10.244.0.5"))
    node.delete(service("web"))
    plan = node.put(service("api", "10.96.0.2"), pods("api", "10.244.0.5"))
    assert tables(plan)[:3] == ["grace", "-service_counters", "-backend_counters_4"]


def test_entries_without_sense_are_cleared_and_written_anew() -> None:
    """Slots of another epoch, an unknown name, a record and a backend that nobody has."""
    node = Node1()
    node.put(service("web"), pods("web", "10.244.0.5"))
    maps = FakeMaps(LIMITS, node.maps.state(), watch=False)
    base = BackendSet.parse(node.maps.services()[1].cluster).base
    maps.table(next(t for t in maps.tables if t.name == "slots"))[base] = SlotRow(1, 77)
    maps.table(SERVICES)[9] = ServiceRow(int(BackendSet(base, 1, 3)), 0)
    maps.table(BACKENDS[V4])[8] = BackendRow(99, ip_address("10.244.0.9"), 9, 80, 6, 7)
    names = next(t for t in maps.tables if t.name == "names")
    maps.table(names)[NameKey(1, 7)] = NameRow("nonsense")
    maps.table(names)[NameKey(2, 7)] = NameRow("shop/web-0")
    maps.table(FRONTENDS[V4])[FrontendKey(ip_address("10.96.7.7"), 1, 6)] = FrontendRow(1, 2)
    again = Desired(SETTINGS, LIMITS, maps.state())
    again.apply(Batch((service("web"), pods("web", "10.244.0.5")), (), True))
    maps.execute(again.plan(9.0), 9.0)
    assert meaning_of(maps) == meaning_of(node.maps)
    assert maps.services()[9] == NO_SERVICE
    assert maps.backends(V4)[8].generation > 99
    assert maps.table(names)[NameKey(2, 7)] == NameRow("shop/web-0")
    maps.look()


def test_thousand_services_change_one_writes_one() -> None:
    node = Node1(Limits(frontends=4000, services=2000, slots=9000, backends=9000))
    node.maps.watch = False
    for index in range(1000):
        address = f"10.96.{index // 250}.{index % 250}"
        node.desired.apply(Batch((
            service(f"s{index}", address), pods(f"s{index}", "10.244.0.5", "10.244.0.6"),
        )))  # fmt: skip
    node.do(Batch(synced=True))
    plan = node.put(pods("s500", "10.244.0.5"))
    assert [(s.table.name, len(s.rows)) for s in plan.steps if isinstance(s, Upsert)] == [
        ("slots", 1), ("services", 1), ("backends", 1),
    ]  # fmt: skip


def test_node_ports_are_on_loopback_if_that_is_asked_for_and_a_range_covers_it() -> None:
    loopbacks = {ip_address("127.0.0.1"), ip_address("::1")}
    ranges = tuple(map(ip_network, ("127.0.0.0/8", "::/0", "2001:db8::/32")))
    for asked, given, served in (
        (False, ranges, set()),
        (True, (), set()),
        (True, ranges[1:], set()),
        (True, ranges, {ip_address("127.0.0.1")}),
    ):
        settings = replace(SETTINGS, node_port_ranges=given, localhost_node_ports=asked)
        found = {a for family in Family for a in settings.node_port_addresses(family)}
        assert found & loopbacks == served
