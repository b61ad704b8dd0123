# SPDX-License-Identifier: Apache-2.0
"""`podlane install`: put the CNI plugin where a container runtime looks for it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dataplane.model.errors import BadEnvironment

if TYPE_CHECKING:
    from cli.main import Subparsers


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "install",
        help="put the CNI plugin in place",
        description="Puts the plugin into cniBinDir (and a `loopback` if there is none). The"
        " conflist in cniConfDir is written by the agent once the datapath is up; if it is up"
        " now, here.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML")
    parser.add_argument(
        "--node", default="", metavar="NAME", help="wins over the config's nodeName"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from dataplane.agent import config, install, rundir

    settings = config.load(args.config, node_name=args.node)
    if os.geteuid() != 0:
        raise BadEnvironment("podlane install", "needs root", "run it with sudo")
    for line in install.plugin(settings):
        print(line, file=sys.stderr)
    if rundir.is_ready(settings.run_dir):
        install.conflist(settings)
        print(f"{settings.cni_conf_dir / install.CONFLIST} is in place", file=sys.stderr)
    else:
        print("the conflist follows when `podlane agent` is ready", file=sys.stderr)
    return 0
