# SPDX-License-Identifier: Apache-2.0
"""`podlane explain`: what the real programs do with the first packet of a flow, and why.

    podlane explain --manifests DIR --node NODE [--config FILE] --from IP --to IP:PORT
    podlane explain --manifests DIR --node NODE [--config FILE] --batch FILE
    podlane explain [--config FILE | --bpffs DIR] --from NAMESPACE/POD --to SERVICE.NAMESPACE:PORT
    podlane explain --manifests DIR --node NODE [--config FILE] --health NAMESPACE/NAME [--stale]
    podlane explain --manifests DIR --node NODE [--config FILE] --node-health [--stale]

The answer is the programs' own, from a second copy of the node's maps. With manifests the
reference model's second opinion must agree, or the exit status is 3; without them the maps
of the node that runs here are copied. Must not touch the node.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from cli.render import as_data, numbered
from cli.state import bpffs
from dataplane.explain.named import named_question
from dataplane.explain.questions import DEFAULT_PROTOCOL, Question, batch
from dataplane.kernel.loader import check_bpffs
from dataplane.model.errors import BadInput, Contradiction

if TYPE_CHECKING:
    from cli.main import Subparsers
    from dataplane.explain.answers import Explained
    from dataplane.explain.manifests import Staged
    from dataplane.explain.scene import Scene

PROTOCOLS = ("tcp", "udp", "sctp")
# Until an interrupted batch has cleaned up; verifying programs comes first and takes longest.
_ENDING_SECONDS = 30.0


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Registers the command."""
    line = "what the programs do with a packet, and why"
    parser = subparsers.add_parser("explain", help=line, description=line)
    parser.add_argument(
        "--manifests", type=Path, metavar="DIR", help="objects; without, the node that runs here"
    )
    parser.add_argument("--node", help="the node that is asked, of those in the manifests")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="the node's config")
    where.add_argument("--bpffs", type=Path, metavar="DIR", help="folder of a running node's pins")
    parser.add_argument("--from", dest="source", metavar="IP|NS/POD", help="who sends")
    parser.add_argument(
        "--to", metavar="IP:PORT|SERVICE.NS:PORT", help="whom to; IPv6 as [ADDRESS]:PORT"
    )
    parser.add_argument("--protocol", default=DEFAULT_PROTOCOL, metavar="|".join(PROTOCOLS))
    parser.add_argument(
        "--batch", metavar="FILE", help='one {"from":…,"to":…,"protocol":…} a line; - is stdin'
    )
    health = parser.add_mutually_exclusive_group()
    health.add_argument(
        "--health", metavar="NS/NAME", help="what a Service's healthCheckNodePort answers"
    )
    health.add_argument("--node-health", action="store_true", help="what /healthz and /livez say")
    parser.add_argument("--stale", action="store_true", help="as if the datapath were out of date")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    return parser


def run(args: argparse.Namespace) -> int:
    """Answers all; 0, or 3 if programs and reference model disagree somewhere."""
    if args.health or args.node_health:
        return _run_health(args)
    if args.stale:
        raise BadInput("--stale", "goes with --health or --node-health")
    many = _batch(args)
    staged = _staged(args) if args.manifests else None
    scene = staged.scene if staged else _running(args)
    asked = many if args.batch else [named_question(scene, args.source, args.to, args.protocol)]
    for problem in staged.problems if staged else ():
        print(f"podlane: not served: {problem}", file=sys.stderr)
    differ = 0
    for number, one in enumerate(_answers(args, scene, staged, asked), start=1):
        _show(one, args.output, number)
        for difference in one.differences:
            print(f"podlane: flow {number}, {one.question}: {difference}", file=sys.stderr)
        differ += bool(one.differences)
    if differ:
        sys.stdout.flush()
        raise Contradiction(
            f"{differ} of {len(asked)} flows", "programs and reference model disagree"
        )
    return 0


def _batch(args: argparse.Namespace) -> list[Question]:
    """The questions of a batch; none if one is asked by options."""
    if args.batch is None:
        if args.source is None or args.to is None:
            raise BadInput("--from and --to", "are missing", "or give --batch FILE")
        return []
    if args.source is not None or args.to is not None:
        raise BadInput("--batch", "--from or --to is given too", "give one of the two")
    try:
        if args.batch == "-":
            return batch("<stdin>", sys.stdin)
        with Path(args.batch).open(encoding="utf-8") as file:
            return batch(args.batch, file)
    except OSError as error:
        raise BadInput(f"--batch {args.batch}", error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise BadInput(f"--batch {args.batch}", "is not UTF-8 text") from None


def _staged(args: argparse.Namespace) -> Staged:
    from dataplane.explain.manifests import read_scene

    if args.manifests is None or args.node is None:
        raise BadInput("--manifests and --node", "go together", "give both")
    return read_scene(args.manifests, args.node, args.config)


def _running(args: argparse.Namespace) -> Scene:
    from dataplane.explain.running import read_running, running_name

    if args.node is not None:
        raise BadInput("--node", "goes with --manifests", "name a running node by its --config")
    folder = bpffs(args)
    check_bpffs(folder)
    return read_running(folder, running_name(args.config, folder))


def _answers(
    args: argparse.Namespace, scene: Scene, staged: Staged | None, asked: list[Question]
) -> Iterator[Explained]:
    from dataplane.explain.answers import explain
    from dataplane.kernel.compiler import compile_bundle
    from dataplane.kernel.netns import run_apart
    from dataplane.kernel.source import bundle_path

    bundle = compile_bundle(bundle_path())
    if staged is None:
        from dataplane.explain.running import check_programs

        check_programs(bpffs(args), bundle)
    world = staged.world if staged else None
    elsewhere = staged.elsewhere if staged else None
    interrupted, ended = threading.Event(), threading.Event()

    def answered() -> list[Explained]:
        try:
            return list(
                takewhile(
                    lambda _: not interrupted.is_set(),
                    explain(bundle, scene, world, asked, elsewhere=elsewhere),
                )
            )
        finally:
            ended.set()

    try:
        return iter(run_apart(answered))
    except KeyboardInterrupt:
        # The thread answers no more, and takes its cgroup away; Python 3.11 forgets a thread
        # whose join() was interrupted, and would end this process before.
        interrupted.set()
        ended.wait(_ENDING_SECONDS)
        raise


def _run_health(args: argparse.Namespace) -> int:
    from dataplane.explain import health

    if args.batch or args.source or args.to:
        raise BadInput("--health", "a flow is asked about too", "give one of the two")
    staged = _staged(args)
    if args.node_health:
        answer = health.of_node(staged, healthy=not args.stale)
    else:
        answer = health.of_service(staged, args.health, healthy=not args.stale)
    compact = (",", ":") if args.output == "json" else None
    indent = None if args.output == "json" else 2
    print(json.dumps(answer, separators=compact, indent=indent))
    return 0


def _show(one: Explained, output: str, number: int) -> None:
    if output == "json":
        data = as_data(one.answer)
        print(json.dumps(data, separators=(",", ":"), ensure_ascii=False))
        return
    answer = one.answer
    if number > 1:
        print()
    print(f"{one.question}: {answer.verdict}")
    facts = {
        "service": answer.service or "none",
        "backends": ", ".join(answer.backends) or "none",
        "masquerade": "yes" if answer.masquerade else "no",
        "reason": answer.reason,
    }
    numbered(facts, answer.steps, sys.stdout)
