# SPDX-License-Identifier: Apache-2.0
"""Take all that podlane put on a node away: pods' devices, filters, routes, settings, pins.

Each thing is told from others' by a mark of ours (name, handle, route protocol, the
store), so that it works with half of it gone, and twice. Must not run beside an agent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from dataplane.agent import install, pins, settings
from dataplane.agent.config import Config
from dataplane.agent.facts import GATEWAY_MAC, HOST_VETH, OVERLAY_NAME, OVERLAY_PORT
from dataplane.agent.main import STORE
from dataplane.agent.node import remembered_routers
from dataplane.agent.releases import FOLDER
from dataplane.agent.rundir import LOCK, SOCKET, STATUS, RunDir
from dataplane.cni.store import Store
from dataplane.kernel import sockets
from dataplane.kernel.hooks import Role, detach
from dataplane.kernel.netlink import OUR_ROUTES, Links
from dataplane.model.errors import BadEnvironment


def run(config: Config) -> Iterator[str]:
    """Take it away, in an order that never leaves a pod with half a datapath.

    Yields past-tense words on each thing that was taken.

    Raises:
        BadEnvironment: no root, or an agent runs.
    """
    if os.geteuid() != 0:
        raise BadEnvironment("podlane uninstall", "needs root", "run it with sudo")
    with ExitStack() as closing:
        rundir = RunDir(config.run_dir, config.node_name)
        rundir.take()
        closing.callback(rundir.release)
        links = closing.enter_context(Links())
        yield from install.remove(config)
        had_state = (config.state_dir / STORE).exists()
        store = closing.enter_context(Store(config.state_dir / STORE))
        taken = sockets.detach(config.bpffs_dir)
        if taken:
            yield f"{taken} socket programs taken off"
        yield from _devices(links)
        yield from _filters(links, store)
        yield from _routes_and_addresses(links, store)
        for name in settings.restore(links.sysctls, store):
            yield f"setting {name} put back"
        store.close()
        for folder in pins.remove(config.bpffs_dir):
            yield f"pins in {folder} removed"
        releases = config.state_dir / FOLDER
        if releases.is_dir():
            _folder(releases, list(releases.iterdir()))
        state = [config.state_dir / f"{STORE}{end}" for end in ("", "-wal", "-shm")]
        if _folder(config.state_dir, state) and had_state:
            yield f"state in {config.state_dir} removed"
        _folder(config.run_dir, [config.run_dir / name for name in (SOCKET, STATUS, LOCK)])
        yield f"run folder {config.run_dir} cleared"


def _devices(links: Links) -> Iterator[str]:
    for link in links.links():
        of_pod = HOST_VETH.fullmatch(link.name) and link.mac == GATEWAY_MAC
        overlay = link.name == OVERLAY_NAME and link.vxlan_port == OVERLAY_PORT
        if of_pod or (overlay and link.vxlan_metadata):
            links.delete_link(link.index)
            yield f"device {link.name} removed"


def _filters(links: Links, store: Store) -> Iterator[str]:
    ours = {what.removeprefix("clsact ") for what, before, _ in store.remembered()
            if what.startswith("clsact ") and before == "absent"}  # fmt: skip
    for link in links.links():
        taken = detach(links.tc, Role.UPLINK, link.index)
        if taken:
            yield f"{taken} filters taken off {link.name}"
        if link.name in ours and links.tc.remove_clsact_if_empty(link.index):
            yield f"clsact taken off {link.name}"


def _routes_and_addresses(links: Links, store: Store) -> Iterator[str]:
    for route in links.routes():
        if route.protocol == OUR_ROUTES:
            links.delete_route(route)
            yield f"route to {route.destination} removed"
    for router, device in remembered_routers(store):
        link = links.link(device)
        if link is not None and any(
            one.address == router.ip for one in links.addresses(link.index)
        ):
            links.delete_address(link.index, router.ip, router.network.prefixlen)
            yield f"address {router} removed from {device}"


def _folder(folder: Path, files: list[Path]) -> bool:
    """Remove files of ours, and the folder if nothing else is in it; whether it went."""
    for file in files:
        file.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        return False  # others' files are in it, or it is a mount
    return True
