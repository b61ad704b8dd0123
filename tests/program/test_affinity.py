# SPDX-License-Identifier: Apache-2.0
"""Session affinity: a client's new flows to a Service port go where its last one went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dataplane.model.constants import BackendFlag, FrontendKind, ServiceFlag
from dataplane.model.flow import AffinityKey
from tests.program import world
from tests.program.node import Node
from tests.program.result import into, refused

SECONDS = 60
NODE_PORT = 30100
# Four endpoints on this node, four on the other.
BACKENDS = tuple(
    world.Backend(30 + i, "neighbour" if i < 4 else "remote", 9200 + i) for i in range(8)
)
STICKY = world.Service(
    20,
    world.TCP,
    (
        ("pair", 80, FrontendKind.CLUSTER_IP),
        ("here", NODE_PORT, FrontendKind.NODE_PORT),
        ("balancer", 8100, FrontendKind.LOAD_BALANCER),
        ("external", 8100, FrontendKind.EXTERNAL_IP),
    ),
    BACKENDS,
    ServiceFlag.AFFINITY,
    SECONDS,
)
STICKY_UDP = replace(
    STICKY, id=21, protocol=world.UDP, frontends=(("pair", 53, FrontendKind.CLUSTER_IP),)
)
ADDRESSES = ("pair:80", f"here:{NODE_PORT}", "balancer:8100", "external:8100")
OUTSIDE = f"tcp outside:{{}} > here:{NODE_PORT}"
INSIDE = "tcp client:{} > pair:80"


def opened(here: Node, line: str, flags: str = "") -> int:
    """The backend that the packet goes to."""
    hook = here.from_uplink if " outside" in line else lambda sent: here.from_pod("client", sent)
    result = hook(f"{line} {flags}".strip())
    assert result.verdict.reason == "NONE", result.verdict
    return result.outcome.verdict.backend_id


def named(number: int) -> world.Backend:
    return next(b for b in BACKENDS if b.id == number)


def forget_flows(here: Node) -> None:
    for key in here.flows():
        here.delete("flows", key)


def two_ports(
    here: Node, line: str, first: str = "", service: world.Service = STICKY
) -> tuple[str, str]:
    """Two new flows that get different backends where nothing is remembered.

    The first one's runs on the node named `first`, the other's anywhere else.
    """
    here.put_service(replace(service, flags=service.flags & ~ServiceFlag.AFFINITY))
    chosen: dict[int, str] = {}
    for port in range(40000, 40012):
        chosen.setdefault(opened(here, line.format(port)), line.format(port))
    forget_flows(here)
    here.put_service(service)
    ids = sorted(chosen, key=lambda number: named(number).pod != (first or named(number).pod))
    one = ids[0]
    two = next(i for i in ids if i != one and (not first or named(i).pod != first))
    return chosen[one], chosen[two]


class TestMemory:
    def test_a_client_has_one_backend_over_all_addresses_of_the_port(self, here: Node) -> None:
        here.put_service(STICKY)
        found = {
            opened(here, f"tcp client:{port} > {ADDRESSES[port % len(ADDRESSES)]}")
            for port in range(40000, 40020)
        }
        assert len(found) == 1
        assert list(here.items("affinity")) == [AffinityKey(here.addresses["client"], STICKY.id)]

    def test_each_client_and_each_port_has_a_memory_of_its_own(self, here: Node) -> None:
        here.put_service(STICKY)
        # The same ids in another Service's set would not do: a backend is of one Service port.
        others = tuple(replace(b, id=b.id + 10) for b in BACKENDS)
        here.put_service(replace(STICKY_UDP, backends=others))
        lines = (INSIDE, OUTSIDE, OUTSIDE.replace("outside", "outside2"), "udp client:{} > pair:53")
        for line in lines:
            assert len({opened(here, line.format(port)) for port in range(40000, 40010)}) == 1
        assert len(here.items("affinity")) == len(lines)

    def test_a_service_without_affinity_remembers_nobody(self, here: Node) -> None:
        opened(here, "tcp client:40000 > near:80")
        assert not here.items("affinity")

    def test_a_full_memory_forgets_and_serves_on(self, here: Node) -> None:
        """The kernel evicts; the client is remembered anew by its next flow."""
        first, second = two_ports(here, INSIDE)
        opened(here, first)
        here.delete("affinity", AffinityKey(here.addresses["client"], STICKY.id))
        chosen = opened(here, second)
        forget_flows(here)
        assert opened(here, first) == chosen


# ---- what a memory outlives: nothing else than the very backend in the set that is chosen from ----
Change = Callable[[Node, world.Backend], None]


def pause(seconds: float) -> Change:
    return lambda here, _: here.later(seconds)


def flag(flags: int, **fields: int) -> Change:
    return lambda here, backend: here.put_backend(STICKY, backend, flags, **fields)


def used(*pauses: float, flags: str = "") -> Change:
    """Time passes, and after each part of it the client opens a flow, or goes on with its first."""

    def change(here: Node, _: world.Backend) -> None:
        for number, seconds in enumerate(pauses):
            here.later(seconds)
            opened(here, INSIDE.format(50000 if flags else 50001 + number), flags)

    return change


def remade(here: Node, _: world.Backend) -> None:
    """Deleted and made again with the same address: an agent gives the ids out again."""
    for backend in BACKENDS:
        here.put_backend(STICKY, backend, world.GONE, generation=9000)
    for backend in BACKENDS:
        here.put_backend(STICKY, backend, world.USABLE, generation=9100)


def without_another(here: Node, backend: world.Backend) -> None:
    other = next(b for b in BACKENDS if b is not backend)
    here.put_set(STICKY, [b for b in BACKENDS if b is not other])
    here.put_backend(STICKY, other, world.GONE, generation=9000)


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        pytest.param(pause(SECONDS - 1), True, id="silent for less than the time"),
        pytest.param(pause(SECONDS + 1), False, id="silent for longer than the time"),
        pytest.param(used(40, 40), True, id="a new flow counts as use"),
        pytest.param(used(0, 40, 40, flags="A"), False, id="a packet of an old flow does not"),
        pytest.param(pause(-1), True, id="another CPU saw the client later than now"),
        pytest.param(flag(world.USABLE, generation=9000), False, id="id of another now"),
        pytest.param(flag(world.GONE, generation=9000), False, id="gone"),
        pytest.param(flag(world.RETAINED), False, id="unready"),
        pytest.param(flag(world.DRAINING), False, id="draining, others are ready"),
        pytest.param(remade, False, id="Service deleted and made again"),
        pytest.param(without_another, True, id="another backend is gone"),
    ],
)  # fmt: skip
def test_a_clients_next_flow(here: Node, change: Change, stays: bool) -> None:
    first, second = two_ports(here, INSIDE)
    before = opened(here, first)
    if change.__qualname__.startswith("used"):
        opened(here, INSIDE.format(50000))
    change(here, named(before))
    after = opened(here, second)
    assert (after == before) is stays
    # What it came to is remembered in turn.
    assert {opened(here, INSIDE.format(port)) for port in range(51000, 51005)} == {after}


def test_a_memory_never_leads_to_another_services_backend(here: Node) -> None:
    """As a reader finds it whose client was evicted meanwhile, and the entry given to another's."""
    here.put_service(STICKY)
    opened(here, INSIDE.format(40000))
    others = tuple(replace(b, id=b.id + 10) for b in BACKENDS)
    here.put_service(replace(STICKY_UDP, backends=others))
    other = opened(here, "udp client:40000 > pair:53")
    theirs = here.get("affinity", AffinityKey(here.addresses["client"], STICKY_UDP.id))
    here.put("affinity", AffinityKey(here.addresses["client"], STICKY.id), theirs)
    assert other in {b.id for b in others}
    assert opened(here, INSIDE.format(40001)) in {b.id for b in BACKENDS}


