#!/usr/bin/env bash
# `make demo`: a real virtual machine runs from an instant clone and outlives snapshot, resize and a restart of the node daemon.
# PLACEMENT=split (default here: a process per peer) or fused (all peers in one thread). Everything it starts is stopped at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."
placement=${PLACEMENT:-split}
began=$(date +%s%N)

step() { printf '\n\033[1m%2d. %s\033[0m\n' "$((count += 1))" "$1"; }
count=0
milliseconds() { echo $((($(date +%s%N) - $1) / 1000000)); }
# Runs a command, shows it with the time it took, and fails if that is $1 ms or more (0: any time will do).
timed() {
    local limit=$1 start took
    shift
    start=$(date +%s%N)
    "$@"
    took=$(milliseconds "$start")
    printf '    %-66s %6d ms\n' "${*/#$archipelago/archipelago}" "$took"
    [ "$limit" -eq 0 ] || [ "$took" -lt "$limit" ] || { echo "    that should take less than $limit ms"; return 1; }
}
indent() { sed 's/^/    /'; }

step "Packages, programs, and a disk image that boots"
tests/install/packages.sh
if [ -z "${ARCHIPELAGO_BIN_DIR:-}" ]; then
    cargo build --release --quiet --package archipelago-node --package archipelago-cli
    ARCHIPELAGO_BIN_DIR=$(realpath "${CARGO_TARGET_DIR:-target}")/release
fi
archipelago=$ARCHIPELAGO_BIN_DIR/archipelago
tests/vm/guest/build.sh
image=${ARCHIPELAGO_GUEST_DIR:-.cache/guest}/boot.img
printf '    ready after %d s\n' $(($(milliseconds "$began") / 1000))

root=$(mktemp --directory /tmp/archipelago-demo.XXXXXX)
export ARCHIPELAGO_ROOT=$root/node
mkdir "$ARCHIPELAGO_ROOT"
qemu=
finish() {
    local code=$?
    trap - EXIT
    [ -z "$qemu" ] || { kill "$qemu" 2>/dev/null && wait "$qemu" 2>/dev/null; } || true
    [ $code -eq 0 ] || tail -n 20 "$root/console" "$ARCHIPELAGO_ROOT/run/archipelagod.log" 2>/dev/null || true
    "$archipelago" node stop >/dev/null 2>&1 || true
    rm -rf "$root"
    [ $code -eq 0 ] || printf '\ndemo: FAILED\n'
    exit $code
}
trap finish EXIT
trap 'exit 1' INT TERM

step "A node, placement $placement"
timed 0 "$archipelago" init --placement "$placement" | sed '/^next:/d; /^configuration/d'
timed 0 "$archipelago" node start

step "An image, and a clone of it"
timed 0 "$archipelago" image import "$image" debian
timed 50 "$archipelago" volume clone debian vm1
socket=$("$archipelago" volume attach vm1)

# The guest answers each line on its serial console with `GUEST-EXIT <id> <code>`: tests/vm/guest/init.sh.
mkfifo "$root/keys"
: >"$root/console"
exec 5<>"$root/keys"
answers=0
# Waits until the console matches $1, for 120 s at most.
await_console() {
    local deadline=$((SECONDS + 120))
    until grep --quiet --text --extended-regexp "$1" "$root/console"; do
        kill -0 "$qemu" 2>/dev/null || { echo "    QEMU has ended"; return 1; }
        [ "$SECONDS" -lt "$deadline" ] || { echo "    the guest is silent"; return 1; }
        read -r -t 0.1 <>"$root/pause" || true
    done
}
mkfifo "$root/pause"
# Runs a command in the guest and shows what it prints.
guest() {
    local from
    answers=$((answers + 1))
    from=$(stat --format %s "$root/console")
    printf '    guest# %s\n' "$1"
    echo "$answers $1" >&5
    await_console "GUEST-EXIT $answers [0-9]+"
    tail --bytes="+$((from + 1))" "$root/console" | tr -d '\r' | sed "/GUEST-EXIT/d; s/^/      /"
    grep --quiet --text "GUEST-EXIT $answers 0" "$root/console"
}

