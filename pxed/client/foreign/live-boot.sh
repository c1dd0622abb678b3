# shellcheck shell=sh
# initramfs-tools reads this for boot=pxed-live, the last boot= on the command line: live-boot as it is,
# once the AoE disks are there.
. /scripts/live

mountroot() {
    wait_for_udev 10
    /pxed/start
    Live
}
