# shellcheck shell=sh
# What every start of a diskless client does, in functions: init.sh (the minimal image) and the boot
# script of initramfs-tools read this file and say only what differs. Needs busybox's commands.
# Command line: pxed.shelf=16 pxed.root=eS.L pxed.config=eS.L pxed.report=eS.L pxed.mtu=BYTES
# pxed.wait=SECS (root) pxed.config_wait=SECS pxed.reboot=SECS (0: stay) pxed.shell (a shell after a
# failure).
# pxed.mount=boot,tfm: the boot disk or the maintenance disk at /boot or /tfm, read-only.
# From a disk: pxed.local=ID pxed.slot=a|b (local.sh).

# Long names for what the caller's own script could call the same.
parameters() {
    shelf=16 root_disk='' config_disk='' report_disk='' mtu='' root_wait=90 config_wait=15
    reboot_after=30 shell_wanted='' local_id='' local_slot=a more_mounts=''
    read -r cmdline < /proc/cmdline
    for word in $cmdline; do
        value=${word#*=}
        case $word in
        pxed.shelf=*) shelf=$value ;;
        pxed.root=*) root_disk=$value ;;
        pxed.config=*) config_disk=$value ;;
        pxed.report=*) report_disk=$value ;;
        pxed.mtu=*) mtu=$value ;;
        pxed.wait=*) root_wait=$value ;;
        pxed.config_wait=*) config_wait=$value ;;
        pxed.reboot=*) reboot_after=$value ;;
        pxed.shell) shell_wanted=1 ;;
        pxed.mount=*) more_mounts=$(echo "$value" | tr , ' ') ;;
        pxed.local=*) local_id=$value ;;
        pxed.slot=*) local_slot=$value ;;
        esac
    done
    : "${root_disk:=e$shelf.1}" "${config_disk:=e$shelf.3}" "${report_disk:=e$shelf.4}"
    root_dev=/dev/etherd/$root_disk config_dev=/dev/etherd/$config_disk
    read -r consoles < /sys/class/tty/console/active
    lines=0 written=0 reports='' wired=''
    mkdir -p /run/pxed
}

say() {
    for tty in $consoles; do
        echo "pxed: $*" > "/dev/$tty"
    done
}

# uptime: hundredths of a second since the kernel started, in $now; no fork.
uptime() {
    read -r now rest < /proc/uptime
    now=${now%.*}${now#*.}
}

# ready NAME: the AoE disk is there and has its size.
ready() {
    [ -b "/dev/etherd/$1" ] && read -r size < "/sys/block/etherd!$1/size" && [ "$size" -gt 0 ]
}

# step NAME TEXT: say it, keep it, and write it to the report device once that is there. Sector i
# of the device is line i, so a line never waits for the one before.
step() {
    read -r seconds rest < /proc/uptime
    say "$seconds $*"
    word=$1
    shift
    # The rest of the device is the server's. The last line goes to what is said last.
    [ "$lines" -lt 24 ] || lines=23
    [ "$written" -le "$lines" ] || written=$lines
    eval "line$lines=\"\$word \$seconds \$*\""
    lines=$((lines + 1))
    flush
}

flush() {
    [ "$written" -lt "$lines" ] && ready "$report_disk" || return 0
    while [ "$written" -lt "$lines" ]; do
        eval "text=\$line$written"
        printf '%.500s\n' "$text" |
            dd of="/dev/etherd/$report_disk" bs=512 seek="$written" conv=sync,notrunc \
                oflag=direct 2> /dev/null &
        reports="$reports $!"
        written=$((written + 1))
    done
}

# ended PID UNTIL: until that process has ended; 1 at UNTIL.
ended() {
    while read -r number command condition rest < "/proc/$1/stat" && [ "$condition" != Z ]; do
        uptime
        [ "$now" -lt "$2" ] || return 1
        usleep 20000
    done 2> /dev/null
}

# told SECONDS: until every line is written, but no longer: a server that has gone must not hold up a
# machine that is about to restart.
told() {
    uptime
    limit=$((now + $1 * 100))
    for pid in $reports; do
        ended "$pid" "$limit" || return 1
    done
}

# The driver makes its device nodes before it is ready: a write to one of them while the module still
# starts is a NULL pointer in the kernel (seen in 6.1).
listening() {
    [ -r /sys/module/aoe/initstate ] && read -r state < /sys/module/aoe/initstate &&
        [ "$state" = live ]
}

# bounded DISK: never more asked of the driver than it has frames for. It has 512 for a disk, and a
# frame is in use until a thread of the driver has copied its answer. Where that thread falls behind and
# a request finds none, the driver forgets it until the next one (seen in 6.1 and 6.12), and who waits
# for the last waits for ever. 31 requests of 16 frames are 496, and more than the 64 on the wire.
bounded() {
    bounded_disk="/sys/block/etherd!$1"
    read -r frame_bytes < "$bounded_disk/payload" || frame_bytes=1024
    echo $((frame_bytes / 64)) > "$bounded_disk/queue/max_sectors_kb"
    echo 31 > "$bounded_disk/queue/nr_requests"
} 2> /dev/null

# discover UNTIL DISK...: ask the segment again and again, after 0.1 s, then less and less often,
# until the disks are there; 1 at UNTIL.
discover() {
    until=$1 pause=10 asked=0
    shift
    while :; do
        missing=
        for disk; do
            # Its queue is the last that a disk gets.
            ready "$disk" && [ -e "/sys/block/etherd!$disk/queue/nr_requests" ] ||
                missing="$missing $disk"
        done
        if [ -z "$missing" ]; then
            for disk; do
                bounded "$disk"
            done
            return 0
        fi
        uptime
        [ "$now" -lt "$until" ] || return 1
        if [ "$now" -ge "$asked" ] && listening; then
            echo > /dev/etherd/discover
            asked=$((now + pause))
            [ "$pause" -ge 100 ] || pause=$((pause * 2))
        fi
        usleep 5000
    done
}

# owed: where pxed-report goes on, and which lines it has to write first. The report device may turn
# up last of all, and no line after a gap is read.
owed() {
    number=$written
    while [ "$number" -lt "$lines" ]; do
        eval "printf '%s\\n' \"\$line$number\""
        number=$((number + 1))
    done > /run/pxed/owed
    echo "report=$report_disk lines=$written" > /run/pxed/client
}

fail() {
    step failed "$*"
    told 5
    say "this machine cannot start: $*"
    [ -z "$shell_wanted" ] || setsid cttyhack sh
    if [ "$reboot_after" -gt 0 ]; then
        say "restarting in $reboot_after s"
        sleep "$reboot_after"
        reboot -f
    fi
    say "it stays so until it is restarted"
    while :; do sleep 3600; done
}

# links: every wired card goes up; writing the flags is `ip link set up` without a fork.
links() {
    for path in /sys/class/net/*; do
        [ -e "$path/device" ] && [ ! -e "$path/phy80211" ] || continue
        case "$wired " in *" ${path##*/} "*) continue ;; esac
        [ -z "$mtu" ] || echo "$mtu" > "$path/mtu"
        echo 0x1003 > "$path/flags"
        wired="$wired ${path##*/}"
    done
}