step "A virtual machine boots from the clone: firmware, boot loader, kernel, root file system"
start=$(date +%s%N)
qemu-system-x86_64 -M q35,accel=tcg,memory-backend=mem -cpu max,-cx16 -m 512 \
    -object memory-backend-memfd,id=mem,size=512M,share=on -nodefaults -no-user-config -display none \
    -chardev stdio,id=console,signal=off -serial chardev:console \
    -chardev "socket,id=disk,path=$socket,reconnect=1" -device vhost-user-blk-pci,chardev=disk,bootindex=0 \
    <&5 >"$root/console" 2>"$root/qemu.log" &
qemu=$!
await_console GUEST-READY
printf '    %-66s %6d ms\n' "boot" "$(milliseconds "$start")"
guest 'uname -sr; df -h / | tail -1; lsblk -o NAME,SIZE,MOUNTPOINTS'
guest 'echo "written before the snapshot" >/mnt/diary && make_files 5 400 && cat /mnt/diary'
printf '    first output of a guest %d s after the start of the demo\n' $(($(milliseconds "$began") / 1000))

step "A snapshot of the running disk, while the guest writes; a clone of the snapshot"
guest '(while [ ! -e /tmp/stop ]; do head -c 200000 /dev/urandom >/mnt/noise; sync; done) & echo writing'
timed 1000 "$archipelago" volume snapshot vm1 monday
timed 50 "$archipelago" volume clone monday experiment
guest 'echo "written after the snapshot" >>/mnt/diary; sync; cat /mnt/diary'

step "Online resize: the guest sees it at once"
timed 0 "$archipelago" volume resize vm1 512M
guest "await 60 sectors_are vda $((512 * 2048)) && lsblk -d -o NAME,SIZE /dev/vda"

step "Restart of the node daemon under the running guest, which has been writing all the time"
timed 0 "$archipelago" node stop
timed 0 "$archipelago" node start
guest 'echo "written after the restart" >>/mnt/diary && sync && touch /tmp/stop && cat /mnt/diary'
guest 'check_files && no_errors && echo "all files whole, no error seen"'

step "What the node did: its peers, processes and channels"
"$archipelago" node status | cut --characters=1-150 | indent

step "The family, and checksums: image, snapshot and its clone keep what they were, vm1 has gone on"
guest 'sync; mount -o remount,ro / && echo read-only'
kill "$qemu" && wait "$qemu" 2>/dev/null || true
qemu=
"$archipelago" volume detach vm1
"$archipelago" volume list --tree | indent
# Of as much as the image has: vm1 has grown, and that alone must not make it differ.
size=$(stat --dereference --format %s "$image")
sum_of() { "$archipelago" image export "$1" "$root/copy" 2>/dev/null && head --bytes="$size" "$root/copy" | sha256sum | cut --delimiter=' ' --fields=1; }
# Through a pipe, as backups are made.
sum_of_pipe() { "$archipelago" image export "$1" - 2>/dev/null | sha256sum | cut --delimiter=' ' --fields=1; }
file=$(sha256sum <"$image" | cut --delimiter=' ' --fields=1)
debian=$(sum_of_pipe debian) monday=$(sum_of_pipe monday) experiment=$(sum_of_pipe experiment) vm1=$(sum_of vm1)
printf '    %-34s %s\n' "the file imported" "$file" "debian (image)" "$debian" "monday (snapshot of vm1)" "$monday" \
    "experiment (clone of monday)" "$experiment" "vm1 (went on), its first 256 MiB" "$vm1"
[ "$file" = "$debian" ] || { echo "    the image differs from its file"; exit 1; }
[ "$monday" = "$experiment" ] || { echo "    the clone differs from its snapshot"; exit 1; }
[ "$monday" != "$debian" ] && [ "$monday" != "$vm1" ] || { echo "    what was written is not there"; exit 1; }
echo "    image = file, clone = snapshot; image, snapshot and volume differ: as it should be"
printf '\ndemo: done in %d s, placement %s\n' $(($(milliseconds "$began") / 1000)) "$placement"
