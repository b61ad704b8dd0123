# SPDX-License-Identifier: Apache-2.0
"""What may go wrong between podlane and an API server, as words for people and advice for us.

Must not ask anything again or wait: whoever follows a kind does.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping

from urllib3 import exceptions

_LONGEST_WORDS = 300


class Failure(Exception):
    """A request came to nothing.

    Args:
        why: the reason, the same words each time, so that it is told once.
        after: seconds that the server asked to be left alone for.
        credentials: whether others could help, or another CA; they may have been renewed meanwhile.
        unknown: whether the server has no such kind.
    """

    def __init__(
        self, why: str, after: float = 0.0, credentials: bool = False, unknown: bool = False
    ) -> None:
        self.why, self.after = why, after
        self.credentials, self.unknown = credentials, unknown
        super().__init__(why)


class Expired(Exception):
    """The server no longer knows the state that was asked for (410): list anew."""


def refused(
    status: int, headers: Mapping[str, str], body: bytes, verb: str, kind: str
) -> Failure | Expired:
    """What an answer that is not 200 amounts to.

    Args:
        verb, kind: as RBAC names them: "list", "services".
    """
    words = _message(body)
    told = f": {words}" if words else ""
    after = _seconds(headers.get("Retry-After", ""))
    match status:
        case 401:
            return Failure(
                f"the credentials are refused (401{told}); they have expired or are of another"
                " cluster",
                after,
                credentials=True,
            )
        case 403:
            return Failure(
                f"podlane may not {verb} {kind} (403{told}); `podlane manifests` prints the"
                " ClusterRole that it needs",
                after,
                credentials=True,
            )
        case 404:
            return Failure(f"the server has no {kind} (404{told})", after, unknown=True)
        case 410:
            return Expired()
        case 429:
            return Failure("the server has too much to do (429)", after)
    return Failure(f"the server failed ({status}{told})", after)


def told(code: object, message: object, verb: str, kind: str) -> Failure | Expired:
    """What an ERROR event of a watch amounts to: the Status in it."""
    body = json.dumps({"message": message if isinstance(message, str) else ""}).encode()
    return refused(code if isinstance(code, int) else 500, {}, body, verb, kind)


def broken(error: Exception) -> Failure:
    """What an exception of the transport amounts to."""
    for one in _causes(error):
        match one:
            case ssl.SSLCertVerificationError():
                return Failure(
                    f"the server's certificate is not trusted: {one.verify_message}",
                    credentials=True,
                )
            case ssl.SSLError():
                return Failure(
                    f"no TLS with the server: {one.reason or 'it was broken off'}",
                    credentials=True,
                )
            case socket.gaierror():
                return Failure(f"its name is not known: {one.strerror}")
            case exceptions.ConnectTimeoutError():
                return Failure("can't be reached: no answer to connect")
            case exceptions.ReadTimeoutError() | TimeoutError():
                return Failure("the server is silent: no answer in time")
            case exceptions.IncompleteRead() | http.client.IncompleteRead():
                return Failure("the server broke off in the middle of an answer")
            case ConnectionRefusedError():
                return Failure("can't be reached: connection refused")
            case ConnectionResetError() | BrokenPipeError() | http.client.RemoteDisconnected():
                return Failure("the server broke off the connection")
            case OSError() if one.strerror:
                return Failure(f"can't be reached: {one.strerror}")
    return Failure(f"the answer is no HTTP: {type(error).__name__}: {_short(str(error))}")


def garbage(kind: str, why: str) -> Failure:
    """An answer 200 that is not what was asked for."""
    return Failure(f"the server answered with what is no {kind}: {why}; is it an API server?")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The innermost reasons first: urllib3 wraps what the system said."""
    chain: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and not any(one is known for known in chain):
            chain.append(one)
            waiting += [one.__context__, one.__cause__, getattr(one, "reason", None), *one.args]
    yield from reversed(chain)


def _message(body: bytes) -> str:
    try:
        status = json.loads(body)
    except ValueError:
        return ""
    message = status.get("message") if isinstance(status, dict) else None
    return _short(message) if isinstance(message, str) else ""


def _short(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= _LONGEST_WORDS else f"{words[:_LONGEST_WORDS]}…"


def _seconds(header: str) -> float:
    """Retry-After in seconds; a date (RFC 9110 section 10.2.3) is not used by API servers."""
    return float(header) if header.isdecimal() else 0.0
