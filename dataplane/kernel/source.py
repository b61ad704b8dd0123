# SPDX-License-Identifier: Apache-2.0
"""The C source as one text, and what programs that text holds.

bcc keeps its rewrites of the main file only, so own includes are put into it, with
`#line` so that errors still name the real file. Must not know bcc or the kernel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import dataplane
from dataplane.kernel import bpf
from dataplane.model.errors import CompileError

MAIN = "datapath.c"
SHIM = "shim"
SHIPPED_BUNDLE = Path("/usr/share/podlane/podlane.bundle")

_OWN_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
_PROGRAM = re.compile(r"^int\s+(\w+)\s*\(\s*struct\s+(\w+)\s*\*", re.M)

# bcc puts lines before functions and joins calls that it rewrites; after these, count anew.
_RESTARTS = frozenset({"", "{"})

# Program type by what the program is given.
_CONTEXTS = {
    "__sk_buff": bpf.PROG_SCHED_CLS,
    "bpf_sock_addr": bpf.PROG_CGROUP_SOCK_ADDR,
    "bpf_sock": bpf.PROG_CGROUP_SOCK,
}

# Expected attach type of a cgroup's program by name and family. Those for IPv4 inside of
# IPv6 sockets sit where IPv6's do.
_ATTACH_TYPES = {
    "connect": {4: bpf.CGROUP_INET4_CONNECT, 6: bpf.CGROUP_INET6_CONNECT},
    "connect_mapped": {4: bpf.CGROUP_INET6_CONNECT},
    "sendmsg": {4: bpf.CGROUP_UDP4_SENDMSG, 6: bpf.CGROUP_UDP6_SENDMSG},
    "recvmsg": {4: bpf.CGROUP_UDP4_RECVMSG, 6: bpf.CGROUP_UDP6_RECVMSG},
    "recvmsg_mapped": {4: bpf.CGROUP_UDP6_RECVMSG},
    "getpeername": {4: bpf.CGROUP_INET4_GETPEERNAME, 6: bpf.CGROUP_INET6_GETPEERNAME},
    "getpeername_mapped": {4: bpf.CGROUP_INET6_GETPEERNAME},
    "release": {4: bpf.CGROUP_INET_SOCK_RELEASE, 6: bpf.CGROUP_INET_SOCK_RELEASE},
}

# Programs of the IPv4 compile alone, under their own name.
IPV4_ONLY = frozenset({"from_pod_l2", *(n for n, t in _ATTACH_TYPES.items() if 6 not in t)})


def find_sources() -> Path | None:
    """The folder bpf/ beside the package; None where only the bundle is shipped."""
    folder = Path(dataplane.__file__).resolve().parents[1] / "bpf"
    return folder if (folder / MAIN).exists() else None


def bundle_path() -> Path:
    """Where the compiled programs are: beside the sources, or where an image has them."""
    sources = find_sources()
    return sources.parent / "build" / "podlane.bundle" if sources else SHIPPED_BUNDLE


def digest(folder: Path) -> str:
    """sha256 over names and texts of all C files of the folder and its shim."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.[ch]")):
        total.update(f"{path.relative_to(folder)}\0".encode())
        total.update(path.read_bytes() + b"\0")
    return total.hexdigest()


def inline(path: Path, seen: set[Path] | None = None) -> str:
    """The file's text with each own header put in where it is first included.

    `#line` names absolute paths: then the compiler finds the lines, and puts their text
    into the program's line information.

    Raises:
        CompileError: an own header is not there.
    """
    seen = set() if seen is None else seen
    path = path.resolve()
    seen.add(path)
    out = [f'#line 1 "{path}"']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        include = _OWN_INCLUDE.match(line)
        if not include:
            out.append(line)
            if line in _RESTARTS:
                out.append(f'#line {number + 1} "{path}"')
            continue
        header = (path.parent / include.group(1)).resolve()
        if not header.exists():
            why = f"no such file: {include.group(1)}\n\t{line.strip()}"
            raise CompileError(f"{path.parent.name}/{path.name}:{number}", why)
        if header not in seen:
            out.append(inline(header, seen).rstrip("\n"))
        out.append(f'#line {number + 1} "{path}"')
    return "\n".join(out) + "\n"


def program_types(text: str, family: int) -> Mapping[str, tuple[int, int]]:
    """By the name of each program of a family, its type and expected attach type."""
    return {
        name: (_CONTEXTS[context], _ATTACH_TYPES.get(name, {}).get(family, 0))
        for name, context in _PROGRAM.findall(text)
        if context in _CONTEXTS and not (name in IPV4_ONLY and family != 4)
    }
