# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes on this machine: `python -m tests.cluster up|down|conformance …`.

    up [--name N] [--nodes 2] [--network podlane|peer|none] [--kubeconfig-out FILE]
    down [--name N]
    conformance [--peer] [--focus REGEX]    both made, tested and taken away here

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
    tests.add_argument("--focus", default=conformance.CONFORMANCE)
    tests.add_argument("--skip", default="")
    for command in (up, down, tests):
        command.add_argument("--name", default="cluster")
        command.add_argument("--nodes", type=int, default=2)
    for command in (up, tests):
        command.add_argument("--mode", default="vxlan", choices=("vxlan", "native"))
    up.add_argument("--network", default="podlane", choices=("podlane", "peer", "none"))
    options = parser.parse_args()
    if options.command == "down":
        Cluster(Places(options.name, options.nodes)).down()
        return 0
    missing = [name for name in ("containerd", "runc", "openssl") if not shutil.which(name)]
    if missing:
        print(f"cluster: {', '.join(missing)} missing: tools/setup.sh cluster", file=sys.stderr)
        return 2
    cluster = Cluster(Places(options.name, options.nodes))
    if options.command == "up":
        cluster.up(options.network, options.mode)
        if options.kubeconfig_out:
            cluster.publish(options.kubeconfig_out)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    programs = build.programs(with_tests=True)
    network = "peer" if options.peer else "podlane"
    try:
        cluster.up(network, options.mode, programs)
        return conformance.run(cluster, network, options.focus, options.skip)
    finally:
        cluster.down()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.CalledProcessError) as failure:
        sys.exit(f"cluster: {failure}")
