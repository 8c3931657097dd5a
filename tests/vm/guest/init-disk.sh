#!/bin/busybox sh
# The first file system of the bootable image: finds the disk and hands over to the system on it.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
while read -r module; do insmod "/lib/modules/$module.ko"; done </lib/modules/order
tries=0
until [ -b /dev/vda1 ] || [ $tries -ge 100 ]; do usleep 100000; tries=$((tries + 1)); done
mount -t ext4 /dev/vda1 /mnt || { echo "GUEST-FAILED no root file system"; exec sh; }
mount --move /dev /mnt/dev
exec switch_root /mnt /init
