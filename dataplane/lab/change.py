# SPDX-License-Identifier: Apache-2.0
"""`lab apply`: turn a lab that is up into one with other objects, as a cluster would.

New pods are up before any Service names them; pods that go are first shown as
terminating, so that no new flow chooses them, then taken out, then stopped. Must not
touch nodes or agents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from dataplane.lab import cluster, controlplane, settle, state, up, wire
from dataplane.lab.cluster import Lab
from dataplane.lab.controlplane import Assigned
from dataplane.lab.state import LabFiles
from dataplane.lab.world import pod_name
from dataplane.model.objects import Pod
from dataplane.sources import manifests as sources
from dataplane.sources.kinds import Workload
from dataplane.sources.manifests import Manifests

_DRAIN_SECONDS = 0.5
"""How long requests under way have before their pod is stopped."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Changed:
    """What `apply` did. started and stopped are pods' names."""

    lab: Lab
    started: tuple[str, ...]
    stopped: tuple[str, ...]


def apply(
    files: LabFiles, paths: Sequence[str], stdin: bytes, strict: bool, prune: bool, say: Say
) -> Changed:
    """Add objects to a lab, or change those that it has under the same names.

    Args:
        prune: objects that these paths do not name go.

    Raises:
        BadInput: manifests that can't be used (nothing is changed then), or no such lab.
        BadEnvironment: a step failed.
    """
    with state.locked(files):
        old = cluster.load(files)
        given = sources.read(paths, stdin)
        if not prune:
            given = cluster.overlay(inputs(files), given)
        assigned = _assign(old, given)
        if strict:
            up.refuse_problems(assigned)
        changed = _turn(old, assigned, say)
        if prune:
            cluster.forget_inputs(files)
        cluster.save_inputs(files, paths, stdin)
    return changed


def scale(files: LabFiles, workload: Workload, replicas: int, say: Say) -> Changed:
    """Change the number of a workload's pods, until the next `apply`."""
    with state.locked(files):
        old = cluster.load(files)
        scaled = Manifests(workloads=(replace(workload, replicas=replicas),))
        return _turn(old, _assign(old, cluster.overlay(inputs(files), scaled)), say)


def inputs(files: LabFiles) -> Manifests:
    """All that the lab was given, the later over the earlier."""
    found = Manifests()
    for path in cluster.saved_inputs(files):
        found = cluster.overlay(found, sources.read([path]))
    return found


def _assign(old: Lab, given: Manifests) -> Assigned:
    underlay = [node.addresses for node in old.world.nodes]
    return controlplane.assign(given, underlay, old.family, old.assigned)


def _turn(old: Lab, assigned: Assigned, say: Say) -> Changed:
    """Make the lab what was assigned."""
    files = old.files
    new = cluster.make(files, old.mode, old.family, assigned)
    coming, going = _difference(old, new), _difference(new, old)
    say(f"{len(coming)} pods to start, {len(going)} to stop")
    # A pod that comes back in another shape can't be there before its old shape is gone.
    again = {pod_name(pod) for pod in coming} & {pod_name(pod) for pod in going}
    _start(new, [pod for pod in coming if pod_name(pod) not in again])
    if going:
        first = controlplane.draining(old.assigned, assigned)
        cluster.give(files, first)
        settle.wait(cluster.make(files, old.mode, old.family, first))
        time.sleep(_DRAIN_SECONDS)
    cluster.give(files, assigned)
    settle.wait(new)
    for pod in going:
        wire.stop(files, wire.key_of(pod), pod.host_network)
    _start(new, [pod for pod in coming if pod_name(pod) in again])
    up.route(new)
    cluster.write_record(new)
    return Changed(new, _names(coming), _names(going))


def _difference(old: Lab, new: Lab) -> list[Pod]:
    """Pods that run in the new lab and not, or not so, in the old one."""
    before = {_shape(old, pod) for pod in old.runnable()}
    return [pod for pod in new.runnable() if _shape(new, pod) not in before]


def _shape(lab: Lab, pod: Pod) -> tuple[object, ...]:
    """All of a pod that can't change while it runs."""
    ports = lab.world.stand_ins[pod_name(pod)]
    return pod_name(pod), pod.node_name, pod.host_network, pod.addresses, ports


def _start(lab: Lab, pods: Sequence[Pod]) -> None:
    up.prepare(lab, pods)
    up.connect(lab.files, pods)


def _names(pods: Iterable[Pod]) -> tuple[str, ...]:
    return tuple(sorted(pod_name(pod) for pod in pods))
