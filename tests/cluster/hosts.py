# SPDX-License-Identifier: Apache-2.0
"""The cluster's hosts: namespaces on one bridge, and processes that run on them.

A host is a network namespace; a node is also a mount and a UTS namespace, held by one sleeping
process. All processes are in one cgroup2 folder of the cluster, by which they are ended.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.cluster.places import BASE, PRIVATE_FOLDERS, Host, Places

MADE = "made-folders"  # below BASE: folders of this machine that are there for nodes' mounts only


def run(command: str, check: bool = True, **more: object) -> str:
    """A command by the shell; its output."""
    done = subprocess.run(
        command, shell=True, text=True, capture_output=True, stdin=subprocess.DEVNULL, **more  # type: ignore[call-overload]
    )  # fmt: skip
    if check and done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}: {done.stderr.strip()}")
    return str(done.stdout)


def cgroup2_root() -> Path:
    """Where cgroup2 is mounted: alone, or beside version 1."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise RuntimeError("no cgroup2 is mounted: the cluster's processes could not be ended as one")


_NODE = r"""
set -eu
hostname NAME
mount --make-rprivate /
mkdir -p STATE/cgroup
mount --rbind /sys/fs/cgroup STATE/cgroup
mount -t sysfs sysfs /sys
mount --rbind STATE/cgroup /sys/fs/cgroup
umount -l STATE/cgroup
mount -t bpf bpf /sys/fs/bpf
for folder in FOLDERS; do
	mkdir -p "STATE/root$folder" "$folder"
	mount --bind "STATE/root$folder" "$folder"
done
for file in hosts resolv.conf; do
	mount --bind "STATE/$file" "/etc/$file"
done
mount --make-rshared /
touch STATE/ready
exec sleep infinity
"""


