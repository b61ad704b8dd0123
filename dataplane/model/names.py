# SPDX-License-Identifier: Apache-2.0
"""What the map `names` says about a Service id, and how it is read back.

Text of NAME_SERVICE: `namespace/name:port/protocol/family`, for example
`shop/cart:http/TCP/4`. `port` is the Service port's name, or its number if it has
none (Kubernetes demands names where a Service has several ports, so that either is
unique in its Service). An agent finds the id of a Service port again by this text
after a restart, so its form is fixed by the ABI. Must not hold other tables' texts.
"""

from __future__ import annotations

from typing import NamedTuple

from dataplane.model.net import Family, Protocol


class ServiceName(NamedTuple):
    """One port of one Service in one family: what a Service id stands for."""

    namespace: str
    name: str
    port: str
    protocol: Protocol
    family: Family

    @property
    def service(self) -> str:
        """What people are shown: `namespace/name:port`."""
        return f"{self.namespace}/{self.name}:{self.port}"

    @property
    def text(self) -> str:
        """What the map holds."""
        return f"{self.service}/{self.protocol.name}/{int(self.family)}"

    @classmethod
    def parse(cls, text: str) -> ServiceName:
        """The reverse of `text`. Raises ValueError on anything else."""
        namespace, rest = _split(text, "/")
        name, rest = _split(rest, ":")
        port, rest = _split(rest, "/")
        protocol, family = _split(rest, "/")
        try:
            return cls(namespace, name, port, Protocol[protocol], Family(int(family)))
        except KeyError:
            raise ValueError(f"no protocol {protocol!r} in {text!r}") from None


def _split(text: str, mark: str) -> tuple[str, str]:
    head, found, tail = text.partition(mark)
    if not (head and found and tail):
        raise ValueError(f"no {mark!r} where a Service's name needs one: {text!r}")
    return head, tail
