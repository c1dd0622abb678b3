# shellcheck shell=sh
# What a full system needs besides its root, said by the boot scripts of initramfs-tools and dracut
# after functions.sh has done its work.

# keep_link: what manages networks in the system must not take down a card that carries the root.
# Said in /run, so that the same root started from a disk knows nothing of it. systemd-networkd gives
# the card its address and keeps it up, NetworkManager keeps its hands off, ifupdown takes nothing
# down at shutdown, and /config stays until the last moment, for the root lies on it.
keep_link() {
    mkdir -p /run/systemd/network /run/NetworkManager/conf.d /run/systemd/system/config.mount.d \
        /run/systemd/system/networking.service.d
    printf '[Service]\nExecStop=\n' > /run/systemd/system/networking.service.d/pxed.conf
    printf '[Unit]\nDefaultDependencies=no\n' > /run/systemd/system/config.mount.d/pxed.conf
    for nic in $wired; do
        read -r mac < "/sys/class/net/$nic/address" || continue
        cat > "/run/systemd/network/05-pxed-$nic.network" << END
[Match]
MACAddress=$mac
[Link]
ActivationPolicy=always-up
RequiredForOnline=no-carrier:routable
[Network]
DHCP=yes
KeepConfiguration=yes
IgnoreCarrierLoss=yes
[DHCPv4]
ClientIdentifier=mac
END
        cat > "/run/NetworkManager/conf.d/05-pxed-$nic.conf" << END
[device-pxed-$nic]
match-device=mac:$mac
managed=0
END
    done
}

# keep_network DIR: of the root in DIR; a machine that runs from its own disk has no card to keep, but it
# wants an address, where the system has nothing of its own that asks for one.
keep_network() {
    if [ -z "$local_id" ]; then
        keep_link
        return
    fi
    for path in /sys/class/net/*; do
        [ -e "$path/device" ] && [ ! -e "$path/phy80211" ] || continue
        wired="$wired ${path##*/}"
    done
    [ ! -e "$1/usr/sbin/NetworkManager" ] || return 0
    ! grep -q '^ *iface *e' "$1/etc/network/interfaces" 2> /dev/null || return 0
    mkdir -p /run/systemd/network
    printf '[Match]\nName=en* eth*\n[Link]\nRequiredForOnline=no\n[Network]\nDHCP=yes\n' \
        > /run/systemd/network/90-pxed.network
}

# first_start DIR: a machine that has no name of its own yet gets one from its card's address, and its
# machine-id is kept where the next version of the image finds it again.
first_start() {
    for nic in $wired; do
        [ ! -s "$1/etc/hostname" ] && read -r mac < "/sys/class/net/$nic/address" || continue
        echo "$mac" | sed 's/:/-/g; s/^/seat-/' > "$1/etc/hostname"
    done
    if [ ! -s "$1/etc/machine-id" ] && [ ! -e /run/pxed/degraded ]; then
        kept=$1/config/identity/machine-id
        if [ ! -s "$kept" ]; then
            mkdir -p "${kept%/*}"
            tr -d - < /proc/sys/kernel/random/uuid > "$kept"
        fi
        cat "$kept" > "$1/etc/machine-id"
    fi
}

# adopt DIR: a root that is the disk of an installed machine becomes a seat's own, in this seat's layer
# and once for each version. `pxed promote` puts /adopt into such an image's initramfs.
adopt() {
    [ -r /adopt/adopt.sh ] && [ ! -e "$1/etc/pxed-image" ] || return 0
    read -r name < /adopt/image
    cp -a /adopt/files/. "$1/"
    # shellcheck source=adopt.sh
    . /adopt/adopt.sh
    adopt_root "$1" "$name"
}
