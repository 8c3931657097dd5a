# What the tests ask a guest to do. Sourced by its init; each function fails with a word about what is wrong.

# Busybox takes its own programs of the same name first, whatever the path says.
for tool in blkdiscard fstrim blockdev lsblk losetup mke2fs e2fsck; do
    eval "$tool() { /tools/$tool \"\$@\"; }"
done

fail() { echo "FAILED: $*"; return 1; }

# Waits until the condition $2... holds, for $1 seconds of the guest's time.
await() {
    local deadline=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$deadline" ] || { fail "not within the time: $*"; return 1; }
        usleep 50000
    done
}

is_disk() { [ -b "/dev/$1" ]; }
is_gone() { [ ! -e "/sys/block/$1" ]; }
sectors_are() { [ "$(cat "/sys/block/$1/size")" = "$2" ]; }

# No block or file system error since the boot.
no_errors() {
    ! dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|Buffer I/O|JBD2.*(error|abort)|blk_update_request|timed out|BUG:|hung task' \
        && ! dmesg | grep -E 'XFS.*(rror|orruption|hut)'
}

# A file system on $1, mounted on /mnt.
make_fs() { mkfs.ext4 -q -F "$1" && mount -t ext4 "$1" /mnt; }

check_fs() { e2fsck -fn "$1" >/tmp/fsck.log 2>&1 || { cat /tmp/fsck.log; fail "e2fsck of $1"; }; }

check_xfs() { xfs_repair -n "$1" >/tmp/fsck.log 2>&1 || { cat /tmp/fsck.log; fail "xfs_repair of $1"; }; }

# Replays the journal of a file system that was not unmounted, then checks that nothing else is wrong.
recover_fs() { mount -t ext4 "$1" /mnt && umount /mnt && check_fs "$1"; }

# $1 files of $2 KiB of noise and their sums, all on the medium when it returns.
make_files() {
    mkdir -p /mnt/files && (
        cd /mnt/files || exit 1
        for i in $(seq "$1"); do head -c "$(($2 * 1024))" /dev/urandom >"f$i" || exit 1; done
        md5sum f* >sums
    ) && sync
}

check_files() { (cd /mnt/files && md5sum -c -s sums) || fail "files differ from their sums"; }

# The network of a guest that has one: the host's loopback is 10.0.2.2.
start_network() {
    await 60 test -e /sys/class/net/eth0 && ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0
}

# Verified random I/O: fio writes blocks with a crc32c each, then reads all of them back. More options may follow.
verify() {
    local target=$1 size=$2
    shift 2
    fio --name=verify --filename="$target" --size="$size" --rw=randwrite --bsrange=512-64k --ioengine=io_uring --iodepth=16 \
        --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0 --norandommap=0 --serialize_overlap=1 \
        --output=/tmp/fio.log --eta=never --allow_mounted_write=1 "$@" || { tail -n 30 /tmp/fio.log; dmesg | tail -n 5; fail "fio"; }
}

# The same in the background, over and over until stop_load; its result is asked for by end_load.
start_load() {
    rm -f /tmp/stop /tmp/load.result
    (
        while [ ! -e /tmp/stop ]; do
            verify "$@" >/tmp/load.log 2>&1 || { echo failed >/tmp/load.result; exit 1; }
        done
        echo passed >/tmp/load.result
    ) &
}
end_load() {
    touch /tmp/stop
    await 300 test -e /tmp/load.result || return 1
    [ "$(cat /tmp/load.result)" = passed ] || { cat /tmp/load.log; fail "verified load"; }
}

# Load that knows at any moment what it must read, with seed $1 on the places that follow; see disk-verifier.
start_verifier() {
    mkdir -p /tmp/verifier
    (disk-verifier run /tmp/verifier "$@" >/tmp/verifier/log 2>&1; echo $? >/tmp/verifier/result) &
    await 60 test -s /tmp/verifier/progress
}
# Waits until more than $1 rounds are over, unless it ends before that.
await_verifier() {
    await 60 is_beyond "$1" && [ ! -e /tmp/verifier/result ] || { cat /tmp/verifier/log /tmp/verifier/progress; fail "verified load"; }
}
is_beyond() {
    local rounds rest
    read -r rounds rest </tmp/verifier/progress
    [ "$rounds" -gt "$1" ] || [ -e /tmp/verifier/result ]
}
# Has it flush, and prints the digest of what it left.
end_verifier() {
    touch /tmp/verifier/stop
    await 60 test -s /tmp/verifier/result || return 1
    cat /tmp/verifier/log
    [ "$(cat /tmp/verifier/result)" = 0 ] || fail "verified load"
}

