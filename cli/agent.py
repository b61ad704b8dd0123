# SPDX-License-Identifier: Apache-2.0
"""`podlane agent`: run a node until SIGTERM.

The only command that knows the agent; it is imported when it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "agent",
        help="run a node's agent",
        description="Runs a node until SIGTERM. What it put in the kernel stays and works on.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML")
    parser.add_argument(
        "--node", default="", metavar="NAME", help="wins over the config's nodeName"
    )
    parser.add_argument(
        "--manifests",
        type=Path,
        metavar="DIR",
        help="take objects from here, not from an API server",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from dataplane.agent import config
    from dataplane.agent.main import run as run_node

    settings = config.load(args.config, node_name=args.node)
    return run_node(settings, args.manifests)
