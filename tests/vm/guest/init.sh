#!/bin/busybox sh
# A guest's first process: mounts, loads modules, then runs commands that arrive on the serial console, one in a line:
#   <id> <shell command>    is answered by    <output> GUEST-EXIT <id> <exit code>
/bin/busybox mkdir -p /dev /proc /sys /tmp /mnt
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/tools:/bin HOME=/ TERM=dumb
mount -t proc none /proc
grep -q " /dev " /proc/mounts || mount -t devtmpfs none /dev
mount -t sysfs none /sys
mount -t tmpfs none /tmp
dmesg -n 1
while read -r module; do insmod "/lib/modules/$module.ko" 2>/dev/null; done </lib/modules/order
stty -F /dev/ttyS0 -echo -opost 2>/dev/null
exec </dev/ttyS0 >/dev/ttyS0 2>&1
. /lib/functions.sh
echo "kernel $(uname -r)"
echo GUEST-READY
while read -r id command; do
    (eval "$command") </dev/null
    echo "GUEST-EXIT $id $?"
done
