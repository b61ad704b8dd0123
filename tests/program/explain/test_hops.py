# SPDX-License-Identifier: Apache-2.0
"""The story goes on at the next node: what left the first is put to the other's programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.agent import config
from dataplane.explain.answers import explain as explain_all
from dataplane.explain.hops import Hops, copies
from dataplane.explain.manifests import make_scene
from dataplane.explain.questions import question
from dataplane.kernel import netns
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.compiler import compile_bundle
from dataplane.model.net import Family
from dataplane.sources.manifests import read
from tests.program.explain import sets
from tests.program.explain.conftest import Explain
from tests.program.explain.sets import NODES, node, piece, service


def after(explained: object, name: str) -> list[str]:
    """The steps of one other node, without its name."""
    start = f"node {name}, "
    steps: tuple[str, ...] = explained.answer.steps  # type: ignore[attr-defined]
    return [one.removeprefix(start) for one in steps if one.startswith(start)]


def address(name: str, family: Family) -> str:
    return str(sets.said(f"@{name}", family))


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_a_backend_elsewhere_is_reached_through_the_overlay(
    explain: Explain, family: Family, protocol: str
) -> None:
    port = {"name": "http", "port": 80, "nodePort": 30080, "protocol": protocol.upper()}
    slice_port = {"name": "http", "port": 8080, "protocol": protocol.upper()}
    objects = (*NODES, service(ports=[port]), piece("b1", ports=[slice_port]))
    for sender, to in (("a1", "web:80"), ("outside", "here:30080")):
        found = explain(objects, sender, to, protocol)
        first, *_, last = after(found, "there")
        assert found.answer.verdict == "forward"
        assert first.startswith(f"from_overlay_{family:d}: ")
        assert f"comes from node here ({address('here', family)}) through the overlay" in first
        assert last == "verdict: straight into a pod of this node"


def test_a_native_route_enters_by_the_uplink(explain: Explain, family: Family) -> None:
    objects = (*NODES, service(), piece("b1"))
    found = explain(objects, "a1", "web:80", mode="native")
    first, *_, last = after(found, "there")
    assert first.startswith(f"from_uplink_{family:d}: ")
    assert address("a1", family) in first
    assert last == "verdict: straight into a pod of this node"


@pytest.mark.parametrize("mode", ["vxlan", "native"])
def test_direct_return_goes_on_under_its_own_vni(
    explain: Explain, family: Family, mode: str
) -> None:
    objects = (*NODES, service(), piece("b1"))
    found = explain(objects, "outside", "here:30080", mode=mode, loadBalancerMode="dsr")
    steps = after(found, "there")
    assert "VNI 7001" in steps[0]
    assert address("outside", family) in steps[0]  # as it came
    assert any(address("b1", family) in one and "becomes" in one for one in steps)
    assert steps[-1] == "verdict: straight into a pod of this node"


def test_a_node_port_of_another_node_is_answered_there_and_may_come_back(
    explain: Explain, family: Family
) -> None:
    objects = (*NODES, service(), piece("a1"))
    found = explain(objects, "a2", "there:30080")
    assert found.answer.verdict == "pass"
    there, here = after(found, "there"), after(found, "here")
    assert "is NodePort of shop/web:http" in there[1]
    assert here[0].startswith(f"from_overlay_{family:d}: ")
    assert here[-1] == "verdict: straight into a pod of this node"


def test_what_the_next_node_drops_is_said_with_its_name_and_the_reason(explain: Explain) -> None:
    objects = (*NODES, service(externalTrafficPolicy="Local"), piece("a1"))
    found = explain(objects, "a2", "there:30080")
    last = after(found, "there")[-1]
    assert (found.answer.verdict, found.differences) == ("pass", ())
    assert last.startswith("verdict: dropped (")
    assert "endpoint" in last


def test_one_way_is_followed_to_each_node_that_backends_are_on(explain: Explain) -> None:
    objects = (*NODES, node("third", "west", pods="@pods-third"), service())
    found = explain((*objects, piece("a1", "b1", "b2", "c1")), "a2", "web:80")
    steps = found.answer.steps
    for name in ("there", "third"):
        assert sum("from_overlay" in one for one in after(found, name)) == 1
        assert after(found, name)[-1] == "verdict: straight into a pod of this node"
    # a pod here may be the one chosen, or one of the two nodes': the others are said to be others
    chosen = sum(one.startswith("verdict: to another node") for one in steps)
    assert sum(one.startswith("were backend ") for one in steps) == 2 - chosen


def test_a_pod_of_the_other_nodes_range_that_is_here_is_believed_there(explain: Explain) -> None:
    found = explain((*NODES, service(), piece("b2")), "b1", "web:80")
    assert after(found, "there")[-1] == "verdict: straight into a pod of this node"


def test_the_nodes_own_call_goes_on_as_a_packet(explain: Explain, family: Family) -> None:
    found = explain((*NODES, service(), piece("b1")), "here", "web:80")
    steps = after(found, "there")
    assert steps[0].startswith(f"from_overlay_{family:d}: ")
    assert steps[-1] == "verdict: straight into a pod of this node"


def test_a_plain_pod_that_nobody_told_of_is_taken_to_be_there(explain: Explain) -> None:
    found = explain(NODES, "a1", "b1:8080")
    assert "taken to be a pod there" in after(found, "there")[1]
    assert after(found, "there")[-1] == "verdict: straight into a pod of this node"


@pytest.fixture
def bundle(pytestconfig: pytest.Config) -> Bundle:
    return compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")


def test_without_manifests_the_story_says_where_it_goes_on_and_stops(
    bundle: Bundle, tmp_path: Path
) -> None:
    file = sets.write((*NODES, service(), piece("b1")), Family.V4, tmp_path)
    staged = make_scene(read([file]), config.parse({}, "test", node_name="here"))
    asked = question("10.244.1.10", "10.96.0.1:80", "tcp")
    for elsewhere, words in (
        (None, "it goes on at node there, whose maps are not on this one: ask explain there"),
        (staged.elsewhere, "node there, verdict: straight into a pod of this node"),
    ):

        def go() -> str:
            (found,) = explain_all(bundle, staged.scene, None, [asked], elsewhere=elsewhere)  # noqa: B023
            return found.answer.steps[-1]

        assert netns.run_apart(go) == words


def test_a_batch_makes_copies_of_few_nodes_and_says_where_it_stops(
    bundle: Bundle, tmp_path: Path
) -> None:
    file = sets.write((*NODES, service(), piece("b1")), Family.V4, tmp_path)
    staged = make_scene(read([file]), config.parse({}, "test", node_name="here"))
    assert copies(staged.scene, 1) > copies(staged.scene, 30) > 0
    hops = Hops(bundle, staged.elsewhere, 0)
    assert "not followed" in str(hops._copy("there"))


@pytest.mark.parametrize("to", ["web:80", "there:31000"])
def test_a_pod_that_is_hidden_on_the_way_to_a_node_comes_there_hidden(
    explain: Explain, family: Family, to: str
) -> None:
    """Also where that node is somebody's backend, to which the copy itself hides nobody."""
    found = explain((*NODES, service(), piece("there")), "a1", to)
    assert not found.answer.masquerade
    first = after(found, "there")[0]
    assert first.startswith(f"from_uplink_{family:d}: ")
    sender = first.split()[1].rpartition(":")[0].strip("[]")
    assert sender == address("here", family)


def test_a_next_hop_that_is_made_up_is_said_to_be(explain: Explain, family: Family) -> None:
    found = explain((*NODES, service(), piece({"addresses": ["@b1"]})), "a1", "web:80")
    assert "made up" in found.answer.steps[-1]
