# SPDX-License-Identifier: Apache-2.0
"""Small worlds for property tests: few names and addresses, so that objects collide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from dataplane.core.frontends import Settings
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Kind,
    Object,
    ObjectKey,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)

SETTINGS = Settings(
    node="one",
    families=(Family.V4, Family.V6),
    addresses=tuple(map(ip_address, ("192.0.2.1", "2001:db8::1", "192.0.2.9"))),
    zone="here",
    node_port_ranges=(),
    service_cidrs=(ip_network("10.96.0.0/24"), ip_network("fd00:96::/112")),
)
OTHER_SETTINGS = Settings(
    node="two",
    families=(Family.V4,),
    addresses=tuple(map(ip_address, ("192.0.2.9", "192.0.2.1", "127.0.0.1"))),
    node_port_ranges=(ip_network("127.0.0.0/8"), ip_network("192.0.2.0/24")),
    localhost_node_ports=True,
)

CLUSTER_IPS = [*map(ip_address, ("10.96.0.1", "10.96.0.2", "10.97.0.1"))]
CLUSTER_IPS6 = [*map(ip_address, ("fd00:96::1", "fd00:96::2"))]
OUTSIDE_IPS = [*map(ip_address, ("198.51.100.1", "192.0.2.1", "10.96.0.1", "2001:db8:9::1"))]
PODS = {
    Family.V4: [*map(ip_address, ("10.244.0.1", "10.244.0.2", "10.244.1.1", "10.244.1.2"))],
    Family.V6: [*map(ip_address, ("fd00:244::1", "fd00:244::2", "fd00:244:1::1"))],
}
SOURCE_RANGES = [
    ip_network(text)
    for text in ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "0.0.0.0/0", "fd00::/8")
]
NAMESPACES, NAMES = ["a", "b"], ["s", "t"]
PROTOCOLS = [Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.SCTP]

some_cluster_ips = st.tuples(
    st.lists(st.sampled_from(CLUSTER_IPS), max_size=1),
    st.lists(st.sampled_from(CLUSTER_IPS6), max_size=1),
).map(lambda pair: (*pair[0], *pair[1]))
ports = st.lists(
    st.builds(
        ServicePort,
        name=st.sampled_from(["", "web", "80"]),
        protocol=st.sampled_from(PROTOCOLS),
        port=st.sampled_from([80, 81, 30001]),
        node_port=st.sampled_from([0, 30001, 30002]),
    ),
    min_size=1,
    max_size=2,
    unique_by=(lambda p: p.name or str(p.port), lambda p: (p.port, p.protocol)),
).map(tuple)
services = st.builds(
    Service,
    namespace=st.sampled_from(NAMESPACES),
    name=st.sampled_from(NAMES),
    # A host port is no object of a user's: see test_core_host_ports.
    type=st.sampled_from([t for t in ServiceType if t is not ServiceType.HOST_PORT]),
    cluster_ips=some_cluster_ips,
    ports=ports,
    external_ips=st.lists(st.sampled_from(OUTSIDE_IPS), max_size=1).map(tuple),
    load_balancer_ips=st.lists(st.sampled_from(OUTSIDE_IPS), max_size=2).map(tuple),
    source_ranges=st.lists(st.sampled_from(SOURCE_RANGES), max_size=3, unique=True).map(tuple),
    internal_local=st.booleans(),
    external_local=st.booleans(),
    affinity_seconds=st.sampled_from([0, 0, 60]),
    created=st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]),
    skipped=st.sampled_from(["", "", "", "service.kubernetes.io/headless"]),
)


def endpoints(family: Family) -> st.SearchStrategy[SliceEndpoint]:
    return st.builds(
        SliceEndpoint,
        address=st.sampled_from(PODS[family]),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node_name=st.sampled_from(["one", "two", ""]),
        zone_hints=st.sampled_from([("here",), ("here", "there"), ("there",), ()]),
        node_hints=st.sampled_from([("one",), ("two",), ()]),
    )


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    family = draw(st.sampled_from(Family))
    return EndpointSlice(
        namespace=draw(st.sampled_from(NAMESPACES)),
        name=draw(st.sampled_from(["x", "y", "z"])),
        service=draw(st.sampled_from(NAMES)),
        family=family,
        ports=draw(
            st.lists(
                st.builds(
                    SlicePort,
                    name=st.sampled_from(["", "web", "80"]),
                    protocol=st.sampled_from(PROTOCOLS),
                    port=st.sampled_from([8080, 8081]),
                ),
                max_size=3,
                unique_by=lambda p: (p.name, p.protocol),
            ).map(tuple)
        ),
        endpoints=tuple(draw(st.lists(endpoints(family), max_size=4))),
    )


objects: st.SearchStrategy[Object] = st.one_of(services, slices())
keys = st.one_of(
    st.builds(
        ObjectKey,
        st.just(Kind.SERVICE.value), st.sampled_from(NAMESPACES), st.sampled_from(NAMES),
    ),
    st.builds(
        ObjectKey,
        st.just(Kind.SLICE.value), st.sampled_from(NAMESPACES), st.sampled_from(["x", "y", "z"]),
    ),
)  # fmt: skip
batches = st.builds(
    Batch,
    upserts=st.lists(objects, max_size=4, unique_by=lambda o: o.key).map(tuple),
    deletes=st.lists(keys, max_size=2).map(tuple),
    synced=st.just(True),
)


@dataclass(slots=True)
class Cluster:
    """The objects that there are, as a source's batches leave them."""

    objects: dict[ObjectKey, Object] = field(default_factory=dict)

    def apply(self, batch: Batch) -> None:
        for key in batch.deletes:
            self.objects.pop(key, None)
        for obj in batch.upserts:
            self.objects[obj.key] = obj

    def all(self, order: Iterable[ObjectKey] | None = None) -> tuple[Object, ...]:
        return tuple(self.objects[key] for key in (order or self.objects))
