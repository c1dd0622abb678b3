# shellcheck shell=sh
# In a root of its own, with busybox: drivers of the cards that are here, links, the AoE disks. The root
# itself is for the initramfs that called; see functions.sh for the parameters.
export PATH=/bin

# shellcheck source=../functions.sh
. /functions.sh
# shellcheck source=../keep.sh
. /keep.sh
parameters

for bus in pci virtio usb; do
    for file in /sys/bus/"$bus"/devices/*/modalias; do
        [ -r "$file" ] && read -r name < "$file" && modprobe -q "$name"
    done
done 2> /dev/null
modprobe -q aoe
link_up
find_root
keep_link /none
# What is not told within a second stays untold: the root is there.
uptime
if discover $((now + 100)) "$report_disk"; then
    flush
    told 2
fi
