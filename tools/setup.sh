#!/usr/bin/env bash
# Makes this checkout able to build, test and demonstrate podlane: Debian's packages, then .venv with
# the locked PyPI packages and the `podlane` command. Does nothing, quickly, when all is there already.
#
#   tools/setup.sh        what `make demo`, `make test`, `make lint` and `make bench` need
#   tools/setup.sh vm     also what `make test-vm` needs
#   tools/setup.sh image  also what `make image` needs
#   tools/setup.sh cni    also what `make test-cni` needs (and, from the machine, Go 1.21 or newer)
#   tools/setup.sh cluster  also what `make cluster-up` needs (and, from the machine, Go 1.24 or newer)
set -euo pipefail
export LC_ALL=C.UTF-8
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACKAGES=(
	# the dataplane: the compiler's library, and Python's own parts
	python3 python3-venv python3-bpfcc
	# our C tools
	gcc libc6-dev linux-libc-dev make clang-format
	# the lab and the tests: namespaces, probes, captures
	iproute2 iputils-ping ethtool tcpdump kmod procps
	# the tests only: firewalls that podlane must live beside
	iptables nftables
	# the tests only: the address store in other eyes than podlane's
	sqlite3
	# the tests only: certificates
	openssl
	# pip and apt over TLS
	ca-certificates
)
VM_PACKAGES=(qemu-system-x86 file debian-archive-keyring)
# containerd and what may stand beside us in a chain; busybox is what the packed image runs
CNI_PACKAGES=(containerd runc containernetworking-plugins iptables busybox-static)
# what the cluster's nodes run and its test images hold; the plugins are the peer's, with kube-proxy
CLUSTER_PACKAGES=(containerd runc openssl busybox-static curl netcat-openbsd bind9-dnsutils wget
	containernetworking-plugins conntrack)
IMAGE_PACKAGES=(debootstrap)
PYTHON=/usr/bin/python3   # bcc is there and nowhere else; `python3` on the PATH may be another one

die() { printf 'setup: %s\n' "$*" >&2; exit 2; }
say() { printf 'setup: %s\n' "$*" >&2; }

case "${1-}" in
	"") ;;
	vm) PACKAGES+=("${VM_PACKAGES[@]}") ;;
	cni) PACKAGES+=("${CNI_PACKAGES[@]}" "${IMAGE_PACKAGES[@]}") ;;
	image) PACKAGES+=("${IMAGE_PACKAGES[@]}") ;;
	cluster) PACKAGES+=("${CLUSTER_PACKAGES[@]}" "${IMAGE_PACKAGES[@]}") ;;
	*) die "unknown argument '$1': call it with none, with 'vm', 'cni', 'image' or 'cluster'" ;;
esac

command -v dpkg-query >/dev/null || die "this is not a Debian system (no dpkg-query): podlane's set-up knows Debian 12 only"

missing=()
for package in "${PACKAGES[@]}"; do
	[[ $(dpkg-query -W -f='${db:Status-Status} ' "$package" 2>/dev/null) == "installed " ]] || missing+=("$package")
done

# One set-up at a time in a checkout: two would write one .venv.
exec 9<tools/setup.sh
flock 9

# .venv is as wanted if it was made here, on this Debian, from these files (pyproject.toml without the
# linters' settings at its end). A .venv of another place or Debian is made anew, else it is updated.
place="$PWD $(sed -n 's/^VERSION_ID=//p' /etc/os-release)"
wanted="$place $( (cat requirements.lock; sed '/^\[tool\.ruff/,$d' pyproject.toml) | sha256sum)"
stamp=.venv/podlane-stamp
found=
[[ ! -f $stamp ]] || found=$(<"$stamp")
venv_done=no
[[ $found == "$wanted" && -x .venv/bin/podlane ]] && venv_done=yes

[[ ${#missing[@]} -eq 0 && $venv_done == yes ]] && exit 0

say "this will change:"
[[ ${#missing[@]} -eq 0 ]] || say "  this machine (needs root): apt-get install ${missing[*]}"
[[ $venv_done == yes ]] || say "  this checkout: a .venv with $(grep -c '==' requirements.lock) PyPI packages (about 350 MB), and the podlane command in it"
say "it takes one to four minutes, most of it downloads; the next call does nothing"

if [[ ${#missing[@]} -gt 0 ]]; then
	root=()
	if [[ $(id -u) -ne 0 ]]; then
		command -v sudo >/dev/null ||
			die "installing Debian packages needs root, and there is no sudo: run 'apt-get install ${missing[*]}' as root, then call this again"
		say "installing Debian packages needs root: sudo may ask for your password"
		root=(sudo)
	fi
	apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
	"${apt[@]}" update >&2 </dev/null || say "apt-get update failed in part: going on with the package lists that are here"
	"${apt[@]}" install --no-install-recommends "${missing[@]}" >&2 </dev/null ||
		die "apt-get could not install: ${missing[*]} (its own words are above). Mend that, then call this again"
fi

if [[ $venv_done == no ]]; then
	clear=(--clear)
	[[ $found != "$place "* ]] || clear=()
	"$PYTHON" -m venv "${clear[@]}" --system-site-packages .venv ||
		die "$PYTHON could not make .venv: see above; the Debian package is python3-venv"
	pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input --quiet)
	"${pip[@]}" install --require-hashes --only-binary :all: -r requirements.lock </dev/null >&2 ||
		die "pip could not install requirements.lock into .venv (its own words are above)"
	"${pip[@]}" install --no-index --no-deps --no-build-isolation --editable . </dev/null >&2 ||
		die "pip could not install this checkout into .venv (its own words are above)"
	printf '%s' "$wanted" >"$stamp"
fi
say "done"
