#!/pxed/bin/sh
# Run by the hooks of a foreign initramfs, as often as they like: once it starts the network and the AoE
# disks, with programs and drivers of our own, below /pxed.
[ ! -e /pxed/started ] || exit 0
: > /pxed/started
for path in dev proc sys run; do
    /pxed/bin/busybox mount -o bind "/$path" "/pxed/$path"
done
exec /pxed/bin/busybox chroot /pxed /bin/sh /aoe.sh
