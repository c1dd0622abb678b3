#!/bin/busybox sh
# The first program of a diskless client with the minimal image: finds its disks on the Ethernet (or on
# its own disk, where it was installed), lays the private writable layer over the shared root and starts
# the system. Runs in Debian's busybox-static, whose shell has every command below built in. What it does and which parameters it
# takes: functions.sh.

export PATH=/bin
# Until /proc is there the shell cannot start itself again as another command.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run

. /functions.sh
. /state.sh
. /local.sh
# Of a full system, which has services of its own.
[ ! -r /keep.sh ] || . /keep.sh
parameters

# Drivers: those whose hardware is here, by the names that the buses give them; twice, because a
# virtio bus is itself found behind PCI.
drivers() {
    aliases=
    for file in /sys/bus/$1/devices/*/modalias; do
        [ -r "$file" ] && read -r name < "$file" && aliases="$aliases $name"
    done
    # shellcheck disable=SC2086 # a list of words, none with a blank
    [ -z "$aliases" ] || modprobe -a -q $aliases 2> /dev/null
}
coldplug() {
    drivers pci
    drivers virtio
    drivers scsi
}
coldplug
modprobe -a -q aoe overlay squashfs 2> /dev/null &

if [ -n "$local_id" ]; then
    find_local
else
    link_up
    find_root
fi
wait # for the modules
mkdir -p /new
mount_lower
mount_root /new
if [ -r /keep.sh ]; then
    cd /
    keep_network /new
    adopt /new
    first_start /new
    cd /new
fi

# proc goes last: without it the shell cannot start commands.
for path in run dev sys proc; do
    mount -o move "/$path" "$path"
done
exec /bin/busybox switch_root /new /sbin/init
