# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own end-to-end tests against a test cluster, and what they said as a table.

Must not judge: a test passed if Kubernetes' runner says so.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.cluster.cluster import TEST_REPOSITORY, Cluster

FOLDER = Path("build/conformance")

# Tests of [sig-network] that are not run, by a pattern of their names, and why.
LEFT_OUT = (
    (r"\[Feature:LoadBalancer\]", "waits for a cloud's load balancer"),
    (r"\[Feature:NetworkPolicy\]", "podlane has no NetworkPolicy"),
    (r"\[Feature:SCTPConnectivity\]", "needs the kernel's sctp module, which is missing here"),
    (r"\[Feature:Networking-(IPv4|IPv6|DNS)\]", "asks a host in the Internet"),
    (r"\[Feature:Networking-Performance\]", "measures with iperf2, which is no test of being right"),
    (r"\[Feature:PerformanceDNS\]", "measures CoreDNS with 10,000 Services"),
    (r"should forward PTR records lookup to upstream", "asks a name server in the Internet"),
    (r"\[Provider:GCE\]", "asks Google's name server"),
    (r"\[Feature:KubeProxyNFAcct\]", "reads a counter of kube-proxy's in the kernel's nfacct"),
    (r"\[Feature:KubeProxyDaemonSetMigration\]", "changes how a cloud's nodes start kube-proxy"),
    (r"\[Feature:OffByDefault\]", "tests an alpha feature, which is off"),
    (r"KubeProxy should set TCP CLOSE_WAIT timeout",
     "reads the kernel's own connection tracking with programs that are not here"),
    (r"should check kube-proxy urls", "asks kube-proxy's own port 10249 for its mode"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selection:
    """Tests to run together: those whose names match focus and not skip (regular expressions)."""

    name: str
    focus: str
    skip: str = ""


CONFORMANCE = Selection("conformance", r"\[sig-network\].*\[Conformance\]")
OTHERS = Selection(
    "others", r"\[sig-network\]", "|".join([r"\[Conformance\]", *(one for one, _ in LEFT_OUT)])
)


def run(cluster: Cluster, network: str, selections: Sequence[Selection], processes: int = 1) -> int:
    """Run one selection after the other, each test once; the first status that is not 0.

    Most tests wait most of the time, so that several processes are sooner done; what the tests
    themselves call serial runs alone. Writes build/conformance/NAME.xml, NAME being podlane or
    kube-proxy, with a suite a selection.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    junit = FOLDER / f"{'kube-proxy' if network == 'peer' else network}.xml"
    junit.unlink(missing_ok=True)
    suites = ElementTree.Element("testsuites")
    statuses = []
    for selection in selections:
        part = junit.with_name(f"{junit.stem}-{selection.name}.xml")
        part.unlink(missing_ok=True)
        statuses.append(_run(cluster, selection, part, processes))
        if part.is_file():
            suites.extend(ElementTree.parse(part).getroot().iter("testsuite"))
            ElementTree.ElementTree(suites).write(junit, encoding="utf-8", xml_declaration=True)
    return next((status for status in statuses if status), 0)


def _run(cluster: Cluster, selection: Selection, junit: Path, processes: int) -> int:
    control = cluster.control
    words = [
        *cluster.hosts.enter(cluster.places.outside), f"{control.programs}/ginkgo",
        f"--procs={processes}", f"--focus={selection.focus}",
        *([f"--skip={selection.skip}"] if selection.skip else []),
        f"--output-dir={junit.parent.resolve()}", f"--junit-report={junit.name}",
        "--no-color", "--timeout=90m", f"{control.programs}/e2e.test", "--",
        f"--kubeconfig={cluster.places.folder}/pki/admin.kubeconfig", "--provider=skeleton",
        f"--kubectl-path={control.programs}/kubectl", f"--num-nodes={cluster.places.node_count}",
        "--disable-log-dump", "--allowed-not-ready-nodes=0",
    ]  # fmt: skip
    with junit.with_suffix(".log").open("w") as output:
        status = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "KUBE_TEST_REPO": TEST_REPOSITORY},
        ).returncode  # fmt: skip
    found = results(junit)
    for name, (word, reason) in found.items():
        if word == "failed":
            print(f"FAILED {name}: {reason[:300]}")
    counts = {word: sum(word == which for which, _ in found.values()) for word in WORDS}
    print(f"{selection.name}: {', '.join(f'{n} {word}' for word, n in counts.items())}"
          f" ({junit.with_suffix('.log')})", flush=True)  # fmt: skip
    return status


WORDS = ("passed", "failed", "skipped")


def results(junit: Path) -> dict[str, tuple[str, str]]:
    """Each test that was chosen: `passed`, `failed` or `skipped`, and why where it is not passed."""
    found: dict[str, tuple[str, str]] = {}
    for name, case in _cases(junit):
        failure, skipped = case.find("failure"), case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "")
            if reason != "skipped":  # that is one which nobody chose
                found[name] = ("skipped", " ".join(reason.removeprefix("skipped - ").split()))
        elif failure is not None or case.find("error") is not None:
            why = failure.get("message", "") if failure is not None else "error"
            found[name] = ("failed", " ".join(why.split()))
        else:
            found[name] = ("passed", "")
    return found


def left_out(junit: Path) -> dict[str, str]:
    """The tests of [sig-network] that the runner knows and LEFT_OUT names, each with the reason."""
    return {
        name: reason
        for name, _ in _cases(junit)
        for pattern, reason in LEFT_OUT
        if "[sig-network]" in name and re.search(pattern, name)
    }


def _cases(junit: Path) -> list[tuple[str, ElementTree.Element]]:
    """Every test that the runner names, chosen or not."""
    if not junit.is_file():
        return []
    cases = ElementTree.parse(junit).getroot().iter("testcase")
    return [
        (name.removeprefix("[It] "), case)
        for case in cases
        if (name := case.get("name", "")).startswith("[It] ")
    ]
