#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs in the virtual machine: make a node of it, run the tests, leave their results in a folder.
#   guest.sh RESULTS SECONDS TEST…      (SECONDS: the time limit of one test)
set -u
# $PWD is the checkout.
results=$1 seconds=$2
shift 2

uname -r >"$results/kernel"
# A node's agent would find these loaded by its first use; in the guest they are named once, here.
for module in veth vxlan dummy sch_ingress cls_bpf sch_fq sctp; do
	modprobe "$module" || echo "guest: kernel $(uname -r) has no module $module" >&2
done

# The root of virtme-ng has no cache: each start of Python reads all its files through the emulated
# device again. The same tree by a second device with a cache starts it three times as fast.
mkdir -p /run/cached /run/results
mount --bind "$results" /run/results
if mount -t 9p -o ro,version=9p2000.L,trans=virtio,cache=loose,msize=512000 cached /run/cached; then
	for folder in /usr/bin /usr/sbin /usr/lib/python3* /usr/lib/x86_64-linux-gnu "$PWD"; do
		mount --bind "/run/cached$folder" "$folder"
	done
	mount --bind /run/results "$results"
	cd "$PWD" || exit
fi

mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
grep -q ' cgroup2 ' /proc/mounts || mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

# /run is in memory; /tmp may hold the checkout, and is then read-only.
mkdir -p /run/tests
export HOME=/run/tests TMPDIR=/run/tests PYTHONDONTWRITEBYTECODE=1 PODLANE_EMULATED=1
export HYPOTHESIS_STORAGE_DIRECTORY=/run/tests/hypothesis
cut -d' ' -f1 /proc/uptime >"$results/booted"
.venv/bin/pytest "$@" -p no:cacheprovider --tb=short --timeout="$seconds" \
	-o junit_family=xunit1 --junitxml=/run/tests/junit.xml >"$results/pytest.log" 2>&1
echo $? >"$results/status"
# Whole or not at all: the host reads it as soon as it is there.
cp /run/tests/junit.xml "$results/junit.xml.part" && mv "$results/junit.xml.part" "$results/junit.xml"
