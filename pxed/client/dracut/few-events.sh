#!/bin/sh
# In the initramfs one of systemd's generators: with boot=pxed the coldplug asks for the few events of
# wake.sh, as in an initramfs of initramfs-tools, and not for those of every device. It holds until the
# root is switched to, for then systemd empties the directory ($1) and the system asks for all of them.
read -r cmdline < /proc/cmdline
case " $cmdline " in *' boot=pxed '*) ;; *) exit 0 ;; esac
coldplug=$1/systemd-udev-trigger.service.d
mkdir -p "$coldplug"
printf '[Service]\nExecStart=\nExecStart=-/bin/sh /wake.sh\n' > "$coldplug/pxed.conf"
