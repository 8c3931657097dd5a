#!/usr/bin/env bash
# Builds what a guest needs, once, into the cache (default .cache/guest, elsewhere with $ARCHIPELAGO_GUEST_DIR):
#
#   vmlinux      the newest cloud kernel that the configured package lists offer, unpacked: boots faster when emulated
#   initrd.cpio  busybox, fio, e2fsprogs, xfsprogs, util-linux, and the functions of functions.sh; commands arrive on the serial console
#   boot.img     a disk that boots by itself: boot sector, GRUB, the kernel, and a root file system with the same tools
#
# Quiet when all is there; safe to run several times at once. Needs no root, only packages of tests/install/packages.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
cache=${ARCHIPELAGO_GUEST_DIR:-$here/../../../.cache/guest}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
exec 9>"$cache/lock"
flock 9

say() { echo "guest: $*" >&2; }

# Downloads the first package of those named that can be had, and unpacks it into $1.
unpack_package() {
    local into=$1 package
    shift
    mkdir -p "$cache/packages" "$into"
    for package in "$@"; do
        if (cd "$cache/packages" && apt-get download "$package" >download.log 2>&1); then
            dpkg -x "$cache/packages/${package}"_*.deb "$into"
            rm -f "$cache/packages/${package}"_*.deb
            return 0
        fi
    done
    cat "$cache/packages/download.log" >&2
    return 1
}

# Kernel packages on offer, newest first, the ones with everything in one package before the signed ones.
kernels() {
    local names
    names=$(apt-cache pkgnames linux-image-)
    for suffix in -unsigned ''; do
        grep -E "^linux-image-[0-9]+\.[0-9]+\.[0-9].*-cloud-amd64$suffix\$" <<<"$names" | sort --version-sort --reverse || true
    done
}

# An unsigned little-endian number of $3 bytes at offset $2 of file $1.
number_at() { od --address-radix=n --format="u$3" --skip-bytes="$2" --read-bytes="$3" --endian=little "$1" | tr -d ' '; }

# The ELF image in a bzImage: the boot protocol's header says where the payload is, its magic how it is packed.
unpack_bzimage() {
    local image=$1 start length
    start=$((($(number_at "$image" 497 1) + 1) * 512 + $(number_at "$image" 584 4)))
    length=$(($(number_at "$image" 588 4) - 4)) # The last four bytes say how long it is unpacked.
    payload() { tail --bytes="+$((start + 1))" "$image" | head --bytes="$length" || true; }
    case $(number_at "$image" "$start" 4) in
    4247762216) payload | zstd --decompress --stdout --quiet ;;
    1484404733) payload | xz --decompress --single-stream --stdout ;;
    *) return 1 ;;
    esac
}

build_kernel() {
    local candidates
    mapfile -t candidates < <(kernels)
    [ ${#candidates[@]} -gt 0 ] || { say "no linux-image-*-cloud-amd64 package on offer; run apt-get update"; return 1; }
    rm -rf "$cache/kernel" && mkdir "$cache/kernel"
    say "kernel: ${candidates[0]}"
    unpack_package "$cache/kernel" "${candidates[@]}"
    local image
    image=$(echo "$cache"/kernel/boot/vmlinuz-*)
    if ! unpack_bzimage "$image" >"$cache/vmlinux.new"; then
        say "kernel packed in an unknown way: using it as it is"
        cp "$image" "$cache/vmlinux.new"
    fi
    cp "$image" "$cache/vmlinuz"
    mv "$cache/vmlinux.new" "$cache/vmlinux"
}

# fio, linked statically: the package depends on the libraries of every cluster file system.
build_fio() {
    local apt=$cache/sources
    rm -rf "$apt" && mkdir -p "$apt/parts" "$apt/lists/partial" "$apt/archives/partial" "$apt/tree"
    # The host's own lists, asked for sources, beside the host's state.
    local list
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        case $list in
        *.sources) sed 's/^Types:.*/Types: deb-src/' "$list" >"$apt/parts/${list##*/}" ;;
        *.list) [ ! -e "$list" ] || sed --quiet 's/^deb /deb-src /p' "$list" >"$apt/parts/${list##*/}" ;;
        esac
    done
    local options=(
        -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/parts"
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt" -o Debug::NoLocking=1 -o APT::Sandbox::User=root
    )
    say "fio: building it static"
    apt-get "${options[@]}" update >"$apt/log" 2>&1 || true # Some list may have no sources; the download decides.
    if ! (cd "$apt" && apt-get "${options[@]}" source --download-only fio) >>"$apt/log" 2>&1; then
        cat "$apt/log" >&2
        return 1
    fi
    tar --extract --file "$(find "$apt" -maxdepth 1 -name "fio_*.orig.tar.*" ! -name "*.asc")" --directory "$apt/tree" --strip-components 1
    if ! (cd "$apt/tree" && ./configure --build-static --disable-native && nice make --jobs "$(nproc)" fio) >>"$apt/log" 2>&1; then
        tail -n 20 "$apt/log" >&2
        return 1
    fi
    strip --output-file "$cache/fio" "$apt/tree/fio"
    rm -rf "$apt"
}

# Copies the program $2 into the folder $3 of $1, with the libraries that it needs.
add_program() {
    local root=$1 program library
    program=$(command -v "$2")
    cp --dereference "$program" "$root/$3/$2"
    # A static one has none.
    { ldd "$program" 2>/dev/null | grep --only-matching '/[^ ]*' || true; } | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp --dereference --update "$library" "$root$library"
    done
}

