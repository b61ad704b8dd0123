# SPDX-License-Identifier: Apache-2.0
"""`podlane uninstall`: take all that podlane put on a node away again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "uninstall",
        help="take all that podlane put on a node away",
        description="Takes filters, devices, routes, settings, pins and folders of podlane off this"
        " node. Pods lose their network. The agent must not run.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML")
    parser.add_argument(
        "--node", default="", metavar="NAME", help="wins over the config's nodeName"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from dataplane.agent import config
    from dataplane.agent.uninstall import run as take_away

    for line in take_away(config.load(args.config, node_name=args.node)):
        print(line, file=sys.stderr)
    return 0
