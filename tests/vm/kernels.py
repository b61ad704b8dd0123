# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels, downloaded by apt and unpacked beside the checkout's other build output.

Must not install anything or change apt's own state: each suite has a source list, package lists
and a download folder of its own, read from the mirror that this machine's apt already uses.
Signatures are apt's to check, against Debian's archive keyring.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FRESH_SECONDS = 24 * 3600

# What a guest needs of a kernel's packages: its image, and the modules of a network node.
_WANTED = re.compile(
    r"/vmlinuz[^/]*$|/modules\.(builtin[^/]*|order)$"
    r"|/kernel/(net|lib|crypto|arch)/"
    r"|/kernel/fs/(9p|netfs|fscache|fuse|overlayfs)/"
    r"|/kernel/drivers/(virtio/|char/virtio_console\.|net/vxlan/|net/[^/]+\.ko)"
)
_PACKAGE = re.compile(r"^linux-(image|modules|binary)-\d\S+$")


class KernelError(Exception):
    """A kernel can't be had; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a kernel comes from: `name` is ours, `suite` Debian's."""

    name: str
    suite: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: what `make test-vm` calls it, its image and the busybox for its boot."""

    name: str
    image: Path
    busybox: Path


SOURCES = {
    source.name: source
    for source in (
        Source("6.1", "bookworm"),
        Source("6.12", "bookworm-backports"),
        Source("newest", "sid"),
    )
}


def mirror(index_targets: str) -> str:
    """The address of the Debian mirror among the lines `RELEASE COMPONENT REPO_URI`.

    Raises:
        KernelError: none of them is Debian's main archive.
    """
    for line in index_targets.splitlines():
        release, component, uri = line.split()
        if release in ("bookworm", "oldstable", "stable") and component == "main":
            return uri
    raise KernelError(
        "apt's sources name no mirror of Debian 12's main archive: kernels come from it, add one"
    )


def _run(command: list[str], what: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)
    if done.returncode != 0:
        raise KernelError(f"{what}: {' '.join(done.stderr.split())[-600:]}")
    return done.stdout


def _apt_options(folder: Path, suite: str) -> list[str]:
    """Options that give apt a source list and a state of their own in a folder."""
    targets = _run(
        ["apt-get", "indextargets", "Created-By: Packages"]
        + ["--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"],
        "apt's sources can't be read",
    )
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    sources = folder / "debian.sources"
    sources.write_text(
        f"Types: deb\nURIs: {mirror(targets)}\nSuites: {suite}\nComponents: main\n"
        f"Signed-By: {KEYRING}\n",
        encoding="utf-8",
    )
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def _unpack(package: Path, into: Path, wanted: re.Pattern[str]) -> None:
    """Put a package's wanted files into a folder, modules decompressed (busybox loads no other)."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as unpacker:
        assert unpacker.stdout is not None
        with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
            for member in archive:
                data = archive.extractfile(member) if member.isfile() else None
                if data is None or not wanted.search(member.name):
                    continue
                target = into / member.name
                content = data.read()
                if target.suffix == ".xz":
                    target, content = target.with_suffix(""), lzma.decompress(content)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                target.chmod(member.mode & 0o777)
    if unpacker.returncode != 0:
        raise KernelError(f"{package.name} can't be unpacked (dpkg-deb: {unpacker.returncode})")


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise KernelError(f"{folder} has no {pattern}: delete that folder and try again")
    return found[-1]


def _fetch(source: Source, folder: Path) -> None:
    """Download and unpack a suite's newest kernel and busybox into `folder`/root."""
    apt = _apt_options(folder, source.suite)
    _run(["apt-get", *apt, "update", "--error-on=any"], f"package lists of {source.suite}")
    depends = _run(
        ["apt-cache", *apt, "depends", "--recurse", "--important", "linux-image-amd64"],
        f"linux-image-amd64 of {source.suite}",
    )
    packages = [line for line in depends.splitlines() if _PACKAGE.match(line)]
    if not packages:
        raise KernelError(f"{source.suite} has no kernel behind linux-image-amd64")
    root, marker = folder / "root", folder / "packages"
    names = " ".join(sorted(packages))
    if root.is_dir() and marker.is_file() and marker.read_text(encoding="utf-8") == names:
        marker.touch()
        return
    marker.unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    downloads = folder / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir()
    _run(["apt-get", *apt, "download", *packages], f"kernel of {source.suite}", downloads)
    for package in sorted(downloads.glob("*.deb")):
        _unpack(package, root, _WANTED)
    shutil.rmtree(downloads)
    marker.write_text(names, encoding="utf-8")


def obtain(name: str, cache: Path) -> Kernel:
    """A kernel by our name for it, from the cache if that was looked after within a day.

    Raises:
        KernelError: no such name, or it can't be downloaded and none is there from before.
    """
    if name not in SOURCES:
        raise KernelError(f"no kernel is called {name!r} here: choose of {', '.join(SOURCES)}")
    folder = cache / name
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "packages"
    if not marker.is_file() or time.time() - marker.stat().st_mtime > FRESH_SECONDS:
        try:
            _fetch(SOURCES[name], folder)
        except KernelError as error:
            if not marker.is_file() or not (folder / "root").is_dir():
                raise
            print(f"{name}: going on with the kernel of the last download ({error})")
    return Kernel(name, _find(folder / "root", "**/vmlinuz*"), busybox(cache))


def busybox(cache: Path) -> Path:
    """The static busybox of Debian 12 that the guest's first steps use.

    It is unpacked, not installed: the package would replace a machine's own busybox.
    """
    folder = cache / "busybox"
    binary = folder / "bin/busybox"
    if not binary.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        apt = _apt_options(folder, SOURCES["6.1"].suite)
        _run(["apt-get", *apt, "update", "--error-on=any"], "package lists for busybox-static")
        _run(["apt-get", *apt, "download", "busybox-static"], "busybox-static", folder)
        _unpack(_find(folder, "busybox-static_*.deb"), folder, re.compile(r"/bin/busybox$"))
    return binary
