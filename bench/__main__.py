# SPDX-License-Identifier: Apache-2.0
"""`python -m bench [--only NAME]`: measures, writes build/bench/NAME.json, prints one table.

Exit 0 whether goals are met or not (the table says it), 2 if something could not be measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench import (
    charts,
    cni,
    connections,
    control_plane,
    direct,
    from_api,
    kube_proxy,
    labs,
    paths,
    pods,
    report,
    start,
)
from bench.measure import Result
from dataplane.model.errors import BadEnvironment, BadInput, PodlaneError

# Need Go, and minutes to fill an API server: measured only if they are asked for.
LONG = ("from-api", "from-api-large", "kube-proxy", "pods-ready")
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def benches(manifest: Path) -> dict[str, Callable[[], list[Result]]]:
    """Every bench by its name, in the order in which they run."""
    return {
        "null": paths.null,
        "pod-to-pod": paths.pod_to_pod,
        "pod-to-clusterip": paths.pod_to_clusterip,
        "host-to-clusterip": paths.host_to_clusterip,
        "vxlan": paths.vxlan,
        "new-connections": connections.new_connections,
        "direct-return": direct.direct_return,
        "compile": start.compiling,
        "load": start.loading,
        "control-plane": control_plane.control_plane,
        "from-api": from_api.from_api,
        "from-api-large": from_api.from_api_large,
        "kube-proxy": kube_proxy.kube_proxy,
        "pods-ready": pods.pods_ready,
        "cni": cni.cni,
        "lab-up": lambda: labs.lab_up(manifest),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help=f"one of {', '.join(benches(EXAMPLES))}")
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        type=Path,
        default=Path(os.environ.get("BENCH_MANIFEST", EXAMPLES)),
        help="what lab-up brings up (default: $BENCH_MANIFEST, else the project's example)",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="measure nothing: print what earlier runs wrote"
    )
    parser.add_argument(
        "--charts",
        metavar="FILE",
        type=Path,
        help="measure nothing: draw the tables of a Markdown file, as SVG beside it",
    )
    args = parser.parse_args()
    if args.charts:
        print(*charts.draw(args.charts), sep="\n")
        return 0
    if args.markdown:
        sys.stdout.write(report.markdown(report.read()))
        return 0
    known = benches(args.manifest)
    words = Console(stderr=True, highlight=False, markup=False)
    try:
        if os.geteuid():
            raise BadEnvironment("bench", "it makes network namespaces", "run it as root")
        if args.only and args.only not in known:
            raise BadInput(f"bench {args.only!r}", "no such bench", f"one of {', '.join(known)}")
    except PodlaneError as error:
        words.print(str(error))
        return error.exit_status
    results: list[Result] = []
    status = 0
    for name in [args.only] if args.only else [n for n in known if n not in LONG]:
        begin = time.monotonic()
        words.print(f"{name} …")
        try:
            found = known[name]()
        except PodlaneError as error:
            words.print(f"{name}: {error}")
            status = error.exit_status
            continue
        for result in found:
            report.write(result)
        results += found
        words.print(f"{name}: measured in {time.monotonic() - begin:.0f} s")
    # A log has no width of its own: there, no cell is folded.
    width = None if sys.stdout.isatty() else 200
    report.show(results, Console(highlight=False, markup=False, width=width))
    return status


if __name__ == "__main__":
    sys.exit(main())
