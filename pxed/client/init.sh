#!/bin/busybox sh
# The first program of a diskless client with the minimal image, and of a Raspberry Pi: finds its disks
# on the Ethernet (or on its own disk, where it was installed), lays the private writable layer over the
# shared root and starts the system. Runs in busybox: Debian's static one has every command below built
# in, for others there are links. What it does and which parameters it takes: functions.sh.

# Programs of other packages, such as e2fsck, are in the second.
export PATH=/bin:/sbin
# Until /proc is there the shell cannot start itself again as another command.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run

. /functions.sh
. /layers.sh
. /state.sh
. /local.sh
# Of a full system, which has services of its own.
[ ! -r /keep.sh ] || . /keep.sh
parameters

# Drivers: those whose hardware is here, by the names that its buses give it; twice, because a virtio
# bus is itself found behind another.
drivers() {
    aliases=
    for bus; do
        for file in "/sys/bus/$bus/devices"/*/modalias; do
            [ -r "$file" ] && read -r name < "$file" && aliases="$aliases $name"
        done
    done
    # shellcheck disable=SC2086 # a list of words, none with a blank
    [ -z "$aliases" ] || modprobe -a -q $aliases 2> /dev/null
}
coldplug() {
    drivers pci platform usb
    drivers virtio scsi
}
# Cards on USB turn up late: what is there is asked for its drivers until one is a wired card.
late_cards() {
    while :; do
        for path in /sys/class/net/*/device; do
            [ ! -e "$path" ] || [ -e "${path%/device}/phy80211" ] || return 0
        done
        usleep 250000
        coldplug
    done
}
coldplug
modprobe -a -q aoe overlay squashfs 2> /dev/null &

if [ -n "$local_id" ]; then
    find_local
else
    late_cards &
    link_up
    find_root
fi
wait # for the modules
mkdir -p /new
mount_lower
mount_root /new
if [ -r /keep.sh ]; then
    cd /
    make_seat /new
    cd /new
fi

# proc goes last: without it the shell cannot start commands.
for path in run dev sys proc; do
    mount -o move "/$path" "/new/$path"
done
exec /bin/busybox switch_root /new /sbin/init
