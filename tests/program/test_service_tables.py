# SPDX-License-Identifier: Apache-2.0
"""Plans for Services in the kernel's own maps, and what an agent that restarts reads there."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from dataplane.core.desired import Desired, Limits, Settings
from dataplane.core.plan import (
    BACKENDS,
    FRONTENDS,
    NAMES,
    SERVICES,
    SLOTS,
    SOURCE_RANGES,
    Plan,
    State,
)
from dataplane.kernel import loader
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.compiler import compile_bundle
from dataplane.kernel.maps import Maps, Writer
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Batch,
    EndpointSlice,
    Service,
    ServicePort,
    ServiceType,
    SliceEndpoint,
    SlicePort,
)
from tests.program.sandbox import Sandbox

LIMITS = Limits(frontends=64, services=16, slots=64, backends=32)
SIZES = {"frontends": 64, "services": 16, "slots": 64, "backends": 32}
SETTINGS = Settings("one", tuple(Family), (ip_address("192.0.2.1"), ip_address("2001:db8::1")))
TABLES = (
    SERVICES, SLOTS, NAMES,
    *FRONTENDS.values(), *BACKENDS.values(), *SOURCE_RANGES.values(),
)  # fmt: skip
PODS = {Family.V4: "10.244.0.", Family.V6: "fd00:244::"}


def service(name: str, last: int) -> Service:
    return Service(
        "shop",
        name,
        ServiceType.NODE_PORT,
        (ip_address(f"10.96.0.{last}"), ip_address(f"fd00:96::{last}")),
        (ServicePort("web", Protocol.TCP, 80, 30000 + last), ServicePort("dns", Protocol.UDP, 53)),
        source_ranges=(ip_network("192.0.2.0/24"), ip_network("fd00::/8"), ip_network("fd00::/9")),
        internal_local=True,
        affinity_seconds=60,
    )


def slices(name: str, *pods: int) -> tuple[EndpointSlice, ...]:
    ports = (SlicePort("web", Protocol.TCP, 8080), SlicePort("dns", Protocol.UDP, 53))
    return tuple(
        EndpointSlice(
            "shop",
            f"{name}-{int(family)}",
            name,
            family,
            ports,
            tuple(SliceEndpoint(ip_address(f"{PODS[family]}{n}"), node_name="one") for n in pods),
        )
        for family in Family
    )


def test_restarted_agent_reads_back_what_was_written_and_writes_nothing(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    sandbox = Sandbox(tmp_path, {})
    try:
        sandbox.do(lambda: _restart(bundle, sandbox.bpffs / "podlane"))
    finally:
        sandbox.close()


def _restart(bundle: Bundle, pins: Path) -> None:
    with loader.load(bundle, pins, SIZES) as datapath:
        writer = Writer(datapath)
        desired = Desired(SETTINGS, LIMITS, _read(Maps(datapath)))

        def write(batch: Batch, now: float) -> None:
            desired.apply(batch)
            assert writer.execute(desired.plan(now)) == ()

        write(Batch((service("web", 1), service("api", 2), *slices("web", 1, 2, 3)), (), True), 0.0)
        write(Batch((*slices("web", 2, 3), *slices("api", 4))), 1.0)
        write(Batch((), (service("api", 2).key,)), 2.0)
    again = Desired(SETTINGS, LIMITS, state := _read(Maps(pins)))
    again.apply(Batch((*slices("web", 2, 3), *slices("api", 4), service("web", 1)), (), True))
    assert again.plan(3.0) == Plan()
    for table, rows in again.tables().items():
        assert rows.items() <= state[table].items()
    assert len(again.tables()[SERVICES]) == 4


def _read(maps: Maps) -> State:
    return {table: dict(maps.items(table)) for table in TABLES}