def test_a_set_that_is_empty_has_nobody_to_go_back_to(here: Node) -> None:
    here.put_service(STICKY)
    opened(here, INSIDE.format(40000))
    here.put_set(STICKY, [])
    here.from_pod("client", INSIDE.format(40001)).expect(refused("NO_BACKEND"))


# ---- traffic policies ----
@pytest.mark.parametrize(
    ("flags", "line", "stays"),
    [
        pytest.param(ServiceFlag(0), OUTSIDE, True, id="Cluster, from outside"),
        pytest.param(ServiceFlag.EXTERNAL_LOCAL, OUTSIDE, False, id="external Local, from outside"),
        pytest.param(
            ServiceFlag.EXTERNAL_LOCAL, f"tcp client:{{}} > here:{NODE_PORT}", True,
            id="external Local does not bind pods",
        ),
        pytest.param(ServiceFlag.INTERNAL_LOCAL, INSIDE, False, id="internal Local"),
        pytest.param(
            ServiceFlag.INTERNAL_LOCAL, f"tcp client:{{}} > here:{NODE_PORT}", True,
            id="internal Local does not bind other addresses",
        ),
    ],
)  # fmt: skip
def test_a_memory_of_another_node_yields_to_the_local_policy(
    here: Node, flags: ServiceFlag, line: str, stays: bool
) -> None:
    """The client was sent to the other node before the policy was set."""
    first, second = two_ports(here, line, "remote")
    before = opened(here, first)
    assert named(before).pod == "remote"
    here.flag(STICKY, STICKY.flags | flags)
    after = opened(here, second)
    assert (after == before) is stays
    assert stays or named(after).pod == "neighbour"


def test_a_local_memory_serves_the_cluster_policy_too(here: Node) -> None:
    service = replace(STICKY, flags=STICKY.flags | ServiceFlag.EXTERNAL_LOCAL)
    here.put_service(service)
    local = opened(here, OUTSIDE.format(40000))
    here.flag(service, STICKY.flags)
    assert {opened(here, OUTSIDE.format(port)) for port in range(40001, 40010)} == {local}


def test_an_endpoint_that_hints_keep_from_the_cluster_set_is_for_local_traffic_only(
    here: Node,
) -> None:
    first, second = two_ports(here, INSIDE, "neighbour")
    before = named(opened(here, first))
    flags = here.get("backends", before.id).flags & ~BackendFlag.IN_CLUSTER
    here.change("backends", before.id, flags=flags)
    assert opened(here, second) != before.id


# ---- mid-flow ----
class TestEviction:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(pause(SECONDS + 1), id="silent for longer than the time"),
            pytest.param(flag(world.DRAINING), id="draining"),
        ],
    )
    def test_a_flow_that_lost_a_half_finds_its_backend_by_the_memory(
        self, here: Node, change: Change
    ) -> None:
        first, second = two_ports(here, INSIDE, "neighbour")
        before = opened(here, first)
        assert opened(here, second) == before
        client = second.split()[1]
        here.from_pod("neighbour", f"tcp neighbour:{named(before).port} > {client} SA")
        change(here, named(before))
        here.forget(second)
        here.from_pod("client", f"{second} A ack=7").expect(into("neighbour"))

    def test_a_segment_without_a_flow_makes_no_memory(self, here: Node) -> None:
        here.put_service(STICKY)
        here.from_pod("client", f"{INSIDE.format(40000)} A").expect(refused("NO_FLOW"))
        assert not here.items("affinity")
