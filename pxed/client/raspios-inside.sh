# shellcheck shell=sh
# Inside a copy of a Raspberry Pi's root, run by a busybox for the machine that builds: the system of one
# card becomes one that any seat can run.
set -eu
cp -a /tmp/files/. /
. /usr/share/pxed/adopt.sh
adopt_root '' "$1"

# systemd-networkd has the card; who tells the system its name servers?
wants=/etc/systemd/system/multi-user.target.wants
if [ ! -e /lib/systemd/system/systemd-resolved.service ]; then
    cp -a /tmp/dns/. /
    for unit in pxed-dns.service pxed-dns.path; do
        ln -sf "/usr/lib/systemd/system/$unit" "$wants/"
    done
fi

# What is for a card of its own: it would swap on the network, or make the root larger.
for unit in dphys-swapfile.service resize2fs_once.service rpi-resize-swap-file.service \
    systemd-growfs-root.service sdcard-resize.service; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
# The firmware's files come by TFTP; those of one card's first start belong to nobody else.
for path in /boot/* /boot/.[!.]* /var/log/*.log /var/log/journal/* /var/lib/apt/lists/* \
    /var/cache/apt/archives/*.deb /root/.cache; do
    rm -rf "$path"
done
mkdir -p /boot/firmware /dev /sys /run
