# SPDX-License-Identifier: Apache-2.0
"""Images for the test cluster, packed from this machine's programs, as `docker save` writes them.

No registry is asked: kubelets find all that they need, under the names that it is asked for.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.cluster.hosts import run

PAUSE = "localhost/podlane-pause:test"
COREDNS = "localhost/podlane-coredns:test"
AGNHOST = "localhost/podlane-agnhost:test"
REGRESSION = "regression-issue-74839"  # Kubernetes' image of a server that sends out of window
REGRESSION_HERE = f"localhost/podlane-{REGRESSION}:test"

# What the tests' shells call inside their pods, from Debian's packages of this machine.
TOOLS = ("/bin/bash", "/bin/dash", "/usr/bin/curl", "/bin/nc.openbsd", "/usr/bin/dig", "/usr/bin/wget",
         "/usr/bin/getent", "/sbin/ip", "/bin/ss")  # fmt: skip
BUSYBOX = Path("/bin/busybox")
# Not its shell, which runs its own applets before others' programs.
APPLETS = ("cat", "cp", "date", "dd", "echo", "env", "grep", "hostname", "id", "ls",
           "mkdir", "netstat", "nslookup", "ping", "printf", "rm", "sed", "seq", "sleep", "sort",
           "stat", "tail", "tar", "tee", "test", "timeout", "touch", "tr", "true", "uname",
           "vi", "wc", "xargs", "awk", "head", "cut", "expr", "kill", "ps", "false")  # fmt: skip


@dataclass
class Image:
    """Files by their path (content from a file of this machine, or bytes), links, and a command."""

    names: Sequence[str]
    files: dict[str, Path | bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()

    def write(self, target: Path) -> Path:
        """Pack it into one archive with one layer."""
        layer = target.with_suffix(".layer")
        with tarfile.open(layer, "w") as tar:
            for folder in ("tmp", "etc", "uploads", "var", "proc", "sys", "dev"):
                _folder(tar, folder, 0o1777 if folder in ("tmp", "uploads") else 0o755)
            for name, source in sorted(self.files.items()):
                _put(tar, name, source)
            for name, to in sorted(self.links.items()):
                entry = tarfile.TarInfo(name.lstrip("/"))
                entry.type, entry.linkname = tarfile.SYMTYPE, to
                tar.addfile(entry)
        digest = sha256(layer.read_bytes()).hexdigest()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(self.entrypoint), "Cmd": list(self.command),
                       "Env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"],
                       "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }  # fmt: skip
        manifest = [
            {"Config": "config.json", "RepoTags": list(self.names), "Layers": ["layer.tar"]}
        ]
        with tarfile.open(target, "w") as tar:
            _put(tar, "config.json", json.dumps(config).encode())
            tar.add(layer, "layer.tar")
            _put(tar, "manifest.json", json.dumps(manifest).encode())
        layer.unlink()
        return target


def _folder(tar: tarfile.TarFile, name: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    tar.addfile(entry)


def _put(tar: tarfile.TarFile, name: str, source: Path | bytes) -> None:
    entry = tarfile.TarInfo(name.lstrip("/"))
    entry.mode = 0o755
    if isinstance(source, bytes):
        entry.size = len(source)
        tar.addfile(entry, io.BytesIO(source))
    else:
        entry.size = source.stat().st_size
        with source.open("rb") as content:
            tar.addfile(entry, content)


def with_libraries(programs: Sequence[str]) -> dict[str, Path | bytes]:
    """Programs of this machine and the shared libraries that they load, by path."""
    found: dict[str, Path | bytes] = {}
    for program in programs:
        found[program] = Path(program)
        for library in re.findall(r"(/\S+) \(0x", run(f"ldd {program}", check=False)):
            found[library] = Path(library)
    return found


def _as(name: str, program: Path) -> dict[str, Path | bytes]:
    """A program under another path, with its libraries."""
    files = with_libraries([str(program)])
    files[name] = files.pop(str(program))
    return files


def _agnhost(programs: Path) -> dict[str, Path | bytes]:
    certificate = {f"/{name}": programs / name for name in ("localhost.crt", "localhost.key")}
    return {**_debian(), **_as("/agnhost", programs / "agnhost"),
            **_as("/coredns", programs / "kubernetes"), **certificate}  # fmt: skip


_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"


def _debian() -> dict[str, Path | bytes]:
    return {
        **with_libraries(TOOLS),
        "/bin/busybox": BUSYBOX,
        "/etc/passwd": _PASSWD,
        "/etc/group": b"root:x:0:\nnogroup:x:65534:\n",
        "/etc/nsswitch.conf": b"hosts: files dns\n",
    }


def make(programs: Path, folder: Path, test_names: Sequence[str] = ()) -> list[Path]:
    """All images of the cluster, as archives in a folder.

    Of the names that tests ask for, those without an image of their own here are agnhost's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kubernetes = programs / "kubernetes"
    tools: Mapping[str, str] = {
        **{f"/bin/{name}": "busybox" for name in APPLETS},
        "/bin/sh": "dash",
        "/bin/nc": "nc.openbsd",
        "/agnhost-2": "agnhost",
    }
    images = {
        "pause": Image(
            [PAUSE], {"/bin/busybox": BUSYBOX}, {},
            ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait; done"],
        ),
        "coredns": Image([COREDNS], _as("/coredns", kubernetes), {}, ["/coredns"]),
        "agnhost": Image(
            [AGNHOST, *(name for name in test_names if REGRESSION not in name)],
            _agnhost(programs), dict(tools), ["/agnhost"], ["pause"],
        ),
        REGRESSION: Image(
            [REGRESSION_HERE, *(name for name in test_names if REGRESSION in name)],
            _as(f"/{REGRESSION}", programs / REGRESSION), {}, [f"/{REGRESSION}"],
        ),
    }  # fmt: skip
    images["pause"].links["/bin/sleep"] = "busybox"
    return [image.write(folder / f"{name}.tar") for name, image in images.items()]
