# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes on this machine: `python -m tests.cluster up|down|conformance …`.

    up [--name N] [--nodes 2] [--family dual|ipv4|ipv6] [--network podlane|peer|none]
       [--kubeconfig-out FILE]
    down [--name N]
    conformance [--peer] [--processes 3] [--all | --focus REGEX]    made, tested and taken away here

Each node is a network, mount and UTS namespace with its own containerd and kubelet. Must not
touch the machine's own network.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.cluster import build, conformance
from tests.cluster.cluster import Cluster
from tests.cluster.places import Places


def main() -> int:
    """Do what the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up")
    up.add_argument("--kubeconfig-out", type=Path)
    down = commands.add_parser("down")
    tests = commands.add_parser("conformance")
    tests.add_argument("--peer", action="store_true", help="with kube-proxy and bridge instead")
    tests.add_argument("--processes", type=int, default=3, help="tests at a time (3)")
    chosen = tests.add_mutually_exclusive_group()
    chosen.add_argument("--all", action="store_true", help="then all others of [sig-network]")
    chosen.add_argument("--focus", help="tests by a regular expression of their names instead")
    for command in (up, down, tests):
        command.add_argument("--name", default="cluster")
        command.add_argument("--nodes", type=int, default=2)
    for command in (up, tests):
        command.add_argument("--mode", default="vxlan", choices=("vxlan", "native"))
        command.add_argument("--family", default="dual", choices=("dual", "ipv4", "ipv6"))
    up.add_argument("--network", default="podlane", choices=("podlane", "peer", "none"))
    options = parser.parse_args()
    if options.command == "down":
        Cluster(Places(options.name, options.nodes)).down()
        return 0
    missing = [name for name in ("containerd", "runc", "openssl") if not shutil.which(name)]
    if missing:
        print(f"cluster: {', '.join(missing)} missing: tools/setup.sh cluster", file=sys.stderr)
        return 2
    cluster = Cluster(Places(options.name, options.nodes, options.family))
    if options.command == "up":
        cluster.up(options.network, options.mode)
        if options.kubeconfig_out:
            cluster.publish(options.kubeconfig_out)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    programs = build.programs(with_tests=True)
    network = "peer" if options.peer else "podlane"
    selections = [conformance.CONFORMANCE]
    if options.all:
        selections.append(conformance.OTHERS)
    if options.focus:
        selections = [conformance.Selection("chosen", options.focus)]
    try:
        cluster.up(network, options.mode, programs)
        return conformance.run(cluster, network, selections, options.processes)
    finally:
        cluster.down()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.CalledProcessError) as failure:
        sys.exit(f"cluster: {failure}")
