# SPDX-License-Identifier: Apache-2.0
"""C source to bundle: the only user of bcc, in a child process of its own.

    python -m dataplane.kernel.compiler --out FILE [-D NAME=VALUE]… [--debug]
    python -m dataplane.kernel.compiler --check-headers DIR
    python -m dataplane.kernel.compiler --stats FILE

Two compiles, one a family, each with all hooks; each program is verified once by
this kernel, with line information, so that a rejection names its line. Importing
bcc costs 80 MB, so others call `compile_bundle`, which starts the child only if
the fingerprint differs. Must not pin, attach or fill anything.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dataplane.abi import header
from dataplane.kernel import bpf, bundle, source, verifier
from dataplane.kernel.bundle import Bundle, MapSpec, Program
from dataplane.model.errors import BadEnvironment, BadInput, CompileError, PodlaneError

FAMILIES = (4, 6)
_LOAD_MAP_FD = (0x18, 1)  # opcode and source register of a 64-bit load of a map's fd
_LOG_SIZE = 16 << 20


# ---- what others call ----
def compile_bundle(
    out: Path, options: Mapping[str, str] | None = None, sources: Path | None = None
) -> Bundle:
    """The bundle at `out`, compiled anew if sources, options, compiler or ABI differ.

    Where there is no source (an image) or no compiler, the bundle that is there is taken.

    Raises:
        CompileError: the source does not compile or is rejected by the verifier.
        BadEnvironment: neither a compiler nor a bundle is here.
    """
    options = dict(options or {})
    sources = sources or source.find_sources()
    compiler = _compiler_version()
    if sources is None or compiler is None:
        if out.exists():
            return bundle.read(out)
        raise BadEnvironment(
            str(out),
            "no bundle of compiled programs, and no "
            + ("source to compile" if sources is None else "compiler"),
            "install Debian's python3-bpfcc, or bring a bundle",
        )
    if out.exists():
        try:
            present = bundle.read(out)
        except BadInput:
            pass
        else:
            if present.fingerprint == fingerprint(sources, options, compiler):
                return present
    _child(out, options, sources)
    return bundle.read(out)


def fingerprint(sources: Path, options: Mapping[str, str], compiler: str) -> str:
    """Digest of all that decides what the compile's result is."""
    parts = [bundle.FORMAT, source.digest(sources), sorted(options.items()), compiler]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _child(out: Path, options: Mapping[str, str], sources: Path) -> None:
    command = [sys.executable, "-m", __name__, "--json-error", "--out", str(out)]
    command += ["--sources", str(sources)]
    for name, value in options.items():
        command += ["-D", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    try:
        raise CompileError(**json.loads(done.stdout))
    except (ValueError, TypeError):
        raise CompileError(
            "compiler", verifier.diagnostic(done.stderr).why, log=done.stderr
        ) from None


def _compiler_version() -> str | None:
    """bcc's version, without importing it; None where there is none."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text)
    return f"bcc {match.group(1) if match else 'unknown'}"


# ---- the child ----
@dataclass(frozen=True, slots=True)
class _Compiled:
    """One family's share of a bundle. error: what CompileError is made of, if it failed."""

    maps: tuple[MapSpec, ...] = ()
    programs: tuple[Program, ...] = ()
    warnings: str = ""
    error: tuple[str, str, str, str] | None = None


def compile_sources(sources: Path, options: Mapping[str, str]) -> tuple[Bundle, str]:
    """Compile and verify all programs of both families; the bundle, and warnings in words."""
    compiler = _compiler_version()
    if compiler is None:
        raise BadEnvironment("bcc", "not installed", "apt-get install python3-bpfcc")
    text = source.inline(sources / source.MAIN)
    maps: dict[str, MapSpec] = {}
    programs: list[Program] = []
    warnings: dict[str, None] = {}  # most come once a family
    with ProcessPoolExecutor(len(FAMILIES), get_context("fork")) as workers:
        jobs = [workers.submit(_family, text, f, dict(options), sources) for f in FAMILIES]
    for compiled in (job.result() for job in jobs):
        if compiled.error is not None:
            raise CompileError(*compiled.error)
        for spec in compiled.maps:
            if maps.setdefault(spec.pin, spec) != spec:
                raise CompileError(spec.name, "shared map whose shape differs between the families")
        programs += compiled.programs
        warnings[compiled.warnings] = None
    return Bundle(
        fingerprint=fingerprint(sources, options, compiler),
        abi=header.defines(text)["ABI_VERSION"],
        compiler=compiler,
        options=dict(options),
        maps=tuple(maps[pin] for pin in sorted(maps)),
        programs=tuple(sorted(programs, key=lambda program: program.name)),
        kernel=os.uname().release,
    ), "".join(warnings)


def _family(text: str, family: int, options: Mapping[str, str], sources: Path) -> _Compiled:
    types = source.program_types(text, family)
    maps: dict[int, MapSpec] = {}
    programs: list[Program] = []
    try:
        module, warnings = _compile(text, _flags(family, options), sources)
        for name, declaration in header.maps(text).items():
            fd = module[name].map_fd
            maps[fd] = _map_spec(name, family if declaration.per_family else 0, fd)
        for index in range(_library().bpf_num_functions(module.module)):
            hook = _library().bpf_function_name(module.module, index).decode()
            if hook in source.IPV4_ONLY and family != 4:
                continue
            if hook not in types:
                raise CompileError(hook, "not `int NAME(struct CONTEXT *…)` of a known context")
            programs.append(_program(module, hook, family, types[hook], maps, sources))
    except CompileError as error:
        return _Compiled(error=(error.what, error.why, error.next_step, error.log))
    return _Compiled(tuple(maps.values()), tuple(programs), warnings)


def check_headers(folder: Path) -> list[CompileError]:
    """Compile each header alone, for both families; what does not."""
    failures: dict[str, CompileError] = {}  # one header's fault shows in all that include it
    for path in sorted(folder.glob("*.h")):
        try:
            for family in FAMILIES:
                _compile(source.inline(path), [*_flags(family, {}), "-Werror"], folder)
        except CompileError as error:
            failures.setdefault(str(error), error)
    return list(failures.values())


def _bcc(sources: Path) -> Any:
    os.environ["BCC_KERNEL_SOURCE"] = str(sources / source.SHIM)
    import bcc

    return bcc


def _library() -> Any:
    import bcc

    return bcc.lib


def _flags(family: int, options: Mapping[str, str]) -> list[str]:
    folders = ["/usr/include", f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"]
    # bcc's own declarations of map methods know no const.
    words = ["-Wall", "-Wno-unused-function", "-Wno-incompatible-pointer-types-discards-qualifiers"]
    defines = {"FAMILY": family, **options}
    return [
        *(f"-I{folder}" for folder in folders),
        *words,
        *(f"-D{name}={value}" for name, value in defines.items()),
    ]


def _compile(text: str, flags: list[str], sources: Path) -> tuple[Any, str]:
    bcc = _bcc(sources)
    with _captured() as output:

        def shown() -> str:
            return output().replace(f"{sources.resolve().parent}/", "")

        try:
            module = bcc.BPF(text=text.encode(), cflags=flags)
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more special
            log = shown() or str(error)
            reason = verifier.diagnostic(log)
            raise CompileError(
                reason.where or f"{sources.name}/{source.MAIN}",
                reason.text,
                log=log,
            ) from None
        return module, shown()


def _program(
    module: Any,
    hook: str,
    family: int,
    type_: tuple[int, int],
    maps: Mapping[int, MapSpec],
    sources: Path,
) -> Program:
    name = hook if hook in source.IPV4_ONLY else f"{hook}_{family}"
    log = _verify(module, hook, name, type_, sources)
    verified, stack = verifier.statistics(log)
    instructions = bytearray(module.dump_func(hook.encode()))
    relocations: dict[str, list[int]] = {}
    for index in range(len(instructions) // 8):
        opcode, registers, _, immediate = struct.unpack_from("<BBhi", instructions, index * 8)
        if (opcode, registers >> 4) == _LOAD_MAP_FD:
            relocations.setdefault(maps[immediate].pin, []).append(index)
            struct.pack_into("<i", instructions, index * 8 + 4, 0)
    return Program(
        name=name,
        family=family,
        hook=hook,
        type=type_[0],
        attach_type=type_[1],
        instructions=bytes(instructions),
        relocations={pin: tuple(places) for pin, places in sorted(relocations.items())},
        verified=verified,
        stack=stack,
    )


def _verify(module: Any, hook: str, name: str, type_: tuple[int, int], sources: Path) -> str:
    """Load once through bcc, which brings line information; the verifier's log."""
    library, function = _library(), hook.encode()

    def load(level: int) -> tuple[int, str]:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        with _captured():  # on failure bcc prints the log, too
            fd: int = library.bcc_func_load(
                module.module,
                type_[0],
                function,
                library.bpf_function_start(module.module, function),
                library.bpf_function_size(module.module, function),
                library.bpf_module_license(module.module),
                library.bpf_module_kern_version(module.module),
                level,
                log,
                len(log),
                None,
                type_[1] or -1,
            )
        return fd, log.value.decode(errors="replace")

    fd, log = load(bpf.LOG_STATS)
    if fd >= 0:
        os.close(fd)
        return log
    _, log = load(bpf.LOG_FIRST_PATH | bpf.LOG_STATS)
    if not log.strip():
        why = os.strerror(ctypes.get_errno())
        raise CompileError(name, f"not loaded: {why}", "run it as root", log=log)
    reason = verifier.rejection(log, sources)
    raise CompileError(f"{reason.where} ({name})", reason.text, log=log)


def _map_spec(name: str, family: int, fd: int) -> MapSpec:
    info = bpf.map_info(fd)
    return MapSpec(
        name, family, info.type, info.key_size, info.value_size, info.max_entries, info.flags
    )


@contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """What C code writes to stdout and stderr meanwhile, by a call."""
    with tempfile.TemporaryFile() as file:
        saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, _ in saved:
            os.dup2(file.fileno(), fd)

        def output() -> str:
            ctypes.CDLL(None).fflush(None)
            return os.pread(file.fileno(), _LOG_SIZE, 0).decode(errors="replace")

        try:
            yield output
        finally:
            ctypes.CDLL(None).fflush(None)
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)


# ---- the command ----
def _statistics(path: Path) -> int:
    """Print each program's instructions and stack; 1 if one is above half of a limit."""
    content = bundle.read(path)
    print(f"{'program':<18}{'instructions':>13}{'verified':>10}{'stack':>7}   ({content.kernel})")
    over = []
    for program in content.programs:
        count = len(program.instructions) // 8
        print(f"{program.name:<18}{count:>13}{program.verified:>10}{program.stack:>7}")
        if (
            program.verified * 2 > verifier.INSTRUCTION_LIMIT
            or program.stack * 2 > verifier.STACK_LIMIT
        ):
            over.append(program.name)
    if over:
        print(
            f"above half of a limit ({verifier.INSTRUCTION_LIMIT} instructions, "
            f"{verifier.STACK_LIMIT} bytes of stack): {', '.join(over)}",
            file=sys.stderr,
        )
    return 1 if over else 0


def _report(error: PodlaneError, as_json: bool, debug: bool) -> None:
    log = error.log if isinstance(error, CompileError) else ""
    if as_json:
        content = {"what": error.what, "why": error.why, "next_step": error.next_step, "log": log}
        print(json.dumps(content))
        return
    if debug and log:
        print(log, file=sys.stderr)
    print(error, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 above half of a limit or a header fails, 2 not compiled."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.kernel.compiler")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="compile into this bundle")
    action.add_argument("--check-headers", type=Path, metavar="DIR", help="compile each alone")
    action.add_argument("--stats", type=Path, metavar="BUNDLE", help="instructions and stack")
    parser.add_argument("-D", action="append", default=[], metavar="NAME=VALUE", dest="options")
    parser.add_argument("--sources", type=Path, default=source.find_sources(), metavar="DIR")
    parser.add_argument("--debug", action="store_true", help="show the whole log of an error")
    parser.add_argument("--json-error", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.stats:
            return _statistics(chosen.stats)
        if chosen.check_headers:
            failures = check_headers(chosen.check_headers)
            for failure in failures:
                _report(failure, False, chosen.debug)
            return 1 if failures else 0
        if chosen.sources is None:
            raise BadEnvironment("bpf/", "no source beside the package", "say --sources DIR")
        options = dict(option.partition("=")[::2] for option in chosen.options)
        result, warnings = compile_sources(chosen.sources, options)
        bundle.write(result, chosen.out)
        print(warnings, end="", file=sys.stderr)
    except PodlaneError as error:
        _report(error, chosen.json_error, chosen.debug)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
