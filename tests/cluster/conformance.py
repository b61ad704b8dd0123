# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own end-to-end tests against a test cluster, and what they said as a table.

Must not judge: a test passed if Kubernetes' runner says so.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from tests.cluster.cluster import TEST_REPOSITORY, Cluster

CONFORMANCE = r"\[sig-network\].*\[Conformance\]"
FOLDER = Path("build/conformance")


def run(cluster: Cluster, network: str, focus: str, skip: str) -> int:
    """Run the tests that focus matches, a failed one once more; the runner's exit status.

    Writes build/conformance/NAME.xml, NAME being podlane or kube-proxy.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    junit = FOLDER / f"{'kube-proxy' if network == 'peer' else network}.xml"
    junit.unlink(missing_ok=True)
    control = cluster.control
    words = [
        *cluster.hosts.enter(cluster.places.outside), f"{control.programs}/e2e.test",
        f"--kubeconfig={cluster.places.folder}/pki/admin.kubeconfig", "--provider=skeleton",
        f"--kubectl-path={control.programs}/kubectl",
        f"--num-nodes={cluster.places.node_count}", f"--ginkgo.focus={focus}",
        f"--ginkgo.junit-report={junit.resolve()}", "--ginkgo.no-color", "--ginkgo.timeout=60m",
        "--ginkgo.flake-attempts=2",
        "--disable-log-dump", "--allowed-not-ready-nodes=0",
    ]  # fmt: skip
    if skip:
        words.append(f"--ginkgo.skip={skip}")
    log = FOLDER / f"{junit.stem}.log"
    with log.open("w") as output:
        status = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "KUBE_TEST_REPO": TEST_REPOSITORY},
        ).returncode  # fmt: skip
    found = results(junit)
    for name, (word, reason) in found.items():
        if word == "failed":
            print(f"FAILED {name}: {reason[:300]}")
    counts = [sum(word == which for word, _ in found.values()) for which in ("passed", "failed")]
    tries = log.read_text(encoding="utf-8", errors="replace").count("[FLAKEY TEST")
    if tries:
        print(f"passed only when tried again: {tries} (the log names them: {log})")
    print(f"{counts[0]} passed, {counts[1]} failed")
    return status


def results(junit: Path) -> dict[str, tuple[str, str]]:
    """Each test that was chosen: `passed`, `failed` or `skipped`, and why where it is not passed."""
    found: dict[str, tuple[str, str]] = {}
    if not junit.is_file():
        return found
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        name = case.get("name", "")
        if not name.startswith("[It] "):
            continue
        failure, skipped = case.find("failure"), case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "")
            if reason != "skipped":  # that is one which nobody chose
                found[name[5:]] = ("skipped", reason.removeprefix("skipped - "))
        elif failure is not None or case.find("error") is not None:
            why = failure.get("message", "") if failure is not None else "error"
            found[name[5:]] = ("failed", " ".join(why.split()))
        else:
            found[name[5:]] = ("passed", "")
    return found
