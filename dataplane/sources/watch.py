# SPDX-License-Identifier: Apache-2.0
"""A folder of manifests, followed: what changed, as batches.

Polls names, inodes, times and sizes (no notification works on every file system).
Must not write, and never takes a file that is being written for what it will be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from dataplane.model.errors import BadInput
from dataplane.model.objects import Batch, Problem
from dataplane.sources.documents import folder_files, read_text
from dataplane.sources.manifests import Manifests, difference, merge, objects, refused_links
from dataplane.sources.parsing import Parsed, parse_text

POLL_SECONDS = 0.1
SETTLE_SECONDS = 0.03
IMPATIENCE_SECONDS = 1.0

# What tells one state of a file from another: inode, time of change, size.
_State = tuple[int, int, int]
_Listing = dict[Path, _State]


async def watch(directory: str | Path) -> AsyncGenerator[Batch, None]:
    """The objects of a folder, then each change to them; never ends.

    A change is taken once the folder looked the same twice, 30 ms apart, or a second after
    it began. A file that can't be used then keeps its last good state, and the batch's
    problems name it.

    Raises:
        BadInput: at the start, the folder can't be read or a file of it does not parse.
            (To start without one file would be to delete its Services.)
    """
    folder = _Folder(Path(directory))
    manifests = await asyncio.to_thread(folder.read_all)
    now, problems = objects(manifests)
    yield difference(now, {}, problems)
    while True:
        await asyncio.sleep(POLL_SECONDS)
        listing = folder.look()
        if listing == folder.listing:
            continue
        manifests = await asyncio.to_thread(folder.update, await _settled(folder, listing))
        before, told = now, problems
        now, problems = objects(manifests)
        batch = difference(now, before, problems)
        if batch.upserts or batch.deletes or problems != told:
            yield batch


async def _settled(folder: _Folder, listing: _Listing) -> _Listing:
    """The first listing that stays for a moment; the newest when patience ends."""
    for _ in range(int(IMPATIENCE_SECONDS / SETTLE_SECONDS)):
        await asyncio.sleep(SETTLE_SECONDS)
        newer = folder.look()
        if newer == listing:
            break
        listing = newer
    return listing


class _Folder:
    """A folder as last read, file by file, so that only what changed is parsed again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.listing: _Listing = {}
        self._parsed: dict[Path, Parsed] = {}
        self._failed: dict[Path, Problem] = {}
        self._refused: list[Path] = []

    def look(self) -> _Listing:
        """The state of each file now; as before if the folder can't be read."""
        try:
            files, self._refused = folder_files(self.directory)
        except BadInput:
            return self.listing
        listing: _Listing = {}
        for file in files:
            try:
                status = file.stat()
            except OSError:
                continue  # gone since the folder was listed
            listing[file] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return listing

    def read_all(self) -> Manifests:
        """The first reading, which takes nothing that is not whole."""
        if not self.directory.is_dir():
            raise BadInput(str(self.directory), "is not a folder", "give a folder of manifests")
        folder_files(self.directory)
        self.listing = self.look()
        self._parsed = {file: parse_text(str(file), read_text(file)) for file in self.listing}
        return self._merged()

    def update(self, listing: _Listing) -> Manifests:
        """Read what is new in `listing`; forget what is not in it."""
        for file in self.listing.keys() - listing.keys():
            self._parsed.pop(file, None)
            self._failed.pop(file, None)
        for file in sorted(listing):
            if self.listing.get(file) == listing[file]:
                continue
            self._failed.pop(file, None)
            try:
                self._parsed[file] = parse_text(str(file), read_text(file))
            except BadInput as error:
                kept = "its last good state stays" if file in self._parsed else "not served"
                self._failed[file] = Problem(error.what, "file", f"{error.why}; {kept}")
        self.listing = listing
        return self._merged()

    def _merged(self) -> Manifests:
        failed = Parsed(problems=[self._failed[file] for file in sorted(self._failed)])
        parsed = [self._parsed[file] for file in sorted(self._parsed)]
        return merge([failed, refused_links(self._refused), *parsed])
