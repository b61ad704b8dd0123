# SPDX-License-Identifier: Apache-2.0
"""`podlane manifests`: what `kubectl apply -f -` takes to run podlane on every node.

One function an object. Settings of the node go into the ConfigMap as they are, once the
agent's own reader has accepted them; paths of the host follow from them. Must not ask a
cluster anything.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dataplane.model.errors import BadInput
from dataplane.sources.documents import one_document

if TYPE_CHECKING:
    from cli.main import Subparsers
    from dataplane.agent.config import Config

NAME = "podlane"
IMAGE = "localhost/podlane:dev"
CONFIG = "/etc/podlane/config.yaml"
PROGRAM = "/usr/local/bin/podlane"
# One for all nodes, so nothing that is one node's, and no file that is not mounted.
OF_ONE_NODE = ("nodeName", "podCIDRs", "nodeAddresses", "kubeconfig")

# Each with what it is for. SYS_RESOURCE is not to be had everywhere, and map memory is
# charged to the cgroup, not to a limit of locked pages.
CAPABILITIES = (
    "BPF",  # load programs, make maps
    "NET_ADMIN",  # devices, routes, filters at tc, settings of the network
    "PERFMON",  # the verifier lets programs compare and move pointers into maps
    "SYS_ADMIN",  # enter pods' network namespaces, pin, attach to the cgroup
)

Object = dict[str, Any]


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "manifests",
        help="what `kubectl apply -f -` takes to run podlane on a cluster",
        description="Prints a namespace, the rights to read what podlane reads, the config of all"
        " nodes and a DaemonSet.",
    )
    parser.add_argument(
        "--api-server",
        default="",
        metavar="URL",
        help="the API server's own address, as in https://192.0.2.1:6443 (podlane itself serves"
        " the ClusterIP of the Service `kubernetes`)",
    )
    parser.add_argument("--mode", default="vxlan", metavar="vxlan|native")
    parser.add_argument("--image", default=IMAGE, metavar="NAME", help=f"default: {IMAGE}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key of the config, its value in YAML; may be given again",
    )
    parser.add_argument(
        "--uninstall",
        action="store_true",
        help="in podlane's place, what takes it off every node: apply it with the options that"
        " podlane was installed with, wait for its rollout, then delete it",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    print(render(objects(settings, args.image, uninstall=args.uninstall), _head(args)), end="")
    return 0


def settings_of(args: argparse.Namespace) -> Object:
    """The config of all nodes.

    Raises:
        BadInput: a key or a value that the agent would refuse, or that is of one node.
    """
    settings: Object = {"apiServer": args.api_server, "mode": args.mode}
    for word in args.set:
        key, equals, value = word.partition("=")
        if not equals:
            raise BadInput(f"--set {word}", "is not KEY=VALUE")
        if key in OF_ONE_NODE:
            raise BadInput(f"--set {key}", "is one node's, and this is the config of all nodes")
        settings[key] = one_document(f"--set {key}", value)
    from dataplane.agent.config import unserved

    for problem in unserved(_parsed(settings)):
        print(f"podlane: {problem}", file=sys.stderr)
    return settings


def _parsed(settings: Mapping[str, Any]) -> Config:
    from dataplane.agent.config import parse

    return parse(dict(settings), "of `podlane manifests`", node_name="any")


def objects(settings: Mapping[str, Any], image: str, *, uninstall: bool = False) -> list[Object]:
    """All objects, in the order in which they are to be made."""
    config = _parsed(settings)
    common: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": NAME,
                # The pods are the node's network: the rules for common pods don't fit.
                "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
            },
        },
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta()},
    ]
    config_map: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _meta(),
        "data": {"config.yaml": yaml.safe_dump(dict(settings), sort_keys=False)},
    }
    pod = _uninstall_pod(config, image) if uninstall else _agent_pod(config, image)
    rights = [] if uninstall else _rights()
    # Agents read their config once: another one is another pod.
    mark = hashlib.sha256(config_map["data"]["config.yaml"].encode()).hexdigest()[:16]
    return [*common, *rights, config_map, _daemon_set(pod, mark, uninstall)]


def _rights() -> list[Object]:
    """To read, and nothing else; events, leases and status are not podlane's."""
    verbs = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["nodes", "pods", "services"], "verbs": verbs},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
        {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": verbs},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAME}],
        },
    ]  # fmt: skip


def _daemon_set(pod: Object, mark: str, uninstall: bool) -> Object:
    annotations = {f"{NAME}/config": mark}
    labels = {"app.kubernetes.io/name": NAME}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {**_meta(), "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": "100%" if uninstall else "10%"},
            },
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
        },
    }


