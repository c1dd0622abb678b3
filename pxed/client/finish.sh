#!/bin/sh
# Runs in the new root of `pxed image build debian`, as root and with the host's network, after the
# packages are there: the account, the locale, the keyboard, the services, the operator's own script,
# the initramfs; then all goes that belongs to one machine or to one moment.
set -eu
: "${IMAGE:?}" "${INITRAMFS:?}" "${ACCOUNT=}" "${LOCALE=}" "${MAINTENANCE=}" "${PASSWORD=}"
: "${KEYBOARD=}"

# step TEXT: what a failure from here on is one of; see finish() in debroot.py.
step() {
    echo "$1" > /tmp/step
}

step "setting up the root"
echo "$IMAGE" > /etc/pxed-image
: > /etc/fstab
mkdir -p /config
case $LOCALE in
'' | C | POSIX | C.UTF-8) ;; # in every system
*)
    step "making the locale"
    # locale-gen only warns of one that it does not know.
    grep -x "$LOCALE [^ ]*" /usr/share/i18n/SUPPORTED > /etc/locale.gen || {
        echo "Debian has no $LOCALE: /usr/share/i18n/SUPPORTED in its package locales names them"
        exit 1
    }
    locale-gen
    ;;
esac
echo "LANG=${LOCALE:-C.UTF-8}" > /etc/default/locale
if [ -n "$KEYBOARD" ]; then
    step "setting the keyboard"
    layout=${KEYBOARD%%:*} variant=
    [ "$layout" = "$KEYBOARD" ] || variant=${KEYBOARD#*:}
    # setupcon takes any word, and then leaves the kernel's own layout.
    known=/usr/share/X11/xkb/rules/base.lst
    sed -n '/^! layout/,/^$/p' "$known" | grep -q "^  $layout " || {
        echo "there is no keyboard layout $layout: $known in Debian's package xkb-data names them"
        exit 1
    }
    [ -z "$variant" ] || sed -n '/^! variant/,/^$/p' "$known" | grep -q "^  $variant  *$layout: " || {
        echo "layout $layout has no variant $variant: $known in Debian's package xkb-data names them"
        exit 1
    }
    printf 'XKBMODEL="pc105"\nXKBLAYOUT="%s"\nXKBVARIANT="%s"\nXKBOPTIONS=""\nBACKSPACE="guess"\n' \
        "$layout" "$variant" > /etc/default/keyboard
    # What the console loads at each start, made here once.
    setupcon --save-only
fi
if [ -n "$ACCOUNT" ]; then
    step "making the account $ACCOUNT"
    useradd --create-home --shell /bin/bash --groups sudo,audio,video,plugdev "$ACCOUNT"
    # Without a password it is locked: only what asks for none (a key, an automatic login) lets it in.
    [ -z "$PASSWORD" ] || printf '%s:%s\n' "$ACCOUNT" "$PASSWORD" | chpasswd --encrypted
fi
unset PASSWORD # the operator's script need not know it
step "enabling services"
systemctl --quiet enable pxed-running.service pxed-good.service systemd-networkd.service
# Nothing here waits for a network: the root has been on it from the beginning.
systemctl --quiet disable systemd-networkd-wait-online.service
if [ -s /tmp/script ]; then
    step "the operator's script"
    chmod 755 /tmp/script
    /tmp/script
fi

# A seat runs the kernel that the server loads into it. Another one, or an initramfs, would fill the
# seat's own layer and never start.
step "holding the kernel"
# shellcheck disable=SC2046 # one package a word
apt-mark hold $(dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' 'linux-image-*' |
    sed -n 's/^installed //p')
conf=/etc/initramfs-tools/update-initramfs.conf
sed -i 's/^update_initramfs=.*/update_initramfs=no/' $conf
# That is for updates alone. What a kernel calls that is installed in spite of the hold is a creation; this
# file is read by a shell, with update-initramfs' own arguments.
cat >> $conf << 'END'
# The server loads this machine's kernel and initramfs: another one would never start.
case " $* " in
*" -c "*)
    echo "update-initramfs: Not making an initramfs: the server loads this machine's."
    exit 0
    ;;
esac
END

step "making the initramfs"
release=$(ls /lib/modules)
sh /usr/share/pxed/initrd.sh "$INITRAMFS" "$release" /boot/initrd
# And one that starts from a disk, for the installer to put there.
[ -z "$MAINTENANCE" ] ||
    PXED_DISKS=1 sh /usr/share/pxed/initrd.sh "$INITRAMFS" "$release" /boot/initrd.own
ln "/boot/vmlinuz-$release" /boot/vmlinuz
ls -l /boot

step "cleaning up"
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/journal/* /boot/initrd.img-* /root/.cache
rm -f /etc/hostname /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/dbus/machine-id \
    /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- \
    /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old \
    /var/log/dpkg.log /var/log/alternatives.log /var/log/bootstrap.log /var/log/apt/* \
    /usr/sbin/policy-rc.d
: > /etc/machine-id
