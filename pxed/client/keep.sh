# shellcheck shell=sh
# What a full system needs besides its root, said by the boot scripts of initramfs-tools and dracut
# after functions.sh has done its work.

# make_seat DIR: all of it, for the root in DIR. What it is made to have is looked at, and not what the
# machine had that it comes from.
make_seat() {
    adopt "$1"
    keep_network "$1"
    first_start "$1"
    warn_user "$1"
}

# warn_user DIR: before and after each login on a terminal, where changes are in memory. So is this word.
warn_user() {
    [ -r /run/pxed/degraded ] || return 0
    read -r said < /run/pxed/degraded
    mkdir -p "$1/etc/issue.d"
    said="DEGRADED: what is saved here is lost when this machine goes off: $said"
    echo "$said" > "$1/etc/issue.d/pxed.issue"
    echo "$said" >> "$1/etc/motd"
}

# keep_link DIR: what manages networks in the system must not take down a card that carries the root.
# Said in /run, so that the same root started from a disk knows nothing of it. systemd-networkd gives
# the card its address and keeps it up, NetworkManager keeps its hands off (unless the system in DIR has
# nothing else), ifupdown takes nothing down at shutdown, and /config stays until the last moment, for
# the root lies on it.
keep_link() {
    mkdir -p /run/systemd/network /run/NetworkManager/conf.d /run/systemd/system/config.mount.d \
        /run/systemd/system/networking.service.d /run/udev/rules.d
    printf '[Service]\nExecStop=\n' > /run/systemd/system/networking.service.d/pxed.conf
    printf '[Unit]\nDefaultDependencies=no\n' > /run/systemd/system/config.mount.d/pxed.conf
    carries=
    [ ! -r "/sys/block/etherd!$root_disk/netif" ] ||
        read -r carries < "/sys/block/etherd!$root_disk/netif"
    for nic in $wired; do
        read -r mac < "/sys/class/net/$nic/address" || continue
        # A second card may be on another network, with a router of its own: the first one's goes before.
        metric=2048
        case ",${carries:-$nic}," in *",$nic,"*) metric=1024 ;; esac
        # A card that is up cannot get another name (before Linux 6.2), and after the attempt udev says for
        # ever that it is being renamed, for which networkd waits. Before 99-systemd.rules, which reads it.
        echo "SUBSYSTEM==\"net\", KERNEL==\"$nic\", ATTR{address}==\"$mac\", NAME=\"$nic\"" \
            > "/run/udev/rules.d/98-pxed-$nic.rules"
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
RouteMetric=$metric
[IPv6AcceptRA]
RouteMetric=$metric
END
        [ -e "$1/usr/lib/systemd/systemd-networkd" ] || [ -e "$1/lib/systemd/systemd-networkd" ] ||
            continue
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
        keep_link "$1"
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
# machine-id is kept where the next version of the image finds it again. Of several cards it is the one
# that the server knows it by: only that one sees this machine's /config.
first_start() {
    cards=$wired
    if [ -r "/sys/block/etherd!$config_disk/netif" ] &&
        read -r nics < "/sys/block/etherd!$config_disk/netif"; then
        cards="$(echo "$nics" | tr , ' ') $wired"
    fi
    for nic in $cards; do
        [ ! -s "$1/etc/hostname" ] && [ -r "/sys/class/net/$nic/address" ] &&
            read -r mac < "/sys/class/net/$nic/address" || continue
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
# and once for each version. `pxed promote` and `pxed image import` put /adopt into the initramfs. On a
# machine's own disk one layer serves all versions: what its user has set since the first one stays.
adopt() {
    [ -r "${adoption:=/adopt}/adopt.sh" ] || return 0
    before=
    [ ! -r "$1/etc/pxed-adopted" ] || read -r before < "$1/etc/pxed-adopted"
    read -r name < "$adoption/image"
    [ "$before" != "$name" ] || return 0
    # One by one: the root may have a link where another has a directory.
    for file in $(cd "$adoption/files" && find . -type f); do
        mkdir -p "$1/${file%/*}"
        cp -p "$adoption/files/$file" "$1/$file"
    done
    # shellcheck source=adopt.sh
    . "$adoption/adopt.sh"
    if [ -z "$before" ]; then
        adopt_root "$1" "$name"
    else
        adopt_version "$1" "$name"
    fi
    echo "$name" > "$1/etc/pxed-adopted"
}
