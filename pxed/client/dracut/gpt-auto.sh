#!/bin/sh
# In the initramfs this stands before systemd's generator of the same name. From a unified kernel image on
# UEFI that one waits, until it gives up, for a root partition on the disk which the firmware loaded from;
# with boot=pxed the root is ours to mount.
read -r cmdline < /proc/cmdline
case " $cmdline " in *' boot=pxed '*) exit 0 ;; esac
exec /lib/systemd/system-generators/systemd-gpt-auto-generator "$@"
