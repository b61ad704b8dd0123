# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: make one, remove one, run a function inside one or a new one.

A function runs inside by setns(2) in the caller's thread, which comes back whatever happens,
or in a thread of its own that ends with it; so that no other code of this process is ever
in the wrong namespace. A socket opened there stays there. Must not know what is done inside.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dataplane.model.errors import BadEnvironment

T = TypeVar("T")

Netns = Path | int
"""A namespace by the path of its file, or by an open descriptor."""

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_MS_BIND = 0x1000
_MNT_DETACH = 2

_SO_NETNS_COOKIE = 71  # Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _in_thread(fn: Callable[[], T]) -> T:
    """Run fn in a thread that ends with it; its result or exception is the caller's."""
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(fn())
        except BaseException as failure:  # noqa: BLE001 - handed to the caller whole
            failures.append(failure)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def run_in(netns: Netns, fn: Callable[[], T]) -> T:
    """Run fn inside a network namespace in this very thread, which comes back.

    A thread costs as much as all of a pod's addresses and routes. fn must neither wait
    nor start threads or processes.

    Raises:
        BadEnvironment: the namespace is not there or may not be entered.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(netns)
        return fn()
    finally:
        if _libc.setns(home, _CLONE_NEWNET) != 0:
            os.abort()  # nothing may go on in somebody else's namespace
        os.close(home)


def _enter(netns: Netns) -> None:
    try:
        fd = os.dup(netns) if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as failure:
        raise BadEnvironment(
            f"network namespace {netns}", failure.strerror or str(failure)
        ) from failure
    try:
        _call("setns", fd, _CLONE_NEWNET)
    except OSError as failure:
        why = "is no network namespace" if failure.errno == errno.EINVAL else str(failure)
        raise BadEnvironment(f"network namespace {netns}", why) from failure
    finally:
        os.close(fd)


def leave() -> None:
    """This thread into a new, empty network namespace; for good, so the thread is to end.

    Raises:
        BadEnvironment: the kernel refuses.
    """
    try:
        _call("unshare", _CLONE_NEWNET)
    except OSError as failure:
        raise BadEnvironment("network namespace", str(failure), "run as root") from failure


def run_apart(fn: Callable[[], T]) -> T:
    """Run fn inside a new, empty network namespace that ends with it.

    Raises:
        BadEnvironment: the kernel refuses.
    """

    def inside() -> T:
        leave()
        return fn()

    return _in_thread(inside)


def cookie() -> int:
    """What programs know this thread's network namespace by; never used again for another."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        number: int = struct.unpack("=Q", one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
    return number


def is_netns(fd: int) -> bool:
    """Whether an open file is a network namespace."""
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def create(path: Path) -> None:
    """Make a new network namespace and keep it by a bind mount on `path`.

    Raises:
        BadEnvironment: the path exists, or the kernel refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except OSError as failure:
        raise BadEnvironment(f"network namespace {path}", str(failure)) from failure

    def make() -> None:
        _call("unshare", _CLONE_NEWNET)
        source = b"/proc/thread-self/ns/net"
        _call("mount", source, os.fsencode(path), b"none", ctypes.c_ulong(_MS_BIND), None)

    try:
        _in_thread(make)
    except OSError as failure:
        path.unlink()
        raise BadEnvironment(f"network namespace {path}", str(failure), "run as root") from failure


def delete(path: Path) -> None:
    """Take away what `create` made; nothing to do if it is gone already."""
    try:
        _call("umount2", os.fsencode(path), _MNT_DETACH)
    except OSError as failure:
        if failure.errno not in (errno.EINVAL, errno.ENOENT):
            raise BadEnvironment(f"network namespace {path}", str(failure)) from failure
    path.unlink(missing_ok=True)