class Hosts:
    """The hosts of one cluster."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.cgroup = cgroup2_root() / places.cgroup_name
        self.logs = places.folder / "logs"

    # ---- up ----

    def make(self) -> None:
        """Namespaces, bridge and links; the nodes' file trees."""
        places = self.places
        self.cgroup.mkdir(exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        control = places.netns(places.control)
        for host in (places.control, places.outside, *places.nodes):
            run(f"ip netns add {places.netns(host)}")
            # A node's address is used at once, and so is its link-local one.
            run(f"ip netns exec {places.netns(host)} sysctl -qw net.ipv6.conf.default.accept_dad=0")
            run(f"ip -n {places.netns(host)} link set lo up")
        run(f"ip -n {control} link add br0 type bridge && ip -n {control} link set br0 up")
        self._address(control, "br0", places.control)
        for host in (places.outside, *places.nodes):
            ns = places.netns(host)
            run(
                f"ip -n {control} link add p{host.number} type veth peer name eth0 netns {ns}"
                f" && ip -n {control} link set p{host.number} master br0 up"
                f" && ip -n {ns} link set eth0 up"
            )
            self._address(ns, "eth0", host)
            run(
                f"ip -n {ns} route add default via {places.control.ipv4}"
                f" && ip -n {ns} -6 route add default via {places.control.ipv6}"
            )
        missing = [folder for folder in PRIVATE_FOLDERS if not Path(folder).is_dir()]
        with (BASE / MADE).open("a") as made:
            made.writelines(f"{folder}\n" for folder in missing)
        for node in places.nodes:
            self._make_node(node)

    @staticmethod
    def _address(ns: str, device: str, host: Host) -> None:
        run(
            f"ip -n {ns} addr add {host.ipv4}/24 dev {device}"
            f" && ip -n {ns} addr add {host.ipv6}/64 dev {device} nodad"
        )

    def state(self, host: Host) -> Path:
        """A host's folder on the machine."""
        return self.places.folder / host.name

    def _make_node(self, node: Host) -> None:
        state = self.state(node)
        state.mkdir(parents=True, exist_ok=True)
        names = [f"{one.ipv4} {one.name}\n{one.ipv6} {one.name}" for one in self.places.nodes]
        (state / "hosts").write_text(
            "127.0.0.1 localhost\n::1 localhost\n" + "\n".join(names) + "\n"
        )
        (state / "resolv.conf").write_text(f"nameserver {self.places.control.ipv4}\n")
        script = _NODE.replace("NAME", node.name).replace("STATE", str(state))
        script = script.replace("FOLDERS", " ".join(PRIVATE_FOLDERS))
        holder = self._spawn(
            ["nsenter", f"--net=/run/netns/{self.places.netns(node)}",
             "unshare", "--mount", "--uts", "bash", "-c", script],
            f"{node.name}-holder",
        )  # fmt: skip
        (state / "holder").write_text(str(holder.pid))
        wait_for(
            lambda: (state / "ready").exists() or holder.poll() is not None, 20, f"{node.name}"
        )
        if holder.poll() is not None:
            raise RuntimeError(f"{node.name}: {self.log(f'{node.name}-holder')}")

    # ---- processes ----

    def enter(self, host: Host) -> list[str]:
        """The words before a command that runs on a host."""
        holder = self.state(host) / "holder"
        if holder.is_file():
            return ["nsenter", "-t", holder.read_text(), "-m", "-n", "-u", "--wd=/", "--"]
        return ["nsenter", f"--net=/run/netns/{self.places.netns(host)}", "--"]

    def start(self, host: Host, command: str, log: str) -> subprocess.Popen[bytes]:
        """A daemon on a host, its output in a file of the cluster's."""
        return self._spawn([*self.enter(host), *shlex.split(command)], log)

    def run_on(self, host: Host, command: str, check: bool = True) -> str:
        """A command on a host, by the shell; its output."""
        return run(shlex.join([*self.enter(host), "sh", "-c", command]), check)

    def _spawn(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        procs = self.cgroup / "cgroup.procs"

        def join() -> None:
            procs.write_text(str(os.getpid()))

        with (self.logs / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, preexec_fn=join, cwd="/",
            )  # fmt: skip

    def log(self, name: str, lines: int = 30) -> str:
        """The end of a daemon's output."""
        path = self.logs / f"{name}.log"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])

    # ---- down ----

    def destroy(self) -> None:
        """End every process and take all away; also what was left half made."""
        self._end_processes()
        groups = self._container_groups()
        # Whoever takes it down need not know how many nodes it was made with.
        made_with = {Host(one.parent.name, 0) for one in self.places.folder.glob("*/holder")}
        for host in {self.places.control, self.places.outside, *self.places.nodes, *made_with}:
            if Path("/run/netns", self.places.netns(host)).exists():
                run(f"ip netns delete {self.places.netns(host)}", check=False)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if line.split()[4].startswith(f"{self.places.folder}/"):
                run(f"umount -l {line.split()[4]}", check=False)
        run(f"rm -rf --one-file-system {self.places.folder}", check=False)
        # A folder that is removed here is unmounted in every namespace: only after the last cluster.
        if not any(one.is_dir() for one in BASE.glob("*")):
            made = BASE / MADE
            for folder in made.read_text().split() if made.is_file() else ():
                with suppress(OSError):
                    Path(folder).rmdir()
            made.unlink(missing_ok=True)
            with suppress(OSError):
                BASE.rmdir()
        _remove(groups)
        with suppress(OSError):
            self.cgroup.rmdir()

    def _container_groups(self) -> set[Path]:
        """The cgroups that runc made for containers of the nodes: each is named as its bundle is."""
        tasks = "run/containerd/io.containerd.runtime.v2.task/k8s.io"
        bundles = (host / "root" / tasks for host in self.places.folder.glob("*"))
        root = Path("/sys/fs/cgroup")
        return {
            group
            for name in {bundle.name for folder in bundles for bundle in folder.glob("*")}
            for group in (root / "k8s.io" / name, *root.glob(f"*/k8s.io/{name}"))
        }

    def _end_processes(self) -> None:
        """End what is in the cluster's group, and its descendants: runc moves containers out of it."""
        until = time.monotonic() + 20
        while self.cgroup.is_dir() and time.monotonic() < until:
            found = {
                int(pid)
                for procs in (self.cgroup / "cgroup.procs", *self.cgroup.glob("**/cgroup.procs"))
                for pid in procs.read_text().split()
            }
            if not found:
                return
            for pid in _with_descendants(found):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def _remove(groups: set[Path]) -> None:
    """Remove cgroups, and their folder if no other container's is in it."""
    for _ in range(20):  # a group is busy for a moment after its last process
        left = [group for group in groups if group.is_dir()]
        for group in left:
            with suppress(OSError):
                group.rmdir()
        if not left:
            break
        time.sleep(0.1)
    for folder in {group.parent for group in groups}:
        with suppress(OSError):
            folder.rmdir()


def _with_descendants(found: set[int]) -> set[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            pid, _, rest = stat.read_text().partition(" ")
            parents.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(int(pid))
    whole, queue = set(found), list(found)
    while queue:
        for child in parents.get(queue.pop(), ()):
            if child not in whole:
                whole.add(child)
                queue.append(child)
    return whole


def wait_for(condition: object, seconds: float, what: str) -> None:
    """Wait until a callable is true.

    Raises:
        RuntimeError: it was not within these seconds.
    """
    assert callable(condition)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.2)
    raise RuntimeError(f"{what}: not there after {seconds:g} s")
