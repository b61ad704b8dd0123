# SPDX-License-Identifier: Apache-2.0
"""Where the API server is, who we are to it, and one GET at a time.

The only user of the `kubernetes` package, of which it takes configuration and transport
(its models and its Watch know objects, not what was sent). The server's address is
its own, never the ClusterIP of the Service `kubernetes`: podlane is who serves that.
Must not know what is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.client.rest import RESTClientObject
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.kube_config import load_kube_config
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from dataplane.model.errors import BadEnvironment, BadInput
from dataplane.sources.documents import read_one
from dataplane.sources.kubernetes.failures import Failure, broken, garbage, refused

# Where kubelet puts a pod's own credentials.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
_CHUNK = 1 << 16
_LONGEST_LINE = 64 << 20
_LONGEST_REFUSAL = 64 << 10
_CONNECTIONS = 8
# What the API client's loader raises of YAML that is no kubeconfig.
_REFUSALS = (ConfigException, ValueError, TypeError, AttributeError, LookupError)


class Access:
    """A way to one API server. Its methods may be called by several threads."""

    def __init__(self, server: str, account: Path | None, kubeconfig: Path | None) -> None:
        self.server = server
        self._account, self._kubeconfig = account, kubeconfig
        self._lock = threading.Lock()
        self._configuration = self._configure()
        self._transport = RESTClientObject(self._configuration)

    @classmethod
    def by_address(cls, server: str, account: Path = ACCOUNT) -> Access:
        """By its address, with the credentials that kubelet gives to a pod.

        Raises:
            BadInput: no address of a server, or a ClusterIP.
            BadEnvironment: https, and no CA or token to be found.
        """
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise BadInput(
                f"apiServer {server!r}", "is no address of a server", "as in https://192.0.2.1:6443"
            )
        if parts.hostname == os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise BadInput(
                f"apiServer {server}",
                "is the ClusterIP of the Service `kubernetes`, which podlane itself serves",
                "give the server's own address: `kubectl get endpointslices -l"
                " kubernetes.io/service-name=kubernetes`",
            )
        for name in ("token", "ca.crt"):
            if parts.scheme == "https" and not (account / name).is_file():
                raise BadEnvironment(
                    f"service account {account}",
                    f"has no {name}",
                    "run podlane as a pod with a service account, or give kubeconfig",
                )
        return cls(server.rstrip("/"), account, None)

    @classmethod
    def by_kubeconfig(cls, path: Path) -> Access:
        """By the current context of a kubeconfig.

        Raises:
            BadInput: it can't be read, or names no server.
        """
        return cls("", None, path)

    def renew(self) -> None:
        """Read the credentials again, which may have been replaced by now.

        A kubeconfig that can't be read at this moment leaves all as it is.
        """
        with self._lock:
            try:
                configuration = self._configure()
            except BadInput:
                return
            old, self._configuration = self._transport, configuration
            self._transport = RESTClientObject(configuration)
        old.close()

    def get(
        self, path: str, query: Mapping[str, str], verb: str, kind: str, read: float = READ_SECONDS
    ) -> Answer:
        """Ask; the answer's head has come.

        Args:
            verb, kind: what this is to RBAC, for words.
            read: seconds without a byte after which the server counts as silent.

        Raises:
            Failure: no connection, or any status but 200.
            Expired: the state that was asked for is too old.
        """
        with self._lock:
            configuration, transport = self._configuration, self._transport
        try:
            headers = {"Accept": "application/json", "User-Agent": "podlane"}
            token = self._token(configuration)
            if token:
                headers["Authorization"] = token
            url = f"{configuration.host}{path}?{urlencode(query)}"
            response: urllib3.HTTPResponse = transport.request(
                "GET", url, headers, _request_timeout=(CONNECT_SECONDS, read)
            ).response
        except ApiException as error:  # how the transport wraps what TLS has to say
            raise broken(_innermost(error)) from error
        except (urllib3.exceptions.HTTPError, OSError, ConfigException, ValueError) as error:
            raise broken(error) from error
        answer = Answer(response, kind)
        if response.status != 200:
            raise refused(
                response.status, response.headers, answer.refusal(), verb, kind
            )  # fmt: skip
        return answer

    def _token(self, configuration: Any) -> str:
        """The Authorization header; a service account's token is read each time, as it rotates."""
        if self._account is None:
            return configuration.get_api_key_with_prefix("BearerToken") or ""
        try:
            token = (self._account / "token").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""  # over plain HTTP there need not be one
        return f"Bearer {token}"

    def _configure(self) -> Any:
        configuration = Configuration()
        configuration.retries = False  # whoever follows a kind knows when to ask again
        configuration.socket_options = tcp_keepalive_socket_options(10, 5, 3)
        configuration.connection_pool_maxsize = _CONNECTIONS
        if self._kubeconfig is None:
            configuration.host = self.server
            if self._account is not None and (self._account / "ca.crt").is_file():
                configuration.ssl_ca_cert = str(self._account / "ca.crt")
            return configuration
        what = f"kubeconfig {self._kubeconfig}"
        try:
            self._kubeconfig.read_bytes()  # in our words: the loader takes a missing one for empty
            load_kube_config(
                str(self._kubeconfig), client_configuration=configuration, persist_config=False
            )
        except OSError as error:
            raise BadInput(what, f"can't be read: {error.strerror}") from error
        except Exception as error:
            if _is_yamls(error):
                # Ours is stricter than kubectl, so it has no say in what is read; it knows places.
                read_one(what, self._kubeconfig)
                why = f"is not YAML: {' '.join(str(error).split())}"
                raise BadInput(what, why) from error
            if isinstance(error, _REFUSALS):
                raise BadInput(what, str(error)) from error
            raise
        if not urlsplit(configuration.host).hostname:
            raise BadInput(what, "names no server")
        self.server = configuration.host
        return configuration


