# SPDX-License-Identifier: Apache-2.0
"""Explain of a node that runs: its pinned maps are copied, its names resolved, nothing written."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.agent import config
from dataplane.core.plan import NAMES, ROUTES, Plan, Upsert
from dataplane.explain.answers import explain
from dataplane.explain.manifests import make_scene
from dataplane.explain.named import named_question
from dataplane.explain.running import check_programs, read_running
from dataplane.explain.scene import ENDPOINTS, Scene, host_key
from dataplane.kernel import loader
from dataplane.kernel.compiler import compile_bundle
from dataplane.kernel.maps import Maps, Writer
from dataplane.model.constants import NameKind
from dataplane.model.errors import BadInput
from dataplane.model.net import Family
from dataplane.model.rows import EndpointRow, NameKey, NameRow, Table
from dataplane.sources.manifests import read
from tests.program.explain import sets
from tests.program.explain.sets import NODES, endpoint, piece, service
from tests.program.sandbox import Sandbox


def staged(tmp_path: Path) -> Scene:
    """What an agent of node here would have written; pod shop/web-1 is a1."""
    one = {**endpoint("a1"), "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1"}}
    bare = [{"port": 80}]
    world = service("other", type="ClusterIP", externalIPs=[], ingress=[], ports=bare)
    out = piece("far", name="other-1", service="other", ports=[{"port": 8080}])
    objects = (*NODES, service(), piece(one, "b1"), world, out)
    file = sets.write(objects, Family.V4, tmp_path)
    scene = make_scene(read([file]), config.parse({}, "test", node_name="here")).scene
    row = scene.endpoint(ip_address("10.244.1.10"))
    assert isinstance(row, EndpointRow)
    scene.put(ENDPOINTS[Family.V4], ip_address("10.244.1.10"), row)
    scene.put(NAMES, NameKey(NameKind.ENDPOINT, row.id), NameRow("shop/web-1"))
    del scene.tables[ROUTES[Family.V4]][host_key(ip_address("198.18.0.5"))]  # an agent has none
    return scene


def test_a_running_node_is_asked_by_names_and_left_as_it_is(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    folder = tmp_path / "bpffs"
    folder.mkdir()
    sandbox = Sandbox(folder, {})

    def go() -> None:
        pinned = folder / "podlane"
        with loader.load(bundle, pinned) as datapath:
            rows = staged(tmp_path).tables
            Writer(datapath).execute(Plan(tuple(Upsert(t, [*r.items()]) for t, r in rows.items())))

            def content() -> dict[Table, dict[object, object]]:
                tables = (*rows, Table("flows", Family.V4))
                return {table: dict(Maps(datapath).items(table)) for table in tables}

            before = content()
            check_programs(pinned, bundle)
            scene = read_running(pinned, "here")
            asked = named_question(scene, "shop/web-1", "web.shop:http", "tcp")
            (found,) = explain(bundle, scene, None, [asked])
            assert content() == before
            long = named_question(scene, "shop/web-1", "web.shop.svc.cluster.local:80", "tcp")
            assert long == asked
            asked_world = named_question(scene, "shop/web-1", "other.shop:80", "tcp")
            (beyond,) = explain(bundle, scene, None, [asked_world])
        # what hides a pod from the world is no rule of a Service
        assert (beyond.answer.backends, beyond.answer.masquerade) == (("198.18.0.5:8080",), False)
        assert "not the Service's doing" in " ".join(beyond.answer.steps)
        assert str(asked) == "10.244.1.10 to 10.96.0.1:80 over TCP"
        assert (found.answer.verdict, found.answer.service) == ("forward", "shop/web:http")
        assert found.answer.backends == ("10.244.1.10:8080", "10.244.2.10:8080")
        assert "leaves pod shop/web-1 of node here" in found.answer.steps[0]
        for source, to, words in (
            ("shop/web-2", "web.shop:80", "--from: node here has no pod shop/web-2"),
            ("shop/web-1", "web.shop:81", "has no port 81"),
            ("shop/web-1", "cart.shop:80", "serves no Service shop/cart"),
            ("shop/web-1", "web:80", "neither IP:PORT nor SERVICE.NAMESPACE:PORT"),
            ("shop/web-1", "web.shop:", "neither IP:PORT nor SERVICE.NAMESPACE:PORT"),
            ("shop/web-1", "web.shop.example.org:80", "neither IP:PORT nor SERVICE.NAMESPACE:PORT"),
            ("shop/web-1", "web.2024:80", "serves no Service 2024/web"),
            ("shop/web-1", "10.96.0:80", "is no IP address"),
        ):
            with pytest.raises(BadInput, match=words):
                named_question(scene, source, to, "tcp")

    try:
        sandbox.do(go)
    finally:
        sandbox.close()
