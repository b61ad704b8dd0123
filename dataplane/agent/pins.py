# SPDX-License-Identifier: Apache-2.0
"""The pins of a node, taken away whole. Must not open them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def folders(bpffs: Path) -> list[Path]:
    """Our version folders (v1, …) below a node's bpffs folder."""
    return sorted(bpffs.glob("v[0-9]*"))


def remove(bpffs: Path) -> Iterator[Path]:
    """Unpin everything of ours, and remove the folder itself unless it is a mount or in use.

    Yields each version folder that went.
    """
    for version in folders(bpffs):
        for folder, _, names in os.walk(version, topdown=False):
            for name in names:
                (Path(folder) / name).unlink()
            Path(folder).rmdir()
        yield version
    if bpffs.is_dir() and not bpffs.is_mount() and not any(bpffs.iterdir()):
        bpffs.rmdir()
