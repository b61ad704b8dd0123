# SPDX-License-Identifier: Apache-2.0
"""podlane in the test cluster, installed as a user would: the image, and `kubectl apply`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cluster.control import Control

IMAGE = Path("build/podlane-image.tar")
PODLANE = Path(sys.executable).parent / "podlane"


def image() -> Path:
    """The image's archive, made by `make image`."""
    if not IMAGE.is_file():
        raise RuntimeError(f"{IMAGE} is not there: `make image` makes it")
    return IMAGE.resolve()


def manifests(control: Control, mode: str) -> str:
    """What `podlane manifests` prints for this cluster."""
    words = [str(PODLANE), "manifests", "--api-server", control.places.server, "--mode", mode]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def install(control: Control, mode: str) -> None:
    """`podlane manifests … | kubectl apply -f -`."""
    control.kubectl("apply -f -", stdin=manifests(control, mode))
