#!/bin/sh
# Start-up of the minimal lab system: what must be there for a shell, then the word that it runs.
hostname "$(cat /etc/pxed-image)"
mkdir -p /dev/pts /tmp
mount -t devpts devpts /dev/pts
echo 0x1043 > /sys/class/net/lo/flags
read -r seconds rest < /proc/uptime
echo "pxed: $seconds running $(cat /etc/pxed-image)" > /dev/console
[ ! -e /run/pxed/degraded ] || echo "pxed: DEGRADED, changes will be lost: $(cat /run/pxed/degraded)" > /dev/console
pxed-good
pxed-report running "$(cat /etc/pxed-image)"
