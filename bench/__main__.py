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

from rich.console import Console

from bench import paths, report
from bench.measure import Result
from dataplane.model.errors import BadEnvironment, BadInput, PodlaneError

BENCHES: dict[str, Callable[[], list[Result]]] = {
    "null": paths.null,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help=f"one of {', '.join(BENCHES)}")
    only = parser.parse_args().only
    words = Console(stderr=True, highlight=False)
    results: list[Result] = []
    status = 0
    try:
        if os.geteuid():
            raise BadEnvironment("bench", "it makes network namespaces", "run it as root")
        if only and only not in BENCHES:
            raise BadInput(f"bench {only!r}", "no such bench", f"one of {', '.join(BENCHES)}")
    except PodlaneError as error:
        words.print(str(error))
        return error.exit_status
    for name in [only] if only else BENCHES:
        start = time.monotonic()
        words.print(f"{name} …")
        try:
            found = BENCHES[name]()
        except PodlaneError as error:
            words.print(f"{name}: {error}")
            status = error.exit_status
            continue
        for result in found:
            report.write(result)
        results += found
        words.print(f"{name}: measured in {time.monotonic() - start:.0f} s")
    report.show(results, Console(highlight=False))
    return status


sys.exit(main())
