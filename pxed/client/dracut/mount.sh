#!/bin/sh
# Dracut reads this at its mount hook, in a shell where its own variables and functions live: ours stay
# in a subshell.
pxed_mount() (
    # What functions.sh knows from busybox.
    usleep() { sleep "0.$(printf %06d "$1")"; }
    # fail's shell: a unit has no terminal, and setsid knows no functions.
    setsid() { command setsid --ctty --wait sh -i < "$console" > "$console" 2>&1; }

    # shellcheck source=../functions.sh
    . /functions.sh
    # shellcheck source=../layers.sh
    . /layers.sh
    # shellcheck source=../keep.sh
    . /keep.sh
    # shellcheck source=../installer/state.sh
    . /state.sh
    # shellcheck source=../local.sh
    . /local.sh
    parameters
    console=/dev/${consoles##* }
    udevadm settle --timeout=10
    modprobe -a -q aoe overlay squashfs erofs ext4 &
    if [ -n "$local_id" ]; then
        find_local
    else
        link_up
        find_root
    fi
    wait # for the modules
    mount_lower
    mount_root "$NEWROOT"
    cd / || fail "the initramfs has no root directory"
    make_seat "$NEWROOT"
)
if [ "$root" = pxed ] && ! ismounted "$NEWROOT"; then
    pxed_mount
fi
