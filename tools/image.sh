#!/usr/bin/env bash
# build/podlane-image.tar, without Docker: a small Debian 12 by debootstrap (the mirror is the one that
# apt already uses), the locked PyPI packages that podlane needs to run, podlane, its plugin, and the
# compiled programs, so that no compiler is in it. `ctr -n k8s.io images import` takes it.
#
#   tools/image.sh [NAME]     NAME is what the image is called, localhost/podlane:dev if not given
set -euo pipefail
export LC_ALL=C.UTF-8
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME=${1:-localhost/podlane:dev}
PYTHON=.venv/bin/python
OUT=build/podlane-image.tar
MOST_MB=150

die() { printf 'image: %s\n' "$*" >&2; exit 2; }

[[ $(id -u) -eq 0 ]] || die "debootstrap needs root: run it with sudo"
[[ -x build/podlane-cni && -f build/podlane.bundle ]] || die "the plugin or the programs are not built: run \`make image\`"

# debootstrap makes device nodes, which a checkout on a nodev mount can't hold.
work=$(mktemp -d "${TMPDIR:-/tmp}/podlane-image-XXXXXX")
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT

mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' |
	sed -n 's/ bookworm$//p' | sed -n 1p)
[[ -n $mirror ]] || die "apt knows no mirror of Debian 12 (bookworm): add one to /etc/apt/sources.list"
echo "image: debootstrap from $mirror" >&2
debootstrap --variant=minbase --include=python3 bookworm "$root" "$mirror" >"$work/log" 2>&1 ||
	{ tail -20 "$work/log" >&2; die "debootstrap failed: its last words are above"; }

packages=$root/usr/local/lib/python3.11/dist-packages
"$PYTHON" tools/image.py requirements >"$work/requirements.txt"
pip=("$PYTHON" -m pip --disable-pip-version-check --no-input --quiet install --no-deps --no-compile --target "$packages")
"${pip[@]}" --require-hashes --only-binary :all: -r "$work/requirements.txt" </dev/null >&2 ||
	die "pip could not install the locked packages (its own words are above)"
# From a copy: setuptools leaves its build folder beside what it builds.
mkdir "$work/source"
cp -r pyproject.toml README.md LICENSE dataplane cli "$work/source"
rm -rf "$packages/bin"
"${pip[@]}" --no-index --no-build-isolation "$work/source" </dev/null >&2 ||
	die "pip could not install podlane (its own words are above)"
rm -rf "$packages/bin" "$root/usr/local/bin/"*
install -m 755 /dev/stdin "$root/usr/local/bin/podlane" <<-'EOF'
	#!/usr/bin/python3
	import sys

	from cli.main import main

	sys.exit(main())
EOF

# Layouts are read from the headers; the programs come compiled.
install -d "$packages/bpf"
install -m 644 bpf/config.h bpf/abi.h bpf/maps.h "$packages/bpf"
install -Dm 644 build/podlane.bundle "$root/usr/share/podlane/podlane.bundle"
install -m 755 build/podlane-cni "$root/usr/share/podlane/podlane-cni"
cp -r bpf/LICENSES LICENSE "$root/usr/share/podlane/"

# What no process of ours reads: package lists, manuals, translations, time zones, character sets; apt and
# perl, as nothing is installed in a container; of the API client the asyncio twin and the typed API.
rm -rf "$root"/var/lib/{apt,dpkg/info} "$root"/var/cache/* "$root"/var/log/* \
	"$root"/usr/share/{man,info,locale,lintian,zoneinfo,perl*,bash-completion} "$root"/usr/lib/apt \
	"$root"/usr/bin/{apt*,perl*,gpgv,localedef} \
	"$root"/usr/lib/x86_64-linux-gnu/{perl*,gconv,libapt-*,libmvec.so*,libdb-5.3.so} \
	"$root"/usr/lib/python3*/{pydoc_data,lib2to3,idlelib,ensurepip}
find "$root/usr/share/doc" -mindepth 1 -not -name copyright -not -type d -delete
find "$root" -xdev -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$packages"/kubernetes/aio "$packages"/tzdata
find "$packages"/kubernetes/client/{models,api} -type f -not -name __init__.py -delete
# Bytecode, as the root is read-only later; times are no part of an image, so it is not compared with them.
chroot "$root" /usr/bin/python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/local/lib/python3.11 >/dev/null || true

chroot "$root" /usr/bin/python3 -c 'import cli.main, dataplane.agent.main, dataplane.sources.kubernetes' &&
	chroot "$root" /usr/local/bin/podlane --version >&2 || die "the image does not run"
"$PYTHON" tools/image.py pack "$root" "$NAME" "$OUT"
size=$(( $(stat -c %s "$OUT") / 1000000 ))
[[ $size -le $MOST_MB ]] || die "$OUT has $size MB, more than $MOST_MB"
echo "image: $OUT is $NAME, $size MB" >&2
