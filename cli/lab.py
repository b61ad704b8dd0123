# SPDX-License-Identifier: Apache-2.0
"""`podlane lab`: a cluster from plain manifests on this machine, in namespaces of its own.

Registration, words and statuses; what is done is dataplane.lab's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cli.render import add_output, show
from dataplane.lab import change, check, cluster, demo, inside, state, status, up
from dataplane.lab.cluster import MODES, Wish
from dataplane.lab.controlplane import FAMILIES
from dataplane.lab.state import DEFAULT_NAME, LabFiles
from dataplane.lab.topology import OUTSIDE, UNDERLAY
from dataplane.model.errors import BadEnvironment, BadInput

if TYPE_CHECKING:
    from cli.main import Subparsers

_DESCRIPTION = (
    "A cluster from plain manifests on this machine. Everything is in namespaces of the lab;"
    " the machine's own network is not changed."
)


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command and those below it."""
    parser = subparsers.add_parser(
        "lab", help="a cluster from plain manifests on this machine", description=_DESCRIPTION
    )
    below = parser.add_subparsers(dest="lab", required=True, metavar="COMMAND")

    def command(name: str, line: str) -> argparse.ArgumentParser:
        one = below.add_parser(name, help=line, description=line)
        one.add_argument("--name", default="", help="the lab's name (default: the one there is)")
        return one

    one = command("up", "bring a lab up")
    _manifests(one)
    _shape(one)
    one = command("check", "send traffic to every Service port and judge what comes of it")
    one.add_argument("-o", "--output", choices=("table", "json"), default="table")
    one = command("status", "what the lab holds, and whether it is well")
    one.add_argument("-o", "--output", choices=("table", "json"), default="table")
    one = command("apply", "add objects, or change those of the same names")
    _manifests(one)
    one.add_argument("--strict", action="store_true", help="refuse what can't be served")
    one.add_argument(
        "--prune", action="store_true", help="take away what the given files do not name"
    )
    one = command("exec", "run a command in a pod's network")
    one.add_argument("pod", metavar="POD", help="namespace/name, name, or a workload's name")
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="-- CMD")
    one = command("node", "run a command on a node")
    one.add_argument("node", metavar="NODE", help=f"its name; {OUTSIDE}; {UNDERLAY}")
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="-- CMD")
    command("down", "take a lab down, whole or half made")
    one = command("demo", "bring a lab up, show what it does, take it down")
    one.add_argument("-f", "--filename", action="append", metavar="FILE", default=[])
    _shape(one)
    return parser


def _manifests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        required=True,
        metavar="FILE",
        help="a manifest, a folder of them, or - (can be given again)",
    )


def _shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes (default 3)")
    parser.add_argument("--mode", choices=MODES, default="vxlan", help="between nodes")
    parser.add_argument("--family", choices=tuple(FAMILIES), default="dual", help="of addresses")
    parser.add_argument("--strict", action="store_true", help="refuse what can't be served")


