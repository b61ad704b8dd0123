# SPDX-License-Identifier: Apache-2.0
"""The node's own sockets: programs on the cgroup that its processes are in.

Must not decide which backends are served (core) nor touch sockets of other namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from dataplane.abi.layout import abi
from dataplane.agent.config import Config
from dataplane.kernel import sockets
from dataplane.kernel.bundle import Bundle
from dataplane.kernel.loader import Datapath
from dataplane.model.net import Family


class NodeSockets:
    """Programs at the system calls of one node's processes.

    Raises BadEnvironment when made, if there is no cgroup2 to put them on.
    """

    def __init__(self, config: Config, bundle: Bundle, datapath: Datapath) -> None:
        self._bpffs = config.bpffs_dir
        self._root = config.bpffs_dir / f"v{abi(Family.V4).constant('ABI_VERSION')}"
        self._places = sockets.places(bundle)
        self._programs = datapath.programs
        self.cgroup = sockets.find_cgroup(config.cgroup_root)

    def attach(self, undo: ExitStack) -> Iterator[str]:
        """Put the programs in place, and let go of other versions'; words on what moved.

        Raises:
            BadEnvironment: the kernel refuses.
        """
        if not (self._root / sockets.FOLDER).exists():
            undo.callback(sockets.detach, self._bpffs)
        for name in sockets.attach(self._places, self._programs, self.cgroup, self._root):
            yield f"{name} on {self.cgroup}"
        for path in sockets.drop_other_versions(self._root):
            yield f"{path} removed, of another version"

    def care(self) -> Iterator[str]:
        """Put back what somebody took away."""
        if sockets.wrong(self._places, self._programs, self.cgroup, self._root):
            with ExitStack() as undo:
                yield from self.attach(undo)
                undo.pop_all()
