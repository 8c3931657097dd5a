#!/usr/bin/env bash
# Installs the Debian packages that the tests, the demo and the benchmark need. Says what it installs, nothing when all is there.
# Without root it prints the line to run. Rust itself is not installed: rustup does that.
set -euo pipefail

# What each is for:
#   gcc make libc6-dev      the linker of Rust, and fio for the guest
#   qemu-system-x86         the virtual machine; its qemu-system-common brings qemu-storage-daemon
#   qemu-utils              qemu-img and qemu-io: NBD clients; with qemu-nbd, formats of images; also for the benchmark's qcow2 clone
#   fio                     the client of the benchmarks over NBD and of files
#   curl                    images at an address
#   groff-base mandoc       reading the manual pages; fish and zsh: their completions
#   libnbd-bin              nbdcopy and nbdinfo: NBD clients
#   nbd-client              the kernel's NBD client, in a guest
#   busybox-static cpio     the guest's first file system
#   e2fsprogs util-linux    its tools, and the file systems of disk images
#   xfsprogs btrfs-progs    other file systems, for power cuts and full pools
#   grub-common             grub-mkimage: the boot loader on the bootable image
#   binutils xz-utils       unpacking kernel and modules
#   strace                  counting the system calls of a thread
#   jq                      JSON in scripts
#   ganeti openssh-server   a cluster in namespaces; nothing of them is started on this host by the tests
#   iproute2 procps         its network and its processes
#   ceph-mon ceph-osd       a cluster of the tests' own; nothing of them is started by their installation
#   ceph-common             its tools
#   librados-dev            the library of its clients
#   python3-rbd             RBD beside us, in the benchmark
packages=(
    gcc make libc6-dev
    qemu-system-x86 qemu-utils libnbd-bin nbd-client fio
    busybox-static cpio
    e2fsprogs util-linux xfsprogs btrfs-progs
    grub-common
    binutils xz-utils zstd
    strace
    curl groff-base mandoc fish zsh
    jq ca-certificates
    ganeti openssh-server iproute2 procps
    ceph-mon ceph-osd ceph-common librados-dev python3-rbd
)

find_missing() {
    local package status
    missing=()
    for package in "${packages[@]}"; do
        status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || missing+=("$package")
    done
}

find_missing
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages; as root run: apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Twice: a package of another origin (backports) may have to go for one of these, and is installed anew then.
for _ in 1 2; do
    [ ${#missing[@]} -gt 0 ] || break
    echo "installing: ${missing[*]}"
    if ! { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        exit 1
    fi
    find_missing
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "cannot be installed together: ${missing[*]}" >&2
    exit 1
fi
