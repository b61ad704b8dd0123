# SPDX-License-Identifier: Apache-2.0
"""ADD and DEL of the plugin against bridge + host-local + portmap, called the same way.

Both are called as libcni calls a chain: one process a plugin, the result of one handed to
the next, from inside the node's namespace. Ours has its agent on a lab's node.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Figures, Goal, Result, alternate, pick
from bench.ours import lab, pod
from dataplane.model.errors import BadEnvironment
from tests.cluster.net import Net

ROUNDS, CALLS, AT_ONCE = 5, 20, 100
NODE = "node-1"
BUILD = Path(__file__).resolve().parent.parent / "build"
DEBIAN = Path("/usr/lib/cni")


@dataclass(frozen=True, slots=True)
class Chain:
    """Plugins called one after the other in a node's namespace."""

    node: Path
    folder: Path
    plugins: tuple[dict[str, Any], ...]

    def call(self, command: str, container: str, netns: Path) -> float:
        """One ADD or DEL of the whole chain; seconds."""
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folder),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        order = self.plugins if command == "ADD" else self.plugins[::-1]
        previous: dict[str, Any] = {}
        begin = time.perf_counter()
        for plugin in order:
            config = {"cniVersion": "1.0.0", "name": "bench", **plugin, **previous}
            done = subprocess.run(
                ["nsenter", f"--net={self.node}", str(self.folder / plugin["type"])],
                env=env, input=json.dumps(config), text=True, capture_output=True,
            )  # fmt: skip
            if done.returncode:
                raise BadEnvironment(f"{plugin['type']} {command}", done.stdout or done.stderr)
            if done.stdout:
                previous = {"prevResult": json.loads(done.stdout)}
        return time.perf_counter() - begin


def cni() -> list[Result]:
    """One at a time, and a hundred at once."""
    if not (DEBIAN / "bridge").exists():
        raise BadEnvironment(
            "Debian's CNI plugins", "are not installed", "run `tools/setup.sh cni`"
        )
    with ExitStack() as stack:
        net = Net(stack)
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        net.add("peer")
        names = [f"pod{number}" for number in range(AT_ONCE)]
        for name in names:
            net.add(name)
        pods = [net.path(name) for name in names]
        files = stack.enter_context(lab([pod("other", NODE)], 1)).files
        node = files.node(NODE)
        ours = Chain(
            files.node_netns(NODE),
            BUILD,
            (
                {
                    "type": "podlane-cni",
                    "socket": str(node.run_dir / "cni.sock"),
                    "stateDir": str(node.state_dir),
                },
            ),
        )
        ipam = {
            "type": "host-local",
            "dataDir": str(state),
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
        }
        peer = Chain(
            net.path("peer"),
            DEBIAN,
            (
                {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ),
        )
        a, b = alternate(lambda: _one_by_one(ours, pods), lambda: _one_by_one(peer, pods), ROUNDS)
        c, d = alternate(lambda: _at_once(ours, pods), lambda: _at_once(peer, pods), 3)
    goals = {"add-p50": 0.5, "add-p99": 0.7, "del-p50": 0.5, "del-p99": 0.7}
    return [
        *(
            Result(f"cni-{name}", "ms", pick(a, name), pick(b, name), Goal("ratio", at_most=goal))
            for name, goal in goals.items()
        ),
        Result("cni-add-100", "s", pick(c, "add"), pick(d, "add"), Goal("ratio", at_most=0.5)),
    ]


def _one_by_one(chain: Chain, pods: Sequence[Path]) -> Figures:
    adds = [chain.call("ADD", place.name, place) for place in pods[:CALLS]]
    dels = [chain.call("DEL", place.name, place) for place in pods[:CALLS]]
    return {
        f"{name}-{label}": 1000 * figure
        for name, times in (("add", adds), ("del", dels))
        for label, figure in (("p50", statistics.median(times)), ("p99", max(times)))
    }


def _at_once(chain: Chain, pods: Sequence[Path]) -> Figures:
    with ThreadPoolExecutor(len(pods)) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda place: chain.call("ADD", place.name, place), pods))
        took = time.perf_counter() - begin
    for place in pods:
        chain.call("DEL", place.name, place)
    return {"add": took}
