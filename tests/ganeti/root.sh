#!/usr/bin/env bash
# Makes a root file system with Debian 13 and its Ganeti 3.1 in the directory $1, for the tests of this folder: GANETI_ROOT=$1.
# Quiet when it is there. Needs root, mmdebstrap, and a package mirror among those of this host that has Debian 13: about 90 s, 600 MB.
set -euo pipefail
root=$1 suite=trixie
[ ! -e "$root/usr/share/ganeti/3.1" ] || exit 0

if ! command -v mmdebstrap >/dev/null; then
    echo 'missing package: as root run: apt-get install --no-install-recommends mmdebstrap' >&2
    exit 1
fi
# Where this host gets Debian from.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
if [ -z "$mirror" ]; then
    echo 'no package mirror of Debian is configured' >&2
    exit 1
fi
echo "making $root of Debian's $suite"
# Beside its place until it is whole.
rm -rf "$root.new"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
packages=ganeti,qemu-system-x86,openssh-server,iproute2,procps,kmod,e2fsprogs,curl
if ! mmdebstrap --variant=minbase --aptopt='APT::Install-Recommends "false"' --include="$packages" \
    "$suite" "$root.new" "$mirror" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    exit 1
fi
rm -rf "$root"
mv "$root.new" "$root"