class Answer:
    """An answer 200, to be read once."""

    def __init__(self, response: urllib3.HTTPResponse, kind: str) -> None:
        self._response, self._kind = response, kind

    def document(self) -> dict[str, Any]:
        """All of it, as one JSON object.

        Raises:
            Failure: it breaks off, or is no JSON object.
        """
        try:
            body = self._response.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.close()
            raise broken(error) from error
        self._response.release_conn()
        return _decoded(body, self._kind)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Each JSON object, a line each, as it comes; ends when the server ends it.

        Raises:
            Failure: it breaks off, or a line is no JSON object.
        """
        rest = bytearray()
        try:
            while chunk := self._response.read1(_CHUNK):
                start = len(rest)
                rest += chunk
                if (end := rest.rfind(b"\n", start)) < 0:
                    if len(rest) > _LONGEST_LINE:
                        raise garbage(self._kind, "a line without end")
                    continue
                lines = bytes(rest[:end]).split(b"\n")
                del rest[: end + 1]
                for line in lines:
                    if line.strip():
                        yield _decoded(line, self._kind)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise broken(error) from error
        finally:
            self.close()
        if rest.strip():
            raise Failure("the server broke off in the middle of an object")

    def refusal(self) -> bytes:
        """The beginning of an answer that is not 200; empty if there is none."""
        try:
            return self._response.read(_LONGEST_REFUSAL)
        except (urllib3.exceptions.HTTPError, OSError):
            return b""
        finally:
            self.close()

    def interrupt(self) -> None:
        """Let a reader in another thread come to an end."""
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # it came to it by itself
            self._response.shutdown()

    def close(self) -> None:
        """Done with it; the connection is not used again."""
        self._response.close()


def _decoded(text: bytes, kind: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise garbage(kind, f"{_start(text)} is no JSON") from error
    if not isinstance(value, dict):
        raise garbage(kind, f"{_start(text)} is no object")
    return value


def _is_yamls(error: Exception) -> bool:
    """Whether the API client's YAML reader raised it, which may be of any class."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("yaml.") for frame, _ in frames)


def _start(text: bytes) -> str:
    return ascii(text[:40].decode(errors="replace"))


def _innermost(error: BaseException) -> Exception:
    """The error that another one was made of."""
    while error.__context__ is not None:
        error = error.__context__
    return error if isinstance(error, Exception) else Exception(str(error))