# The tree that both the initrd and the bootable image are made of.
build_tree() {
    local root=$1 module file
    rm -rf "$root"
    mkdir -p "$root"/{bin,tools,dev,proc,sys,tmp,mnt,lib/modules,etc}
    ln -s bin "$root/sbin"
    add_program "$root" busybox bin
    for program in mke2fs e2fsck resize2fs mkfs.xfs xfs_repair blkdiscard fstrim lsblk blockdev losetup; do
        add_program "$root" "$program" tools
    done
    ln -s mke2fs "$root/tools/mkfs.ext4"
    # In the order in which they depend on each other; what a kernel has built in has no file.
    : >"$root/lib/modules/order"
    for module in crc32c_generic libcrc32c crc16 mbcache jbd2 ext4 xfs \
        virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk loop ublk_drv \
        failover net_failover virtio_net nbd; do
        file=$(find "$cache/kernel" -name "$module.ko*" -print -quit)
        case $file in
        '') continue ;;
        *.xz) xz --decompress --stdout "$file" >"$root/lib/modules/$module.ko" ;;
        *) cp "$file" "$root/lib/modules/$module.ko" ;;
        esac
        echo "$module" >>"$root/lib/modules/order"
    done
    cp "$here/functions.sh" "$root/lib/functions.sh"
    install --mode 755 "$here/init.sh" "$root/init"
}

pack() {
    (cd "$1" && find . | LC_ALL=C sort | cpio --quiet --create --format newc --owner 0:0 --reproducible)
}

build_initrd() {
    build_tree "$cache/tree"
    cp "$cache/fio" "$cache/tree/tools/fio"
    pack "$cache/tree" >"$cache/initrd.new"
    mv "$cache/initrd.new" "$cache/initrd.cpio"
    rm -rf "$cache/tree"
}

# Little-endian bytes of a number, for the partition table.
bytes() {
    local value=$1 count=$2 out=''
    while [ "$count" -gt 0 ]; do
        out+=$(printf '\\x%02x' $((value & 255)))
        value=$((value >> 8)) count=$((count - 1))
    done
    printf '%b' "$out"
}

# First sector of the partition, and sectors of the whole disk.
readonly PARTITION_START=2048 DISK_SECTORS=$((256 * 2048))

build_boot_image() {
    local work=$cache/boot grub sectors=$((DISK_SECTORS - PARTITION_START))
    rm -rf "$work" && mkdir -p "$work/grub"
    say "bootable image"
    unpack_package "$work/grub" grub-pc-bin
    grub=$work/grub/usr/lib/grub/i386-pc
    # The system on the disk, and the small first file system that finds it.
    build_tree "$work/root"
    build_tree "$work/first"
    install --mode 755 "$here/init-disk.sh" "$work/first/init"
    # init-disk.sh needs busybox and the modules only.
    rm -r "$work/first/tools"
    mkdir -p "$work/root/boot"
    cp "$cache/vmlinuz" "$work/root/boot/vmlinuz"
    pack "$work/first" | gzip --fast >"$work/root/boot/initrd"
    cp "$here/grub.cfg" "$work/grub.cfg"
    mke2fs -q -t ext4 -L archipelago -d "$work/root" -O ^metadata_csum_seed,^orphan_file \
        "$work/partition" "$((sectors / 2))k" >"$work/log" 2>&1 ||
        mke2fs -q -t ext4 -L archipelago -d "$work/root" "$work/partition" "$((sectors / 2))k"
    grub-mkimage --format i386-pc --directory "$grub" --prefix '(hd0,msdos1)/boot/grub' --config "$work/grub.cfg" \
        --output "$work/core" biosdisk part_msdos ext2 linux normal serial terminal
    truncate --size $((DISK_SECTORS * 512)) "$work/disk"
    dd if="$grub/boot.img" of="$work/disk" bs=1 count=440 conv=notrunc status=none
    # One active Linux partition; the boot sector loads GRUB from the gap before it.
    {
        printf '\x80\xfe\xff\xff\x83\xfe\xff\xff'
        bytes "$PARTITION_START" 4
        bytes "$sectors" 4
    } | dd of="$work/disk" bs=1 seek=446 conv=notrunc status=none
    printf '\x55\xaa' | dd of="$work/disk" bs=1 seek=510 conv=notrunc status=none
    dd if="$work/core" of="$work/disk" bs=512 seek=1 conv=notrunc status=none
    dd if="$work/partition" of="$work/disk" bs=512 seek="$PARTITION_START" conv=notrunc,sparse status=none
    mv "$work/disk" "$cache/boot.img"
    rm -rf "$work"
}

# Whether $1 is there and newer than everything after it.
is_fresh() {
    local target=$1 source
    shift
    [ -e "$target" ] || return 1
    for source in "$@"; do
        [ ! "$source" -nt "$target" ] || return 1
    done
}

is_fresh "$cache/vmlinux" || build_kernel
is_fresh "$cache/fio" || build_fio
is_fresh "$cache/initrd.cpio" "$cache/vmlinux" "$cache/fio" "$here/init.sh" "$here/functions.sh" "$here/build.sh" || build_initrd
is_fresh "$cache/boot.img" "$cache/vmlinux" "$here"/* || build_boot_image
