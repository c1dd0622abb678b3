#!/bin/sh
# The part of `pxed image build raspios-like` that needs mounts: in mount and process namespaces of its
# own, which end with it. SOURCE, a root for another processor, is only read: an overlay over it takes
# every change, and that is what is compressed. Nothing of SOURCE is run: what is done inside it, so that
# its links lead nowhere else, a busybox of this machine does. TOOLS: that busybox, files/ and inside.sh.
set -eu
: "${SOURCE:?}" "${WORK:?}" "${OUT:?}" "${TOOLS:?}" "${IMAGE:?}" "${COMPRESSION:?}"

die() {
    echo "$*"
    exit 1
}

mount --make-rprivate /
root=$WORK/root
mkdir -p "$root" "$WORK/lower" "$WORK/upper" "$WORK/work"
mount --bind "$SOURCE" "$WORK/lower"
mount -o remount,bind,ro "$WORK/lower"
mount -t overlay -o "lowerdir=$WORK/lower,upperdir=$WORK/upper,workdir=$WORK/work,\
index=off,metacopy=off,redirect_dir=off,xino=off" pxed "$root" ||
    die "overlayfs cannot be mounted over $SOURCE: modprobe overlay, or another state_dir"
for name in proc tmp; do
    [ ! -L "$root/$name" ] || die "$SOURCE: /$name is a symbolic link"
    mkdir -p "$root/$name"
done
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
cp -a "$TOOLS/." "$root/tmp/"
chroot "$root" /tmp/busybox sh /tmp/inside.sh "$IMAGE"
umount "$root/proc" "$root/tmp"
echo "pxed: compressing the root"
# shellcheck disable=SC2086 # words
exec mksquashfs "$root" "$OUT/root.squashfs" -b 128K -noappend -progress -quiet $COMPRESSION
