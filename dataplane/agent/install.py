# SPDX-License-Identifier: Apache-2.0
"""The plugin and the conflist in a runtime's two folders: put there whole, and taken away.

Every file comes by a temporary one and a rename, so that none is ever half there or
"busy". The conflist is the runtime's word that pods can come, so the agent writes it when
the datapath is up, and it is inert (another ending) until it is renamed inside the folder:
a runtime looks again on a rename. Must not know what the plugin does.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
from collections.abc import Iterator
from pathlib import Path

from dataplane.agent.config import Config
from dataplane.agent.rundir import SOCKET
from dataplane.kernel.source import find_sources
from dataplane.model.errors import BadEnvironment
from dataplane.model.objects import Problem

PLUGIN, LOOPBACK, CONFLIST = "podlane-cni", "loopback", "05-podlane.conflist"
_SHIPPED = Path("/usr/share/podlane/podlane-cni")
_INERT = ".inert"
_CONFIGS = (".conf", ".conflist", ".json")


def plugin(config: Config) -> Iterator[str]:
    """Put the plugin into its folder, and a `loopback` beside it if there is none.

    containerd before version 2 calls a plugin of that name for every pod. Yields words on
    each file that changed.

    Raises:
        BadEnvironment: it is not built, or the folder can't be written.
    """
    source = _binary()
    target = config.cni_bin_dir / PLUGIN
    ours = _is_ours(config)
    try:
        config.cni_bin_dir.mkdir(parents=True, exist_ok=True)
        for place in (target, config.cni_bin_dir / LOOPBACK):
            there = place.exists()
            if there and (
                filecmp.cmp(source, place, shallow=False) or not (ours or place == target)
            ):
                continue
            _put(place, source.read_bytes(), 0o755)
            yield f"{place} installed"
    except OSError as failure:
        raise BadEnvironment(
            f"plugin folder {config.cni_bin_dir}", str(failure), "correct cniBinDir, run as root"
        ) from failure


def conflist(config: Config) -> bool:
    """Write the conflist if the plugin is there to be called; whether it is there now.

    Raises:
        BadEnvironment: the folder can't be written.
    """
    if not (config.cni_bin_dir / PLUGIN).exists():
        return False
    text = json.dumps(_conflist(config), indent=2) + "\n"
    place = config.cni_conf_dir / CONFLIST
    try:
        if not (place.exists() and place.read_text(encoding="utf-8") == text):
            config.cni_conf_dir.mkdir(parents=True, exist_ok=True)
            _put(place, text.encode(), 0o644)
    except OSError as failure:
        raise BadEnvironment(
            f"network configuration {place}", str(failure), "correct cniConfDir, run as root"
        ) from failure
    return True


def shadowed(config: Config) -> tuple[Problem, ...]:
    """What keeps a runtime from our conflist: another network's file that comes first by name.

    containerd takes the first .conf, .conflist or .json of the folder (go-cni's defaults).
    """
    try:
        found = [one.name for one in config.cni_conf_dir.iterdir() if one.suffix in _CONFIGS]
    except OSError:
        return ()
    first = min((name for name in found if name < CONFLIST), default=None)
    if first is None:
        return ()
    why = f"comes before {CONFLIST}: the runtime gives pods that network; take the file away"
    return (Problem(f"network configuration {config.cni_conf_dir / first}", "name", why),)


def withdraw(config: Config) -> bool:
    """Take the conflist away, so that no runtime sends a pod; whether it was there."""
    try:
        (config.cni_conf_dir / CONFLIST).unlink()
    except FileNotFoundError:
        return False
    return True


def remove(config: Config) -> Iterator[str]:
    """Take all of it away, the conflist first; others' files and the folders stay."""
    if withdraw(config):
        yield f"{config.cni_conf_dir / CONFLIST} removed"
    ours = _is_ours(config)
    for place in (config.cni_bin_dir / LOOPBACK, config.cni_bin_dir / PLUGIN):
        if place.exists() and (ours or place.name == PLUGIN):
            place.unlink()
            yield f"{place} removed"


def _is_ours(config: Config) -> bool:
    """Whether the `loopback` there is our plugin under that name."""
    pair = config.cni_bin_dir / LOOPBACK, config.cni_bin_dir / PLUGIN
    return all(one.exists() for one in pair) and filecmp.cmp(*pair, shallow=False)


def _conflist(config: Config) -> dict[str, object]:
    capabilities = {"portMappings": True, "ips": True, "mac": True, "bandwidth": True}
    return {
        # A containerd of any version takes it; podlane answers to 1.1.0 as well.
        "cniVersion": "1.0.0",
        "name": "podlane",
        "plugins": [
            {
                "type": PLUGIN,
                "socket": str(config.run_dir / SOCKET),
                "stateDir": str(config.state_dir),
                "capabilities": capabilities,
            }
        ],
    }


def _binary() -> Path:
    sources = find_sources()
    found = sources.parent / "build" / PLUGIN if sources else _SHIPPED
    if not found.exists():
        raise BadEnvironment(f"plugin {found}", "is not built", "run `make tools`")
    return found


def _put(place: Path, content: bytes, mode: int) -> None:
    temporary = place.with_name(f".{place.name}{_INERT}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
