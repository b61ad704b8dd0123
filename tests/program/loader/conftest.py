# SPDX-License-Identifier: Apache-2.0
"""The compiled bundle, and a bpffs of the test's own."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.bundle import Bundle
from dataplane.kernel.compiler import compile_bundle


@pytest.fixture(scope="session")
def bundle(pytestconfig: pytest.Config) -> Bundle:
    """What the sources compile to; compiled only if they changed."""
    return compile_bundle(pytestconfig.rootpath / "build/podlane.bundle")


@pytest.fixture
def quick(bundle: Bundle) -> Bundle:
    """The bundle less the programs that take the verifier long."""
    few = tuple(p for p in bundle.programs if p.verified < 5000)
    assert few
    return dataclasses.replace(bundle, programs=few, fingerprint="quick")


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A folder with a bpffs mounted on it."""
    folder = tmp_path / "bpffs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
