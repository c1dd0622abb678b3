#!/bin/sh
# initrd.sh MAKER RELEASE FILE: the initramfs of a seat, inside its root. Only what our own part asks
# for, not every driver for every disk: it is loaded at each boot.
set -eu
case $1 in
initramfs-tools)
    mkdir -p /etc/initramfs-tools/conf.d
    printf 'MODULES=list\nRESUME=none\n' > /etc/initramfs-tools/conf.d/pxed
    # It is packed once, and loaded a kilobyte at a time at each start.
    ! command -v zstd > /dev/null || ! grep -q '^COMPRESS=zstd' /etc/initramfs-tools/initramfs.conf ||
        echo COMPRESSLEVEL=19 >> /etc/initramfs-tools/conf.d/pxed
    mkinitramfs -o "$3" "$2"
    ;;
dracut)
    dracut --quiet --force --reproducible --compress "zstd -19 -q -T0" --no-hostonly --kver "$2" \
        --modules "base systemd systemd-initrd dracut-systemd udev-rules pxed" "$3"
    chmod 644 "$3"
    ;;
esac
