# SPDX-License-Identifier: Apache-2.0
"""Where a node's objects come from, and the wait for those without which it can't be brought up.

Must not know what is done with them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from dataplane.agent.config import Config
from dataplane.model.errors import BadInput
from dataplane.model.objects import Batch, Kind, Node, Object, ObjectKey, Problem
from dataplane.sources.watch import watch


def batches(config: Config, manifests: Path | None) -> AsyncGenerator[Batch, None]:
    """The objects of a folder if one is given, else of the API server.

    Raises:
        BadInput, BadEnvironment: there is neither, or no way to that server.
    """
    if manifests is not None:
        return watch(manifests)
    if not (config.api_server or config.kubeconfig):
        raise BadInput(
            "podlane agent",
            "has no source of objects",
            "give apiServer in the config (the API server's own address: podlane itself serves the"
            " ClusterIP of the Service `kubernetes`), or kubeconfig, or --manifests DIR",
        )
    # Lazy: the client is 20 MB that a node without an API server need not have.
    from dataplane.sources import kubernetes

    if config.kubeconfig:
        access = kubernetes.Access.by_kubeconfig(Path(config.kubeconfig))
    else:
        access = kubernetes.Access.by_address(config.api_server)
    return kubernetes.watch(access, config.node_name, service_cidrs=not config.service_cidrs)


async def complete(
    get: Callable[[], Awaitable[Batch | None]],
    config: Config,
    say: Callable[[tuple[Problem, ...]], None],
) -> Batch | None:
    """All objects as one batch, once every kind is there and this node's Node has pod ranges.

    Args:
        get: the next batch; None ends the wait.
        say: told what is missing each time that it changes.
    """
    held: dict[ObjectKey, Object] = {}
    while (batch := await get()) is not None:
        for key in batch.deletes:
            held.pop(key, None)
        held.update({one.key: one for one in batch.upserts})
        missing = _missing(held, config) if batch.synced else ()
        say((*batch.problems, *missing))
        if batch.synced and not missing:
            return Batch(tuple(held.values()), synced=True, problems=batch.problems)
    return None


def _missing(held: dict[ObjectKey, Object], config: Config) -> tuple[Problem, ...]:
    key = ObjectKey(Kind.NODE.value, "", config.node_name)
    own = held.get(key)
    if not isinstance(own, Node):
        why = "is not known to the API server; it must be the name that kubelet registers"
        return (Problem(str(key), "metadata.name", why),)
    if not (own.pod_cidrs or config.pod_cidrs):
        why = (
            "has no range yet: kube-controller-manager gives one with --allocate-node-cidrs and"
            " --cluster-cidr, or give podCIDRs in the config"
        )
        return (Problem(str(key), "spec.podCIDRs", why),)
    return ()
