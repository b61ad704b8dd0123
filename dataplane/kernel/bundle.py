# SPDX-License-Identifier: Apache-2.0
"""The bundle: what compiling makes and loading needs, as one JSON file.

Must not compile, load or know where things are pinned.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataplane.model.errors import BadInput

# Raised when this file's own form changes.
FORMAT = 1
LICENSE = "Dual BSD/GPL"


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map's shape; family 0 for a map that both families share. max_entries is a default."""

    name: str
    family: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    @property
    def pin(self) -> str:
        return f"{self.name}_{self.family}" if self.family else self.name


@dataclass(frozen=True, slots=True)
class Program:
    """A program: 8-byte instructions, and by map pin the places where that map's fd stands.

    `verified` instructions and `stack` bytes are the verifier's words when it was compiled.
    """

    name: str
    family: int
    hook: str
    type: int
    attach_type: int
    instructions: bytes
    relocations: Mapping[str, tuple[int, ...]]
    verified: int
    stack: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """All programs and maps of one compile; `options` and `compiler` are in the fingerprint."""

    fingerprint: str
    abi: int
    compiler: str
    options: Mapping[str, str]
    maps: tuple[MapSpec, ...]
    programs: tuple[Program, ...]
    kernel: str = ""
    format: int = field(default=FORMAT)


def write(bundle: Bundle, path: Path) -> None:
    """Put the bundle in place in one step."""
    content = asdict(bundle)
    for program in content["programs"]:
        program["instructions"] = base64.b64encode(program["instructions"]).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")
    temporary.replace(path)


def read(path: Path) -> Bundle:
    """Raises BadInput if there is none or it is not of this version."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise BadInput(str(path), f"bundle of format {content['format']}, not {FORMAT}", _AGAIN)
        content["maps"] = tuple(MapSpec(**spec) for spec in content["maps"])
        content["programs"] = tuple(_program(p) for p in content["programs"])
        return Bundle(**content)
    except OSError as error:
        raise BadInput(str(path), error.strerror or str(error), _AGAIN) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(str(path), "not a bundle of compiled programs", _AGAIN) from error


_AGAIN = "compile it with `python -m dataplane.kernel.compiler --out FILE`"


def _program(content: dict[str, Any]) -> Program:
    return Program(
        **content
        | {
            "instructions": base64.b64decode(content["instructions"]),
            "relocations": {k: tuple(v) for k, v in content["relocations"].items()},
        }
    )
