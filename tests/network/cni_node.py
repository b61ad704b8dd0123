# SPDX-License-Identifier: Apache-2.0
"""A node that is called as a container runtime calls it: the plugin binary, an environment, stdin.

`audit` looks at a node with other programs' eyes only (ip, tc, find, sqlite3), so that
nothing of podlane vouches for itself. Must not use the agent's code.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.network.cluster import AgentNode

PLUGIN = Path(__file__).resolve().parents[2] / "build/podlane-cni"


@dataclass
class Answer:
    """What a call came to. stdout holds JSON or nothing."""

    status: int
    output: str

    @property
    def json(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.output) if self.output else {}
        return decoded

    @property
    def code(self) -> int:
        """The error's code; 0 if it is none."""
        return int(self.json.get("code", 0))


def config(node: AgentNode, version: str = "1.0.0", **more: object) -> dict[str, object]:
    """What libcni would hand over for our plugin."""
    return {
        "cniVersion": version,
        "name": "podlane",
        "type": "podlane-cni",
        "socket": str(node.folder / "run/cni.sock"),
        "stateDir": str(node.folder / "state"),
        **more,
    }


def start(
    command: str,
    container: str,
    netns: str,
    given: Mapping[str, object] | bytes,
    args: str = "",
    interface: str = "eth0",
    plugin: Path = PLUGIN,
) -> subprocess.Popen[str]:
    """Start a call and leave it running."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": interface,
        "CNI_ARGS": args,
        "CNI_PATH": str(plugin.parent),
    }
    process = subprocess.Popen(
        [str(plugin)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    text = given.decode() if isinstance(given, bytes) else json.dumps(given)
    try:
        process.stdin.write(text)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it knew enough
    process.stdin = None
    return process


def end(process: subprocess.Popen[str]) -> Answer:
    """Wait for a call."""
    output, _ = process.communicate(timeout=90)
    return Answer(process.returncode, output)


def call(
    command: str,
    container: str,
    netns: str,
    given: Mapping[str, object] | bytes,
    args: str = "",
    interface: str = "eth0",
    plugin: Path = PLUGIN,
) -> Answer:
    """One call, done."""
    return end(start(command, container, netns, given, args, interface, plugin))


def lines(*words: str) -> list[str]:
    done = subprocess.run(words, text=True, capture_output=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.splitlines()


def pins(node: AgentNode) -> set[str]:
    """Everything in the node's bpffs."""
    return set(lines("find", str(node.folder / "bpf"), "-mindepth", "1"))


def audit(node: AgentNode, live: Mapping[str, str], known_pins: set[str]) -> list[str]:
    """What is on the node and should not be, or the other way; live: container to namespace."""
    wrong = []
    database = str(node.folder / "state/pods.db")
    rows = {
        row.split("|")[0]: row.split("|")[1:]
        for row in lines("sqlite3", database, "SELECT container_id, veth, done FROM attachments")
    }
    given = Counter[str]()
    for row in lines("sqlite3", database, "SELECT container_id, address FROM addresses"):
        container, address = row.split("|")
        given[address] += 1
        if container not in live:
            wrong.append(f"address {address} is lost to {container}")
    wrong += [f"row of {container} is stray" for container in rows.keys() - live.keys()]
    wrong += [f"row of {container} is missing" for container in live.keys() - rows.keys()]
    wrong += [f"row of {c} is not done" for c, row in rows.items() if row[1] != "1"]
    on_pods = Counter[str]()
    for container, ns in live.items():
        for link in json.loads("".join(lines("ip", "-n", ns, "-j", "addr", "show", "dev", "eth0"))):
            for entry in link.get("addr_info", ()):
                if entry["scope"] == "global":
                    on_pods[entry["local"]] += 1
                    if entry["local"] not in given:
                        wrong.append(f"address {entry['local']} of {container} is in no row")
    wrong += [f"address {address} is given twice" for address, n in on_pods.items() if n > 1]
    wrong += [f"address {address} is on no pod" for address in given - on_pods]
    links = json.loads("".join(lines("ip", "-n", node.ns, "-j", "link")))
    veths = {one["ifname"] for one in links if one["ifname"].startswith("pl")} - {"podlane0"}
    expected = {row[0] for row in rows.values()}
    wrong += [f"link {name} is stray" for name in veths - expected]
    wrong += [f"link {name} is missing" for name in expected - veths]
    for name in sorted(veths | {"eth0", "podlane0"}):
        for way, count in (("ingress", 3 if name in veths else 2), ("egress", 2)):
            shown = lines("tc", "-n", node.ns, "filter", "show", "dev", name, way)
            found = sum(" handle " in line for line in shown)
            if found != count:
                wrong.append(f"{found} filters and not {count} at {way} of {name}")
    here = pins(node)
    wrong += [f"pin {pin} is stray" for pin in here - known_pins]
    wrong += [f"pin {pin} is missing" for pin in known_pins - here]
    files = lines("find", str(node.folder / "state"), "-type", "f", "-not", "-name", "pods.db*")
    return wrong + [f"file {file} is stray" for file in files]
