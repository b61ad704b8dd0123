#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs in the virtual machine: make a node of it, run the tests, leave their results in a folder.
#   guest.sh RESULTS SECONDS TEST…      (SECONDS: the time limit of one test)
set -u
results=$1 seconds=$2
shift 2

uname -r >"$results/kernel"
# A node's agent would find these loaded by its first use; in the guest they are named once, here.
for module in veth vxlan dummy sch_ingress cls_bpf sch_fq; do
	modprobe "$module" || echo "guest: kernel $(uname -r) has no module $module" >&2
done
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
ip link set lo up

# /run is in memory; /tmp may hold the checkout, and is then read-only.
mkdir -p /run/tests
export HOME=/run/tests TMPDIR=/run/tests PYTHONDONTWRITEBYTECODE=1
export HYPOTHESIS_STORAGE_DIRECTORY=/run/tests/hypothesis
cut -d' ' -f1 /proc/uptime >"$results/booted"
.venv/bin/pytest "$@" -p no:cacheprovider --tb=short --timeout="$seconds" \
	-o junit_family=xunit1 --junitxml=/run/tests/junit.xml >"$results/pytest.log" 2>&1
echo $? >"$results/status"
# Whole or not at all: the host reads it as soon as it is there.
cp /run/tests/junit.xml "$results/junit.xml.part" && mv "$results/junit.xml.part" "$results/junit.xml"
