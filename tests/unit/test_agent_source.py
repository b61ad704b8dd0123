# SPDX-License-Identifier: Apache-2.0
"""What an agent waits for, and what it makes of later news about its own node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from dataplane.agent import source
from dataplane.agent.config import Config
from dataplane.agent.facts import Facts
from dataplane.agent.known import Known
from dataplane.model.errors import BadInput
from dataplane.model.objects import Batch, Node, Problem, Service, ServiceCIDR, ServiceType

CONFIG = Config(node_name="one")
RANGE, OTHER = ip_network("10.244.1.0/24"), ip_network("10.244.9.0/24")
ONE = Node("one", (ip_address("192.0.2.1"),), pod_cidrs=(RANGE,))
FACTS = Facts("one", "vxlan", ONE.addresses, (RANGE,), {}, (), 1450, 0, 0)


def wait(*batches: Batch | None, config: Config = CONFIG) -> tuple[Batch | None, list[str]]:
    """What the wait came to, and what was said last on the way."""
    given: Iterator[Batch | None] = iter(batches)
    said: list[tuple[Problem, ...]] = [()]

    async def get() -> Batch | None:
        return next(given)

    return asyncio.run(source.complete(get, config, said.append)), list(map(str, said[-1]))


def test_without_a_source_the_agent_says_what_to_give() -> None:
    with pytest.raises(BadInput, match="give apiServer in the config"):
        source.batches(CONFIG, None)


def test_the_first_batch_holds_all_that_came_before_it() -> None:
    two, three = Node("two"), Node("three")
    found, said = wait(
        Batch((two, three), problems=(Problem("API server", "list pods", "no right"),)),
        Batch((ONE,), (two.key,), synced=True),
    )
    assert found == Batch((three, ONE), synced=True)
    assert said == []


def test_it_waits_for_its_node_and_for_a_range_and_says_so() -> None:
    found, said = wait(Batch((Node("two"),), synced=True), None)
    assert found is None
    assert said[0].startswith("Node one: metadata.name: is not known to the API server")
    bare = Node("one")
    found, said = wait(Batch((bare,), synced=True), None)
    assert found is None
    assert said[0].startswith("Node one: spec.podCIDRs: has no range yet")
    found, said = wait(Batch((bare,), synced=True), config=Config("one", pod_cidrs=(RANGE,)))
    assert found is not None


def test_service_ranges_of_the_source_count_unless_the_config_gives_some() -> None:
    ranges = ServiceCIDR("a", (ip_network("10.97.0.0/16"), ip_network("10.96.0.0/16")))
    known = Known(CONFIG)
    assert known.take(Batch((ranges,), synced=True))
    assert not known.take(Batch((ranges,), synced=True))
    assert [str(one) for one in known.config.service_cidrs] == ["10.96.0.0/16", "10.97.0.0/16"]
    assert known.take(Batch(deletes=(ranges.key,), synced=True))
    assert known.config.service_cidrs == ()
    given = Known(Config("one", service_cidrs=(ip_network("10.0.0.0/16"),)))
    assert given.take(Batch((ranges,), synced=True))
    assert [str(one) for one in given.config.service_cidrs] == ["10.0.0.0/16"]


def test_the_cluster_ips_of_other_proxies_are_known_as_long_as_they_are_theirs() -> None:
    known = Known(CONFIG)
    theirs = Service(
        "shop", "web", ServiceType.CLUSTER_IP, (ip_address("10.96.0.9"),), skipped="a label"
    )
    ours = replace(theirs, skipped="")
    assert not known.take(Batch((ours,), synced=True))
    assert known.take(Batch((theirs,), synced=True))
    assert not known.take(Batch((replace(theirs, created="later"),), synced=True))
    assert known.left_alone == theirs.cluster_ips
    assert known.take(Batch((ours,), synced=True))
    assert known.take(Batch((theirs,), synced=True))
    assert known.take(Batch(deletes=(theirs.key,), synced=True))
    assert known.left_alone == ()


def test_a_range_that_changes_and_a_node_that_goes_are_named() -> None:
    known = Known(CONFIG)
    known.take(Batch((ONE,), synced=True))
    assert known.problems(FACTS) == ()
    assert known.abandoned(FACTS) == ()
    known.take(Batch((Node("one", pod_cidrs=(OTHER,)),), synced=True))
    (problem,) = known.problems(FACTS)
    assert "was 10.244.1.0/24 and is 10.244.9.0/24 now" in str(problem)
    assert known.abandoned(FACTS) == FACTS.pod_cidrs
    known.take(Batch((Node("one"),), synced=True))
    assert known.abandoned(FACTS) == ()  # made again, and has no range yet
    known.take(Batch(deletes=(ONE.key,), synced=True))
    assert known.abandoned(FACTS) == ()
    (problem,) = known.problems(FACTS)
    assert "is gone; this node goes on as it was" in str(problem)
    assert known.addresses(FACTS) == ONE.addresses
