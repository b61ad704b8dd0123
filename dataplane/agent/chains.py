# SPDX-License-Identifier: Apache-2.0
"""The runtime's network configurations, for plugins that can't stand behind ours in a chain.

A plugin is not told who comes after it, so the folder is looked at that the runtime reads.
Must not change it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dataplane.agent.install import PLUGIN
from dataplane.cni import protocol
from dataplane.cni.protocol import CniError

_Stamp = tuple[int, int, int]


class Chains:
    """Conflists of a folder; a file is read again when it is another one than before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[_Stamp, tuple[str, tuple[dict[str, Any], ...]]]] = {}

    def refuse(self, network: str, *, limits: bool) -> None:
        """Refuse a pod whose chain would shape it beside us; `limits`: it asks for some.

        Raises:
            CniError: Debian's bandwidth plugin wants an ingress qdisc where our clsact is,
                which the kernel refuses; and its other qdisc is passed by.
        """
        for name, (found, behind) in self._chains().items():
            for plugin in behind if found == network else ():
                if plugin.get("type") == "bandwidth" and _shapes(plugin, limits):
                    raise CniError(
                        protocol.BAD_CONFIG,
                        f"network {network}, plugin bandwidth in {self._folder / name}",
                        f"can't stand behind {PLUGIN}: its ingress qdisc wants the place of"
                        " podlane's programs, and packets straight into a pod pass its shaper by",
                        "take it out of the chain: podlane itself shapes pods as"
                        " runtimeConfig.bandwidth says (kubernetes.io/ingress-bandwidth and"
                        " egress-bandwidth)",
                    )

    def _chains(self) -> dict[str, tuple[str, tuple[dict[str, Any], ...]]]:
        """Name of the network and what comes after us, by file."""
        found = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".conflist"):
                        stat = entry.stat()
                        stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
                        before = self._read.get(entry.name)
                        if before is None or before[0] != stamp:
                            before = stamp, _behind_us(Path(entry.path))
                        found[entry.name] = before
        except OSError:
            pass  # no folder, or a file that has just gone: nothing to refuse by it
        self._read = found
        return {name: chain for name, (_, chain) in found.items()}


def _behind_us(file: Path) -> tuple[str, tuple[dict[str, Any], ...]]:
    try:
        document = json.loads(file.read_bytes())
        plugins = [one for one in document["plugins"] if isinstance(one, dict)]
        place = [one.get("type") for one in plugins].index(PLUGIN)
        return str(document["name"]), tuple(plugins[place + 1 :])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "", ()  # not ours, or nothing that a runtime could use


def _shapes(plugin: dict[str, Any], limits: bool) -> bool:
    capabilities = plugin.get("capabilities")
    by_pod = isinstance(capabilities, dict) and bool(capabilities.get("bandwidth"))
    return bool(plugin.get("egressRate") or plugin.get("ingressRate")) or (by_pod and limits)
