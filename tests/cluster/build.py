# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own programs for the test cluster, built from published Go modules and kept.

Must not build anew what is there: the cache's folder is named by what went into it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

VERSION = "v1.34.4"
MODULE = Path(__file__).parent / "kubernetes"
PACKAGES = {
    "kubernetes": ".",
    "agnhost": "k8s.io/kubernetes/test/images/agnhost",
    "regression-issue-74839": "k8s.io/kubernetes/test/images/regression-issue-74839",
}
E2E = "k8s.io/kubernetes/test/e2e"
RUNNER = "github.com/onsi/ginkgo/v2/ginkgo"  # runs the tests of e2e.test in several processes
_VERSION_PACKAGE = "k8s.io/component-base/version"


def cache() -> Path:
    """Where the built programs are kept between runs and checkouts."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = sha256(VERSION.encode())
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((MODULE / name).read_bytes())
    digest.update(_go("version").encode())
    return base / "podlane" / f"kubernetes-{VERSION}-{digest.hexdigest()[:12]}"


def programs(with_tests: bool = False) -> Path:
    """Build what is missing; the folder with `kubernetes`, `kubectl`, `agnhost`, and for tests
    `e2e.test` and `ginkgo`."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    major, minor = VERSION[1:].split(".")[:2]
    values = {
        "gitVersion": VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean",
    }  # fmt: skip
    flags = " ".join(f"-X {_VERSION_PACKAGE}.{name}={value}" for name, value in values.items())
    common = ["-ldflags", f"-s -w {flags}"]
    for name, package in PACKAGES.items():
        _build(folder / name, ["build", *common], package)
    _fetch_certificate(folder)
    kubectl = folder / "kubectl"
    if not kubectl.is_symlink():
        kubectl.symlink_to("kubernetes")
    if with_tests:
        _build(folder / "e2e.test", ["test", "-c", "-vet=off", *common], E2E)
        _build(folder / "ginkgo", ["build", *common], RUNNER)
    return folder


def _build(target: Path, words: list[str], package: str) -> None:
    if target.is_file():
        return
    print(f"cluster: building {target.name} (minutes, the first time)", flush=True)
    part = target.with_suffix(".part")
    environment = {**os.environ, "GOFLAGS": "-buildvcs=false"}
    subprocess.run(
        ["go", *words, "-o", str(part), package], cwd=MODULE, env=environment, check=True
    )
    part.rename(target)


def _fetch_certificate(folder: Path) -> None:
    """agnhost's TLS servers read their certificate from the image's root."""
    if (folder / "localhost.key").is_file():
        return
    listed = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"],
        cwd=MODULE, capture_output=True, text=True, check=True,
    )  # fmt: skip
    porter = Path(listed.stdout.strip()) / "test/images/agnhost/porter"
    for name in ("localhost.crt", "localhost.key"):
        shutil.copyfile(porter / name, folder / name)


def _go(*words: str) -> str:
    if shutil.which("go") is None:
        raise SystemExit("cluster: there is no Go (1.24 or newer) on the PATH")
    return subprocess.run(["go", *words], capture_output=True, text=True, check=True).stdout
