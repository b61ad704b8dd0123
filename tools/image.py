# SPDX-License-Identifier: Apache-2.0
"""Two steps of tools/image.sh: which locked packages podlane needs to run, and a folder as an image.

requirements            prints those lines of requirements.lock, with their hashes
pack ROOT NAME OUT      writes the folder as an archive that containerd and Docker import
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
from importlib import metadata
from pathlib import Path

PROJECT = "podlane"
LOCK = Path("requirements.lock")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def needed(name: str = PROJECT) -> set[str]:
    """The packages that one needs, and those that they need; extras (dev) do not count."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for words in metadata.requires(waiting.pop()) or ():
            requirement, _, marker = words.partition(";")
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            one = _plain(match[0]) if match else ""
            if "extra" in marker or one in found or not _is_here(one):
                continue  # what is not here is for another system
            found.add(one)
            waiting.append(one)
    return found


def requirements() -> str:
    """Their lines of the lock file."""
    wanted = needed()
    blocks = re.split(r"\n(?=\S)", LOCK.read_text(encoding="utf-8").rstrip("\n"))
    chosen = {_plain(block.partition("==")[0]): block for block in blocks}
    if missing := wanted - chosen.keys():
        raise SystemExit(f"image: not in {LOCK}: {', '.join(sorted(missing))}; run `make lock`")
    return "\n".join(chosen[name] for name in sorted(wanted)) + "\n"


def pack(root: Path, name: str, out: Path) -> None:
    """One layer, sorted and without times, so that the same content is the same image."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for path in sorted(root.rglob("*")):
            entry = tar.gettarinfo(path, str(path.relative_to(root)))
            if entry is None or entry.isdev():
                continue  # a container's runtime makes its own
            entry.mtime, entry.uname, entry.gname = 0, "", ""
            if entry.isreg():
                with path.open("rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)
    raw = layer.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [f"PATH={PATH}"], "Entrypoint": ["/usr/local/bin/podlane"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(raw).hexdigest()}"]},
        "history": [{"created_by": "tools/image.sh"}],
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    temporary = out.with_name(f".{out.name}")
    with tarfile.open(temporary, "w") as tar:
        for file, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", raw),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(file)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    temporary.replace(out)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _is_here(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    match sys.argv[1:]:
        case ["requirements"]:
            print(requirements(), end="")
        case ["pack", root, name, out]:
            pack(Path(root), name, Path(out))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