# Files of a MiB, each on the medium before the next one, until stop; how many is in /tmp/files.done. Each holds its number and noise.
start_files() {
    rm -f /tmp/files.* && make_noise && echo 0 >/tmp/files.done
    (write_files >/tmp/files.log 2>&1; echo $? >/tmp/files.result) &
}
make_noise() { head -c 1044480 /dev/urandom >/tmp/noise; }
file_of() { printf '%-4096s' "$1" && cat /tmp/noise; }
write_files() {
    local number=1
    while [ ! -e /tmp/files.stop ]; do
        file_of "$number" | dd of="/mnt/f$number" bs=1M conv=fsync || return 1
        echo "$number" >/tmp/files.new && mv /tmp/files.new /tmp/files.done
        number=$((number + 1))
    done
}
have_files() { [ "$(cat /tmp/files.done)" -ge "$1" ] || [ -e /tmp/files.result ]; }
# Waits until there are $1 files, unless it ends before that.
await_files() {
    await 120 have_files "$1" && [ ! -e /tmp/files.result ] || { cat /tmp/files.log; fail "files"; }
}
# Reads all files from the medium, and prints how many there are.
end_files() {
    local number=1
    touch /tmp/files.stop
    await 60 test -e /tmp/files.result || return 1
    [ "$(cat /tmp/files.result)" = 0 ] || { cat /tmp/files.log; fail "files" || return 1; }
    sync && echo 3 >/proc/sys/vm/drop_caches
    while [ "$number" -le "$(cat /tmp/files.done)" ]; do
        file_of "$number" | cmp -s - "/mnt/f$number" || { fail "file $number holds something else"; return 1; }
        number=$((number + 1))
    done
    cat /tmp/files.done
}

# MiB $1 of the disk, past the guest's cache.
write_noise() { file_of "$1" >/tmp/piece && dd if=/tmp/piece of=/dev/vda bs=1M seek="$1" oflag=direct conv=notrunc 2>/tmp/dd.log; }
# Writes MiB after MiB behind those that are written, until one is refused: their number.
fill_disk() {
    [ -e /tmp/noise ] || { make_noise && echo 0 >/tmp/written; }
    local number
    number=$(cat /tmp/written)
    while write_noise "$number"; do number=$((number + 1)); done
    echo "$number" | tee /tmp/written
    grep -q 'I/O error\|Input/output error' /tmp/dd.log || { cat /tmp/dd.log; fail "MiB $number was not refused"; }
}
# Writes one more, and reads all.
check_disk() {
    local number=0 last
    last=$(cat /tmp/written)
    await 60 write_noise "$last" || return 1
    blockdev --flushbufs /dev/vda
    while [ "$number" -le "$last" ]; do
        file_of "$number" >/tmp/piece
        dd if=/dev/vda bs=1M count=1 skip="$number" iflag=direct 2>/tmp/dd.log | cmp -s - /tmp/piece ||
            { fail "MiB $number holds something else"; return 1; }
        number=$((number + 1))
    done
}

# Requests in flight on disk $1.
in_flight() { awk '{ print $1 + $2 }' "/sys/block/$1/inflight"; }

is_zero() {
    local device=$1 skip=$2 count=$3
    dd if="$device" bs=512 skip="$skip" count="$count" 2>/dev/null | cmp -s -n "$((count * 512))" - /dev/zero
}
sum_of() { dd if="$1" bs=512 skip="$2" count="$3" 2>/dev/null | md5sum | cut -d' ' -f1; }