def _agent_pod(config: Config, image: str) -> Object:
    address, port = config.healthz_address
    probe: Object = {"path": "/livez", "port": port}
    if not address.is_unspecified:
        probe["host"] = str(address)
    return {
        **_pod(),
        "serviceAccountName": NAME,
        "initContainers": [
            {
                "name": "install",
                **_podlane(image, "install"),
                "securityContext": _rights_of_process(),
                "volumeMounts": _mounts(config, "config", "run", "cni-bin", "cni-conf"),
            }
        ],
        "containers": [
            {
                "name": "agent",
                **_podlane(image, "agent"),
                # No limits: the maps of the whole node are charged to this container.
                "resources": {"requests": {"cpu": "50m", "memory": "160Mi"}},
                "securityContext": _rights_of_process(*CAPABILITIES),
                # Up and in step with the API; /healthz would also fail while the Node is drained.
                "readinessProbe": {"httpGet": probe, "periodSeconds": 5, "timeoutSeconds": 3},
                "volumeMounts": _mounts(config),
            }
        ],
        "volumes": _volumes(config),
    }


def _uninstall_pod(config: Config, image: str) -> Object:
    return {
        **_pod(),
        "serviceAccountName": NAME,
        "automountServiceAccountToken": False,
        "initContainers": [
            {
                "name": "uninstall",
                **_podlane(image, "uninstall"),
                "securityContext": _rights_of_process(*CAPABILITIES),
                "volumeMounts": _mounts(config),
            }
        ],
        # Ready once it is done: a DaemonSet has no end of its own.
        "containers": [
            {
                "name": "done",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"],
                "securityContext": _rights_of_process(),
            }
        ],
        "volumes": _volumes(config),
    }


def _pod() -> Object:
    """What both pods are: of the node's network, wanted on every node, and there first."""
    return {
        "hostNetwork": True,
        "dnsPolicy": "Default",
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 10,
    }


def _podlane(image: str, command: str) -> Object:
    return {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [PROGRAM, command, "--config", CONFIG, "--node", "$(NODE_NAME)"],
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
        ],
    }  # fmt: skip


def _rights_of_process(*capabilities: str) -> Object:
    confined: Object = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "capabilities": {"drop": ["ALL"]},
    }
    if capabilities:
        confined["capabilities"]["add"] = list(capabilities)
        # Its default profile forbids to write settings below /proc/sys, wherever they are mounted.
        confined["appArmorProfile"] = {"type": "Unconfined"}
        # CAP_SYS_ADMIN is of use for more than a container's default profile lets it be.
        confined["allowPrivilegeEscalation"] = True
        confined["seccompProfile"] = {"type": "Unconfined"}
    return confined


def _places(config: Config) -> dict[str, tuple[str, str, str]]:
    """Volumes by name: path on the host, path in the container, how mounts there are seen."""
    bpf = Path("/sys/fs/bpf")
    bpf = bpf if config.bpffs_dir.is_relative_to(bpf) else config.bpffs_dir
    cgroup = str(config.cgroup_root or "/sys/fs/cgroup")
    return {
        "bpffs": (str(bpf), str(bpf), "HostToContainer"),
        # Beside the container's own of the same name, hence below /host.
        "cgroup": (cgroup, cgroup if config.cgroup_root else f"/host{cgroup}", "HostToContainer"),
        "sysctl": ("/proc/sys/net", "/host/proc/sys/net", ""),
        "netns": ("/run/netns", "/run/netns", "HostToContainer"),
        "run": (str(config.run_dir), str(config.run_dir), ""),
        "state": (str(config.state_dir), str(config.state_dir), ""),
        "cni-bin": (str(config.cni_bin_dir), str(config.cni_bin_dir), ""),
        "cni-conf": (str(config.cni_conf_dir), str(config.cni_conf_dir), ""),
    }


_THERE = ("bpffs", "cgroup", "sysctl")  # of the kernel: nobody could make them


def _volumes(config: Config) -> list[Object]:
    volumes: list[Object] = [{"name": "config", "configMap": {"name": NAME}}]
    for name, (path, _, _) in _places(config).items():
        kind = "Directory" if name in _THERE else "DirectoryOrCreate"
        volumes.append({"name": name, "hostPath": {"path": path, "type": kind}})
    return [*volumes, {"name": "tmp", "emptyDir": {}}]


def _mounts(config: Config, *names: str) -> list[Object]:
    """All of them, or those named."""
    mounts: list[Object] = [
        {"name": "config", "mountPath": str(Path(CONFIG).parent), "readOnly": True}
    ]
    for name, (_, path, propagation) in _places(config).items():
        if not names or name in names:
            seen = {"mountPropagation": propagation} if propagation else {}
            mounts.append({"name": name, "mountPath": path, **seen})
    return [*mounts, {"name": "tmp", "mountPath": "/tmp"}]


def _meta() -> Object:
    return {"name": NAME, "namespace": NAME}


def _head(args: argparse.Namespace) -> str:
    if args.uninstall:
        return (
            "# Takes podlane off every node: pods lose their network. Apply this, wait for\n"
            "# `kubectl -n podlane rollout status daemonset/podlane`, then delete it.\n"
        )
    text = "# Made by `podlane manifests`; apply it with `kubectl apply -f`.\n"
    if not args.api_server:
        text += (
            "# apiServer in the ConfigMap is empty: give the API server's own address, here or with\n"
            "# `podlane manifests --api-server URL`. Agents refuse to start without it.\n"
        )
    return text


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks; equal parts are written out, not referred to."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def render(found: list[Object], head: str) -> str:
    """YAML, a document an object."""
    return head + yaml.dump_all(
        found, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=100
    )
