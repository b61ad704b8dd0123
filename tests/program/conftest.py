# SPDX-License-Identifier: Apache-2.0
"""Two nodes with the real programs, loaded once; each test finds them freshly filled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from dataplane.kernel import loader
from dataplane.kernel.compiler import compile_bundle
from dataplane.model.net import Family
from tests.program import world
from tests.program.node import Node
from tests.program.sandbox import Sandbox
from tests.program.state import SIZES


@pytest.fixture(scope="session")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[tuple[Node, Node]]:
    """`here` and `there`, without entries."""
    bundle = compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")
    with ExitStack() as stack:
        sandbox = Sandbox(tmp_path_factory.mktemp("bpffs"), world.DEVICE_MACS)
        stack.callback(sandbox.close)
        made = []
        for name in ("here", "there"):
            datapath = sandbox.do(partial(loader.load, bundle, sandbox.bpffs / name, SIZES))
            stack.callback(datapath.close)
            made.append(Node(name, datapath, sandbox))
        yield made[0], made[1]


@pytest.fixture(params=list(Family), ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> Family:
    """Each test is of both families."""
    return Family(request.param)


@pytest.fixture
def underlay() -> world.Underlay:
    """How the nodes reach each other: VXLAN over IPv4, unless a test says otherwise."""
    return world.Underlay()


@pytest.fixture
def here(nodes: tuple[Node, Node], family: Family, underlay: world.Underlay) -> Node:
    """The node in hand."""
    nodes[0].fill(family, underlay)
    return nodes[0]


@pytest.fixture
def there(nodes: tuple[Node, Node], family: Family, underlay: world.Underlay) -> Node:
    """The other node, where `remote` runs."""
    nodes[1].fill(family, underlay)
    return nodes[1]
