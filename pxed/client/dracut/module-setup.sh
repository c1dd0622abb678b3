#!/bin/bash
# Dracut's module of the diskless client: dracut --add pxed. Same behaviour and same kernel command
# line (boot=pxed ...) as the boot script of initramfs-tools.

check() {
    require_binaries dd md5sum mount || return 1
    return 255 # only where it is asked for
}

depends() {
    echo base
}

installkernel() {
    # shellcheck disable=SC2046 # one module a word
    hostonly='' instmods $(sed '/^#/d' /usr/share/pxed/modules)
    # shellcheck disable=SC2046
    [ -z "$PXED_DISKS" ] || hostonly='' instmods $(sed '/^#/d' /usr/share/pxed/disks)
}

install() {
    inst_simple /usr/share/pxed/functions.sh /functions.sh
    inst_simple /usr/share/pxed/layers.sh /layers.sh
    inst_simple /usr/share/pxed/keep.sh /keep.sh
    inst_simple /usr/share/pxed/state.sh /state.sh
    inst_simple /usr/share/pxed/local.sh /local.sh
    inst_multiple dd df md5sum sed tr sleep mkdir mount umount cat reboot cp ln mv rm readlink head \
        rmdir grep sync find
    inst_multiple -o e2fsck
    # The cards' names, which cannot change any more once they are up.
    inst_rules 75-net-description.rules 80-net-setup-link.rules
    inst_multiple -o /usr/lib/systemd/network/99-default.link
    # $moddir is set by dracut
    # shellcheck disable=SC2154
    inst_hook cmdline 20 "$moddir/parse.sh"
    inst_hook mount 10 "$moddir/mount.sh"
    inst_simple "$moddir/gpt-auto.sh" /etc/systemd/system-generators/systemd-gpt-auto-generator
    # Not where disks matter; see the hook of initramfs-tools. modprobe is not hidden as there: newer
    # systemd makes /usr read-only before anything of ours runs, so nothing could put it back.
    if [ -z "$PXED_DISKS" ]; then
        inst_simple /usr/share/pxed/wake.sh /wake.sh
        inst_simple "$moddir/few-events.sh" /etc/systemd/system-generators/pxed-few-events
    fi
}