carrier() {
    for nic in $wired; do
        read -r up < "/sys/class/net/$nic/carrier" && [ "$up" = 1 ] && return 0
    done 2> /dev/null
    return 1
}

# link_up: until a card has a carrier. Cards may come late (USB), and spanning tree takes its time.
link_up() {
    uptime
    begun=$now
    links
    until carrier; do
        uptime
        [ -n "$wired" ] || [ "$now" -lt $((begun + 1000)) ] ||
            fail "no wired network card that this image has a driver for"
        [ "$now" -lt $((begun + 6000)) ] || fail "no carrier within 60 s on$wired: is the cable in?"
        usleep 20000
        links
    done
    read -r release < /proc/sys/kernel/osrelease
    step kernel "$release on$wired"
}

find_root() {
    uptime
    discover $((now + root_wait * 100)) "$root_disk" || fail "no answer from AoE disk $root_disk \
within $root_wait s on$wired: is the server on this segment?"
    own_cards
}

# own_cards: of several cards only those are used for AoE by which the server knows this machine: the
# report device is shown to no other. A target with the same address on another network would be one
# more way to the same disk to the driver, and the root a mixture of two.
own_cards() {
    case ${wired# } in *' '*) ;; *) return 0 ;; esac
    uptime
    discover $((now + 200)) "$report_disk" || return 0
    read -r own < "/sys/block/etherd!$report_disk/netif" &&
        read -r seen < "/sys/block/etherd!$root_disk/netif" || return 0
    echo "$own" > /dev/etherd/interfaces
    [ "$seen" != "$own" ] || return 0
    echo all > /dev/etherd/flush
    uptime
    discover $((now + root_wait * 100)) "$root_disk" ||
        fail "no answer from AoE disk $root_disk on $own: its server is on another card's network"
}

# mount_lower: the shared root at /lower, read-only; which image it is, in $generation: what it says
# itself, or else a sum over its super block. The file systems' modules must be loaded by now.
mount_lower() {
    mkdir -p /lower
    mount -r -t squashfs "$root_dev" /lower 2> /dev/null ||
        mount -r -t erofs "$root_dev" /lower 2> /dev/null ||
        mount -r -t ext4 -o noload "$root_dev" /lower 2> /dev/null ||
        fail "disk $root_disk holds no squashfs, erofs or ext4"
    generation=
    [ -r /lower/etc/pxed-image ] && read -r generation < /lower/etc/pxed-image
    [ -r /adopt/image ] && read -r generation < /adopt/image
    if [ -z "$generation" ]; then
        generation=$(dd if="$root_dev" bs=2048 count=1 2> /dev/null | md5sum)
        generation=${generation%% *}
    fi
    step root "$root_disk $generation"
}

# mount_more DIR: what pxed.mount= asks for. Nothing depends on it, so what cannot be had is only said.
mount_more() {
    for each in $more_mounts; do
        case $each in
        boot) disk=e$shelf.0 ;;
        tfm) disk=e$shelf.2 ;;
        *) disk=none ;;
        esac
        uptime
        if [ -n "$local_id" ] || [ "$disk" = none ]; then
            say "pxed.mount=$each: there is nothing of that name"
        elif ! discover $((now + config_wait * 100)) "$disk"; then
            say "no answer from AoE disk $disk: nothing is mounted at /$each"
        # Who opens it waits until the kernel has looked for its partitions.
        elif ! mkdir -p "$1/$each" || ! true < "/dev/etherd/$disk" ||
            ! mount -r -t vfat "/dev/etherd/${disk}p1" "$1/$each" 2> /dev/null &&
            ! mount -r -t vfat "/dev/etherd/$disk" "$1/$each" 2> /dev/null; then
            say "disk $disk holds no file system that mounts at /$each"
        fi
    done
}
