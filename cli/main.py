# SPDX-License-Identifier: Apache-2.0
"""`podlane`: finds the command, runs it, turns its failure into words and an exit status.

A command is a module of this package with

    add_parser(subparsers) -> argparse.ArgumentParser, made by `subparsers.add_parser(NAME, …)`
    run(args) -> int, the exit status

COMMANDS names it with its line in `podlane --help`; it is imported only when it is called
for, so that no command waits for another's imports. Must not know what a command does.

Exit statuses: 0 done, 1 a check failed, 2 bad input or environment, 3 an internal
contradiction.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias, cast

from dataplane.model.errors import PodlaneError

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

# Command (and module, in this package) to its line in --help, in the order of --help.
COMMANDS: dict[str, str] = {
    "agent": "run a node's agent",
    "install": "put the CNI plugin in place",
    "manifests": "what kubectl takes to run podlane on a cluster",
    "uninstall": "take all that podlane put on a node away",
    "lab": "a cluster from plain manifests on this machine",
    "explain": "what the programs do with a packet, and why",
    "services": "Services and what they have carried",
    "backends": "backends of Services and what they have carried",
    "endpoints": "pods of this node and what they have carried",
    "routes": "where the datapath sends addresses",
    "flows": "flows that the datapath remembers",
    "drops": "packets that went no further, by reason",
}

BUG = 3
INTERRUPTED = 128 + signal.SIGINT


class Command(Protocol):
    """What a command's module offers."""

    def add_parser(self, subparsers: Subparsers) -> argparse.ArgumentParser: ...

    def run(self, args: argparse.Namespace) -> int: ...


class _Parser(argparse.ArgumentParser):
    """argparse's own, with the words of our other failures (its status is 2 as ours)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words[: words.index("--") if "--" in words else None]
    try:
        args = _parser(words).parse_args(words)
        status = _module(args.command).run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except PodlaneError as failure:
        return _report(str(failure), failure.exit_status, debug, getattr(failure, "log", ""))
    except Exception as failure:  # noqa: BLE001 - what nobody foresaw is a bug, and is said so
        what = f"internal contradiction: {type(failure).__name__}: {failure}"
        return _report(f"{what}; this is a bug, please report it", BUG, debug, "")
    return status


def _module(command: str) -> Command:
    return cast(Command, importlib.import_module(f"cli.{command}"))


def _report(message: str, status: int, debug: bool, log: str) -> int:
    if debug:
        if log:
            print(log.rstrip(), file=sys.stderr)
        traceback.print_exc()
    hint = "" if debug or not (log or status == BUG) else " (--debug shows more)"
    print(f"podlane: {message}{hint}", file=sys.stderr)
    return status


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata  # slow to import, and rarely asked for

        parser.exit(0, f"podlane {metadata.version('podlane')}\n")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser with the one command that the words name, or with all of them by name only."""
    parser = _Parser(
        prog="podlane", description="An eBPF dataplane for Kubernetes. Commands need root."
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and whole logs")
    parser.add_argument("--version", action=_Version, nargs=0, help="show podlane's version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    subparsers = cast("Subparsers", commands)
    wanted = next((word for word in words if not word.startswith("-")), "")
    if wanted in COMMANDS:
        _debug_too(_module(wanted).add_parser(subparsers))
    else:
        for name, line in COMMANDS.items():
            subparsers.add_parser(name, help=line)
    return parser


def _debug_too(parser: argparse.ArgumentParser) -> None:
    """Take --debug after the command as well as before it."""
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
