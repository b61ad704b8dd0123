# SPDX-License-Identifier: Apache-2.0
"""New connections a second through ClusterIPs: does the number of Services cost anything?"""

from __future__ import annotations

from bench import load, ours
from bench.measure import Goal, Result, alternate, pick
from tests.cluster.services import cluster_ip

SECONDS = 0.5
MANY = 10_000


def new_connections() -> list[Result]:
    """A node with 10,000 Services, each new connection to the next, against a node with one."""
    pods = [ours.pod("client", "node-1"), ours.pod("server", "node-1")]
    services = [ours.service(n, "server") for n in range(MANY)]
    with (
        ours.lab([*pods, *services], nodes=1) as many,
        ours.lab([*pods, *services[:1]], nodes=1) as one,
    ):
        many.stop_stand_in("server")
        one.stop_stand_in("server")
        with load.server(many.place("server")), load.server(one.place("server")):
            first = cluster_ip(0)
            a, b = alternate(
                lambda: load.run("tcp-crr", many.target("client", first, MANY), SECONDS),
                lambda: load.run("tcp-crr", one.target("client", first), SECONDS),
            )
    name, unit = "new-connections", "connections/s, 10,000 Services against 1"
    goal = Goal("ratio", at_least=0.97)
    return [Result(name, unit, pick(a, "per_second"), pick(b, "per_second"), goal)]
