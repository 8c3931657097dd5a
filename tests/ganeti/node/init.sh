#!/bin/bash
# The first process of a Ganeti node: makes the machine that Ganeti sees, in namespaces of its own, then waits until its standard
# input ends (the test says so, or has died), and takes everything down. All that changes lies in the directory $1, or in memory:
# the host's files stay as they are.
#
# With a directory $2 the machine's root is what lies there, another Debian with another Ganeti (root.sh makes one); what changes of it
# lies in $1 too. The directories after it are shown where they are: the programs, and what guests are made of.
#
# It prints its process id as the host sees it. As the first process it reaps whatever is left to it: Ganeti takes a dead QEMU that
# nobody has reaped for a running one.
set -euo pipefail
dir=$1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Before the new /proc is mounted: the number that the host knows.
read -r pid _ </proc/self/stat

mount --make-rprivate /
enter_root() {
    local root=$1 path
    shift
    mkdir -p "$dir"/{changes,work,root-file-system}
    mount -t overlay -o "lowerdir=$root,upperdir=$dir/changes,workdir=$dir/work" overlay "$dir/root-file-system"
    cd "$dir/root-file-system"
    for path in "$@"; do mkdir -p ".$path" && mount --bind "$path" ".$path"; done
    mount --rbind /dev dev
    mkdir former-root
    pivot_root . former-root
    cd /
}
if [ $# -gt 1 ]; then enter_root "${@:2}"; fi
mount -t proc proc /proc
# Anew: the network devices that it shows are those of the namespace in which it was mounted.
mount -t sysfs sysfs /sys

if [ $# -gt 1 ]; then
    umount --lazy /former-root
    rmdir /former-root
fi

private() { mkdir -p "$dir$1" && mount --bind "$dir$1" "$1"; }
# What other tests have mounted is not kept alive here: a mount below the programs or the directory alone stays.
while read -r source point type _; do
    case $type,$source in
    fuse,* | fuse.*,* | *,/dev/loop*) ;;
    *) continue ;;
    esac
    case $dir/ in
    "${point%/}"/*) ;;
    *) umount --lazy "$point" ;;
    esac
done </proc/mounts

cp -a /etc "$dir/etc"
mkdir -p "$dir/root/.ssh"
for path in /etc /srv /var/lib/ganeti /var/log/ganeti /usr/share/ganeti/extstorage; do private "$path"; done
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/sshd

hostname node1.example
cat >/etc/hosts <<END
127.0.0.1 localhost
192.0.2.1 node1.example node1
192.0.2.9 cluster.example cluster
END
: >/etc/resolv.conf
# Another home for root: the keys of this node are not the host's.
chmod 700 "$dir/root" "$dir/root/.ssh"
sed --in-place "s|^\(root:[^:]*:[^:]*:[^:]*:[^:]*\):[^:]*:|\1:$dir/root:|" /etc/passwd

ip link set lo up
ip link add br0 type bridge
ip address add 192.0.2.1/24 dev br0
ip link set br0 up

# Ganeti talks to its own node over ssh.
ssh-keygen -q -A
ssh-keygen -q -t rsa -b 2048 -N '' -f "$dir/root/.ssh/id_rsa"
cp "$dir/root/.ssh/id_rsa.pub" "$dir/root/.ssh/authorized_keys"
printf '%s\n' 'PermitRootLogin prohibit-password' 'PidFile /run/sshd.pid' 'StrictModes no' >/etc/ssh/sshd_config
/usr/sbin/sshd

take_down() {
    local devices
    # Each step is tried, whatever became of the others.
    set +e
    # Known by their files, as long as these are mounted.
    devices=$(timeout 10 losetup --noheadings --output NAME,BACK-FILE | awk -v dir="$dir/" 'index($2, dir) == 1 { print $1 }')
    # All processes of the namespaces but this one; there may be none.
    kill -9 -1 2>/dev/null
    for device in $devices; do timeout 10 losetup --detach "$device"; done
}
trap take_down EXIT

echo "$pid"
# Reads nothing: it waits for the end.
while read -r _; do :; done