# File system, verified I/O, trim, and zeroes at the granularity of a sector on a whole disk.
battery() {
    local disk=/dev/$1 before after
    make_fs "$disk" && make_files 20 256 || return 1
    verify /mnt/fio 32m || return 1
    rm /mnt/fio
    check_files && umount /mnt && check_fs "$disk" || return 1
    mount -t ext4 "$disk" /mnt && fstrim -v /mnt && check_files && umount /mnt && check_fs "$disk" || return 1
    blkdiscard -f -z "$disk" || return 1
    is_zero "$disk" 0 131072 || fail "blkdiscard -z left data" || return 1
    # A sector in the middle of a block: its neighbours stay.
    dd if=/dev/urandom of="$disk" bs=64k count=16 oflag=direct 2>/dev/null
    before=$(sum_of "$disk" 0 9)$(sum_of "$disk" 10 100)
    blkdiscard -f -z -o $((9 * 512)) -l 512 "$disk" || return 1
    blockdev --flushbufs "$disk"
    after=$(sum_of "$disk" 0 9)$(sum_of "$disk" 10 100)
    is_zero "$disk" 9 1 || fail "BLKZEROOUT of a sector left data" || return 1
    [ "$before" = "$after" ] || fail "BLKZEROOUT of a sector touched its neighbours" || return 1
    blkdiscard -f "$disk" && verify "$disk" 64m && no_errors
}

# A node of Archipelago in the guest itself, with the placement $2, whose pool is a file system on the disk $1.
export ARCHIPELAGO_ROOT=/node/root
start_node() {
    mkfs.ext4 -q -F "$1" && mkdir -p /node && mount -t ext4 "$1" /node || return 1
    archipelago init --placement "$2" >/dev/null && archipelago node start || { show_node_log; fail "the node"; }
}
show_node_log() { tail -n 20 $ARCHIPELAGO_ROOT/run/archipelagod.log; }

# Process ids of the node's programs: the data process of the role $1, or the daemon.
pid_of_role() {
    local pid
    for pid in $(pidof archipelagod); do
        if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- "--role $1"; then echo "$pid"; fi
    done
}
pid_of_daemon() {
    local pid
    for pid in $(pidof archipelagod); do
        if ! tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q ' peer '; then echo "$pid"; fi
    done
}
# Whether the data processes say PR_SET_IO_FLUSHER: PF_MEMALLOC_NOIO, the seventh word behind the name.
all_serve_write_back() {
    local pid
    for pid in $(pid_of_role ''); do
        [ $(($(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f7) & 0x80000)) != 0 ] || { fail "process $pid waits for write-back"; return 1; }
    done
}
no_node() { [ -z "$(pidof archipelagod)" ]; }

# A read past all caches of the disk $1 that must succeed: how long it took, in hundredths of a second.
time_read() {
    local before after
    before=$(tr -d . </proc/uptime | cut -d' ' -f1)
    dd if="/dev/$1" of=/dev/null bs=4k count=1 skip=60000 iflag=direct 2>/tmp/dd.log || { cat /tmp/dd.log; fail "a read of $1"; return 1; }
    after=$(tr -d . </proc/uptime | cut -d' ' -f1)
    echo $((after - before))
}
# Kills the data process of the role $2 beneath the disk $1: requests in flight before that, and how long a read then took.
kill_beneath() {
    local pid
    pid=$(pid_of_role "$2")
    [ -n "$pid" ] || { fail "no process of the role $2"; return 1; }
    in_flight "$1"
    kill -9 "$pid" && time_read "$1"
}
# Kills the whole node beneath the disk $1, and starts it again.
kill_node_beneath() {
    in_flight "$1"
    kill -9 "$(pid_of_daemon)" && await 60 no_node && archipelago node start && time_read "$1"
}

# Random I/O of 4 KiB at a depth of 32 on $1, reads or writes as $2 says, for 5 s: requests a second.
rate_of() {
    fio --name=rate --filename="$1" --size=128m --rw="$2" --bs=4k --ioengine=io_uring --iodepth=32 --direct=1 --runtime=5 \
        --time_based --randrepeat=0 --norandommap=1 --output-format=terse --terse-version=3 --output=/tmp/rate.log --eta=never ||
        { cat /tmp/rate.log; fail "fio"; return 1; }
    case $2 in
    randread) cut -d';' -f8 /tmp/rate.log ;;
    *) cut -d';' -f49 /tmp/rate.log ;;
    esac
}