def run(args: argparse.Namespace) -> int:
    """Run one of them."""
    if os.geteuid() != 0:
        raise BadEnvironment("podlane lab", "needs root", "run it with sudo")
    with _interruptible():
        return _RUN[args.lab](args)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """End by SIGTERM or a closed terminal as by Ctrl-C: what was half made is unmade."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = [(n, signal.signal(n, stop)) for n in (signal.SIGTERM, signal.SIGHUP)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def say(words: str) -> None:
    """Progress: on stderr, so that stdout holds results only."""
    print(f"lab: {words}", file=sys.stderr, flush=True)


def _new(args: argparse.Namespace) -> LabFiles:
    return LabFiles(args.name or DEFAULT_NAME)


def _present(args: argparse.Namespace) -> LabFiles:
    """The lab that is meant: by name, or the only one."""
    if args.name:
        return LabFiles(args.name)
    names = state.names()
    if len(names) > 1 and DEFAULT_NAME not in names:
        raise BadInput("--name", "several labs are here", f"say which: {', '.join(names)}")
    return LabFiles(names[0] if len(names) == 1 else DEFAULT_NAME)


def _wish(args: argparse.Namespace) -> Wish:
    return Wish(
        paths=tuple(args.filename),
        nodes=args.nodes,
        mode=args.mode,
        family=args.family,
        strict=args.strict,
        stdin=_stdin(args.filename),
    )


def _stdin(paths: Sequence[str]) -> bytes:
    return sys.stdin.buffer.read() if cluster.STDIN in paths else b""


def _up(args: argparse.Namespace) -> int:
    lab = up.up(_new(args), _wish(args), say)
    status.tell(lab, sys.stderr)
    say(f"{lab.files.name} is up: {len(lab.world.nodes)} nodes, {len(lab.world.pods)} pods")
    return 0


def _apply(args: argparse.Namespace) -> int:
    changed = change.apply(
        _present(args), args.filename, _stdin(args.filename), args.strict, args.prune, say
    )
    status.tell(changed.lab, sys.stderr)
    say(f"{len(changed.started)} pods started, {len(changed.stopped)} stopped")
    return 0


def _check(args: argparse.Namespace) -> int:
    report = check.run(cluster.load(_present(args)), say)
    if args.output == "json":
        print(json.dumps(report.as_json(), indent=1))
    else:
        status.show_report(report, sys.stdout)
    for word in report.broken:
        say(word)
    if not report.verdicts:
        say("no row: nothing in this lab can be asked")
    failed = sum(not verdict.ok for verdict in report.verdicts)
    say(f"{len(report.verdicts) - failed} rows are fine, {failed} are not")
    return 0 if report.ok else 1


def _status(args: argparse.Namespace) -> int:
    found = status.look(cluster.load(_present(args)))
    if args.output == "json":
        print(json.dumps(found.as_json(), indent=1))
    else:
        status.show(found, sys.stdout)
    return 0 if found.ok else 1


def _command(words: list[str]) -> list[str]:
    command = words[1:] if words[:1] == ["--"] else words
    return command or [os.environ.get("SHELL", "/bin/sh")]


def _exec(args: argparse.Namespace) -> int:
    lab = cluster.load(_present(args))
    pod = lab.pod(args.pod)
    if pod.host_network:
        _become(_on_node(lab.files, pod.node_name, _command(args.words)))
    _become(
        inside.entering_pod(lab.files.pod_netns(pod.namespace, pod.name), _command(args.words))
    )
    return 0


def _node(args: argparse.Namespace) -> int:
    lab = cluster.load(_present(args))
    if args.node in (OUTSIDE, UNDERLAY):
        _become(inside.entering_pod(lab.files.netns(args.node), _command(args.words)))
    _become(_on_node(lab.files, lab.node(args.node).name, _command(args.words)))
    return 0


def _on_node(files: LabFiles, node: str, command: Sequence[str]) -> list[str]:
    return inside.entering_node(files.node_netns(node), files.node(node).bpf_mount, command)


def _become(command: Sequence[str]) -> None:
    """Run it in this process's place, with our own `podlane` found first."""
    sys.stdout.flush()
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    try:
        os.execvpe(command[0], list(command), {**os.environ, "PATH": path})
    except OSError as failure:
        raise BadEnvironment(command[0], failure.strerror or str(failure)) from failure


def _down(args: argparse.Namespace) -> int:
    files = _present(args)
    if not files.exists:
        say(f"{files.name} is not up: nothing to take down")
        return 0
    with state.locked(files):
        state.destroy(files)
    say(f"{files.name} is gone")
    return 0


def _demo(args: argparse.Namespace) -> int:
    return demo.run(args.name, _wish(args))


_RUN = {
    "up": _up,
    "check": _check,
    "status": _status,
    "apply": _apply,
    "exec": _exec,
    "node": _node,
    "down": _down,
    "demo": _demo,
}
