#!/bin/busybox sh
# The first program of maintenance mode: finds what there is to install (on the network, or on the
# stick that it was started from), what the server wants, and the disk; then the rule decides. The
# kernel command line is that of functions.sh, and pxed.source=stick.

export PATH=/bin:/sbin
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run

. /functions.sh
. /installer/rule.sh
. /installer/state.sh
. /installer/disks.sh
. /installer/ask.sh
. /installer/install.sh
parameters
source=network
for word in $cmdline; do
    case $word in pxed.source=*) source=${word#*=} ;; esac
done
: > $LOG
# A stick would begin again for ever, and write again and again to a disk that fails: it stops, unless
# the command line says how long it waits. Over the network the server's orders end it.
case "$source $cmdline " in
"stick "*" pxed.reboot="*) ;;
"stick "*) reboot_after=0 ;;
esac
read -r esp_mib < /loader/esp.mib

# coldplug: drivers for all that the buses show by now; what they find may need more of them.
coldplug() {
    find /sys/devices -name modalias | xargs cat 2> /dev/null | sort -u |
        xargs modprobe -a -q 2> /dev/null
}

# on_network: the payload and the root over AoE.
on_network() {
    link_up
    uptime
    discover $((now + root_wait * 100)) "e$shelf.2" "$root_disk" || fail "no answer from AoE disks \
e$shelf.2 and $root_disk within $root_wait s on$wired: is the server on this segment?"
    # The report device of a client that the server knows answers at the same time.
    discover $((now + 200)) "$report_disk"
    orders=/dev/etherd/$report_disk skip=24
    tfm="etherd!e$shelf.2" from_root=/dev/etherd/$root_disk own=
    payload "$tfm" || fail "disk e$shelf.2 holds no system to install"
}

# payload [DISK]: the partition with the boot files, in $from_boot.
payload() {
    uptime
    limit=$((now + 3000))
    until part_named pxed-payload "${1:-}" && [ -b "$part" ]; do
        uptime
        [ "$now" -lt "$limit" ] || return 1
        [ -n "${1:-}" ] || coldplug
        usleep 100000
    done
    from_boot=$part
}

# on_stick: the same from the disk that holds them all.
on_stick() {
    payload || fail "cannot find the stick that this was started from"
    own=$(readlink -f "/sys/class/block/${from_boot##*/}/..")
    own=${own##*/}
    part_named pxed-os "$own" || fail "there is no system on this stick"
    from_root=$part orders='' skip=0
    ! part_named pxed-orders "$own" || orders=$part
    step kernel "started from $own"
}

# policy: what the server (or the stick's maker) wants; questions where nobody wants anything.
policy() {
    unattended=no wipe=no disk_wanted=only ends_wanted='' patience=600
    released_said=''
    [ -n "$orders" ] && [ -b "$orders" ] || return 0
    text=$(dd if="$orders" bs=512 skip=$skip count=8 2> /dev/null | tr -d '\0')
    case $text in 'pxed-orders 1'*) ;; *) return 0 ;; esac
    while IFS='=' read -r key value; do
        case $key in
        unattended) unattended=$value ;;
        wipe) wipe=$value ;;
        disk) disk_wanted=$value ;;
        until) ends_wanted=$value ;;
        released) released_said=$value ;;
        patience) patience=$value ;;
        esac
    done << END
$text
END
}

# result WORD TEXT: the last word of this run.
result() {
    step "$@"
    [ -z "$shell_wanted" ] || for tty in $consoles; do cat $LOG > "/dev/$tty"; done
    told 10
    sync
}

leave() {
    if [ "$source" = stick ]; then
        ask "Take the stick out and press Enter to restart; without it goes off in 60 s." 60
        [ "$answer" != timeout ] || poweroff -f
    fi
    say "restarting"
    reboot -f
}

nothing() {
    result "$1" "$chosen: $because; nothing was changed"
    leave
}

say "maintenance mode"
coldplug # what this finds, such as a virtio or a USB bus, has more on it
coldplug
modprobe -q aoe
for round in 1 2 3 4; do sleep 1 && coldplug; done &
if [ "$source" = stick ]; then on_stick; else on_network; fi
release_read "$from_boot" || fail "what is to be installed is damaged: add the image again"
policy
released=${released_said:-$released}
step root "$name@$version of ${released:-no date}, from the $source"

settled
chosen=none
if ! choose; then
    [ "$unattended" != yes ] && [ -n "$disks" ] && [ "$disk_wanted" = only ] && ask_disk || {
        chosen=none
        nothing refused
    }
fi
read -r sector_bytes < "/sys/block/$chosen/queue/logical_block_size"
look "$chosen"
step disk "$chosen: $mib MiB, $kind${content:+, $content}"
if [ "$sector_bytes" != 512 ]; then
    because="its sectors have $sector_bytes bytes, and only 512 can be installed on" && nothing refused
fi
# What the disk remembers holds unless the server says otherwise.
remembered=$ends
ends=${ends_wanted:-$remembered}
decide
ends=$remembered
if [ "$unattended" != yes ]; then
    case $verdict in
    install | refuse)
        if ask_leave; then
            verdict=install
        else
            because="$because, and nobody said yes"
            nothing refused
        fi
        ;;
    esac
fi
say "$chosen: $verdict, because $because"
case $verdict in
keep) nothing kept ;;
refuse) nothing refused ;;
esac
$verdict || nothing refused
read -r seconds rest < /proc/uptime
case $verdict in
install) result installed "$name@$version on $chosen, after ${seconds%.*} s" ;;
upgrade) result upgraded "$have_name@$have_version to $name@$version on $chosen, after ${seconds%.*} s" ;;
esac
leave
