#!/bin/sh
# The part of `pxed promote` that needs mounts: in mount and process namespaces of its own, which end
# with it. SOURCE, a directory or a block device, is only read: an overlay over it takes every change,
# and that is what is compressed. MOUNTS lists further file systems of SOURCE, EMPTY directories that
# stay empty; both are files, one path a line. Leaves vmlinuz, initrd and (with COPY) root.squashfs in
# OUT.
set -eu
: "${SOURCE:?}" "${WORK:?}" "${OUT:?}" "${FILES:?}" "${MOUNTS:?}" "${EMPTY:?}" "${IMAGE:?}"
: "${COPY=}" "${KERNEL=}" "${COMPRESSION=}"

die() {
    echo "$*"
    exit 1
}

say() {
    echo "pxed: $*"
}

count=0
# layer PATH: PATH of the source, in the view.
layer() {
    count=$((count + 1))
    below=$WORK/lower$count
    mkdir -p "$below" "$WORK/upper$count" "$WORK/work$count" "$root$1"
    if [ -b "$SOURCE" ]; then
        mount_device "$below"
    else
        mount --bind "${SOURCE%/}$1/" "$below"
        mount -o remount,bind,ro "$below"
    fi
    mount -t overlay -o "lowerdir=$below,upperdir=$WORK/upper$count,workdir=$WORK/work$count,\
index=off,metacopy=off,redirect_dir=off,xino=off" pxed "$root$1" ||
        die "overlayfs cannot be mounted over $SOURCE: modprobe overlay, or another state_dir"
}

# Reading it must not write to it: a journal of another kind than ext4's stays as it is.
mount_device() {
    for option in noload norecovery noatime; do
        mount -o "ro,$option" "$SOURCE" "$1" 2> /dev/null && return
    done
    die "$SOURCE: holds no file system that can be mounted here"
}

# kernel_of: the release to boot, in $release, and its file in $vmlinuz: the one that was asked for,
# else the running one, else the newest that can be a seat's.
kernel_of() {
    for release in ${KERNEL:-$(uname -r) $(ls -1v -r "$root/lib/modules")}; do
        modules=$root/lib/modules/$release
        [ -r "$modules/modules.dep" ] || continue
        cat "$modules/modules.dep" "$modules/modules.builtin" | grep -q '/aoe\.ko' || continue
        for vmlinuz in "$root/boot/vmlinuz-$release" "/boot/vmlinuz-$release"; do
            [ ! -r "$vmlinuz" ] || return 0
        done
    done
    die "no kernel${KERNEL:+ $KERNEL} with its modules and AoE driver: apt install linux-image-amd64"
}

mount --make-rprivate /
root=$WORK/root
layer /
while read -r path; do
    layer "$path"
done < "$MOUNTS"
for wanted in etc/os-release lib/modules sbin/init; do
    [ -e "$root/$wanted" ] || [ -L "$root/$wanted" ] || die "$SOURCE: no installed system: no $wanted"
done
maker=initramfs-tools
if [ ! -x "$root/usr/sbin/mkinitramfs" ]; then
    maker=dracut
    [ -x "$root/usr/bin/dracut" ] || die "$SOURCE: has no initramfs-tools: apt install initramfs-tools"
elif [ ! -x "$root/bin/busybox" ] && [ ! -x "$root/usr/bin/busybox" ]; then
    die "$SOURCE: has no busybox, which the initramfs needs: apt install busybox"
fi
kernel_of
say "kernel $release"

cp -a "$FILES/." "$root/"
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
chroot "$root" /bin/sh -c ". /usr/share/pxed/adopt.sh; adopt_root '' '$IMAGE'"
say "making the initramfs"
chroot "$root" /bin/sh /usr/share/pxed/initrd.sh "$maker" "$release" /tmp/initrd
cp "$vmlinuz" "$OUT/vmlinuz"
cp "$root/tmp/initrd" "$OUT/initrd"
umount "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp"
[ -n "$COPY" ] || exit 0

say "leaving out what belongs to this machine or this moment"
find "$root/var/log" -xdev -type f -delete 2> /dev/null || true
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb "$root/root/.cache"
while read -r path; do
    [ -e "$root$path" ] || continue
    if [ -d "$root$path" ]; then
        mount -t tmpfs -o "mode=$(stat -c %a "$root$path"),uid=$(stat -c %u "$root$path"),\
gid=$(stat -c %g "$root$path")" empty "$root$path"
    else
        rm -f "$root$path"
    fi
done < "$EMPTY"
say "compressing the system"
# shellcheck disable=SC2086 # words
exec mksquashfs "$root" "$OUT/root.squashfs" -b 128K -noappend -progress -quiet $COMPRESSION
