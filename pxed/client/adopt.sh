# shellcheck shell=sh
# Turns the system of one installed machine into one that any seat can run. Read by promote.sh inside
# the copy, and by the initramfs where a machine's own disk is the root: then it works in the seat's
# layer, at its first start. Needs only what busybox has.

# Servers that would answer a whole segment from every seat.
SERVERS='pxed dnsmasq isc-dhcp-server isc-dhcp-server6 kea-dhcp4-server kea-dhcp6-server tftpd-hpa
atftpd radvd vblade hostapd'

# adopt_root DIR IMAGE: DIR is empty for the root itself. Nothing that is missing is an error.
adopt_root() {
    root=$1
    mkdir -p "$root/config" "$root/etc/systemd/system/multi-user.target.wants" \
        "$root/etc/systemd/system/sockets.target.wants"
    adopt_disks
    adopt_kernel
    adopt_network
    adopt_identity
    adopt_units
    adopt_version "$1" "$2"
}

# adopt_version DIR IMAGE: what is ours in it, and nothing else.
adopt_version() {
    root=$1
    mkdir -p "$root/config" "$root/etc/systemd/system/multi-user.target.wants"
    for ours in pxed-running pxed-good; do
        ln -sf "/usr/lib/systemd/system/$ours.service" \
            "$root/etc/systemd/system/multi-user.target.wants/"
    done
    echo "$2" > "$root/etc/pxed-image"
}

# Of its file systems only those that every seat can have too.
adopt_disks() {
    if [ -f "$root/etc/fstab" ]; then
        while read -r what where type rest; do
            case $what in '#'*) continue ;; esac
            case $type in nfs | nfs4 | cifs | smb3 | ceph | glusterfs | 9p | fuse.* | tmpfs)
                echo "$what $where $type $rest" ;;
            esac
        done < "$root/etc/fstab" > "$root/etc/fstab.seat"
        mv -f "$root/etc/fstab.seat" "$root/etc/fstab"
    else
        : > "$root/etc/fstab"
    fi
    if [ -f "$root/etc/crypttab" ]; then : > "$root/etc/crypttab"; fi
    rm -f "$root/etc/initramfs-tools/conf.d/resume"
}

# Its kernel is the one that the server loads. Another one would fill the seat's layer and never start, and
# a boot loader that is upgraded looks for its disk and fails, and apt with it.
adopt_kernel() {
    conf=$root/etc/initramfs-tools/update-initramfs.conf
    [ ! -f "$conf" ] || sed -i 's/^update_initramfs=.*/update_initramfs=no/' "$conf"
    [ -d "$root/etc/apt" ] || return 0
    mkdir -p "$root/etc/apt/preferences.d"
    cat > "$root/etc/apt/preferences.d/pxed" << 'END'
Explanation: the boot server gives this machine its kernel; new ones come with a new image
Package: linux-image-* grub-pc grub-efi-amd64 grub-efi-amd64-signed shim-signed
Pin: version *
Pin-Priority: -1
END
}

# Two machines with one address are worse than one without: what gave this machine its address, bridges
# and tunnels goes. A seat's card belongs to systemd-networkd; see keep.sh.
adopt_network() {
    if [ -d "$root/etc/network" ]; then
        printf 'auto lo\niface lo inet loopback\n' > "$root/etc/network/interfaces"
        rm -f "$root"/etc/network/interfaces.d/*
    fi
    rm -f "$root"/etc/systemd/network/*.network "$root"/etc/systemd/network/*.netdev \
        "$root"/etc/netplan/*.yaml "$root"/etc/NetworkManager/system-connections/* \
        "$root"/etc/wireguard/*.conf "$root"/var/lib/dhcp/*.leases \
        "$root"/var/lib/NetworkManager/*.lease "$root"/var/lib/NetworkManager/secret_key
}

adopt_identity() {
    rm -f "$root/etc/hostname" "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub \
        "$root/etc/krb5.keytab" "$root"/etc/ssl/private/* "$root"/root/.ssh/id_* \
        "$root/var/lib/systemd/random-seed" "$root/var/lib/systemd/credential.secret"
    rm -rf "$root/etc/pxed"
    : > "$root/etc/machine-id"
    if [ -d "$root/var/lib/dbus" ]; then
        ln -sf /etc/machine-id "$root/var/lib/dbus/machine-id"
    fi
}

adopt_units() {
    own=$root/etc/systemd/system
    rm -f "$own/systemd-networkd.service" "$own/systemd-networkd.socket" # if they were masked
    ln -sf /lib/systemd/system/systemd-networkd.service "$own/multi-user.target.wants/"
    ln -sf /lib/systemd/system/systemd-networkd.service "$own/dbus-org.freedesktop.network1.service"
    ln -sf /lib/systemd/system/systemd-networkd.socket "$own/sockets.target.wants/"
    # Nothing waits for a network: the root has been on it from the beginning.
    ln -sf /dev/null "$own/systemd-networkd-wait-online.service"
    for server in $SERVERS; do
        for place in etc/systemd/system lib/systemd/system usr/lib/systemd/system; do
            if [ -e "$root/$place/$server.service" ] || [ -e "$root/etc/init.d/$server" ]; then
                ln -sf /dev/null "$own/$server.service"
            fi
        done
    done
}
