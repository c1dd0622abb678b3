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

# attempt COMMAND...: run it; what it said when it failed, in $trouble: its first line's last words.
attempt() {
    trouble=$("$@" 2>&1) && return 0
    trouble=${trouble%%
*}
    trouble=${trouble##*: }
    return 1
}

# check_config: repairs what can be repaired without a question; no harm where there is no e2fsck.
check_config() {
    command -v e2fsck > /dev/null || return 0
    e2fsck -p "$config_dev" > /dev/null 2>&1
    [ $? -lt 4 ]
}

# written: whether the config disk takes what is written. Some answers come from memory: what was synced
# is on the disk.
written() {
    attempt dd if=/dev/zero of=/config/.written bs=16384 count=1 conv=fsync
    set -- $?
    rm -f /config/.written
    return "$1"
}

# overlay LAYER DIR: LAYER over $lower, with nothing that a later kernel could resent. Where overlayfs
# cannot make its work directory it mounts read-only and calls that done; here it is a failure.
overlay() {
    mount -t overlay -o "lowerdir=$lower,upperdir=$1/upper,workdir=$1/work,\
index=off,metacopy=off,redirect_dir=off,xino=off" root "$2" 2> /dev/null || return 1
    ! grep -q "^root $2 overlay ro" /proc/mounts || { umount "$2" && return 1; }
}

# listed DIR: whether it has names that can be read.
listed() {
    (cd "$1" && set -- * && [ "$1" != '*' ]) 2> /dev/null
}

# entered DIR: what a start needs first can be listed, where the shared root below has it and it is not
# empty there. A damaged directory shows only to who reads it.
entered() {
    for each in '' /etc /usr /usr/sbin /sbin; do
        ! listed "/lower$each" || listed "$1$each" || return 1
    done
}

# reclaim: the room of layers that nothing can start again. Their versions were removed from the server,
# which names them behind the lines of the report device. What other layers there are, in $others;
# what was done, in $reclaimed.
reclaim() {
    others='' reclaimed=''
    for each in /config/layers/*; do
        each=${each##*/}
        case $each in
        *[!A-Za-z0-9._+@-]* | "$generation") ;;
        *) others="$others $each" ;;
        esac
    done
    uptime
    if [ -n "$others" ] && discover $((now + 50)) "$report_disk"; then
        former=$(dd if="/dev/etherd/$report_disk" bs=512 skip=24 count=8 2> /dev/null | tr -d '\0')
        case $former in
        'pxed-former 1'*)
            # shellcheck disable=SC2086 # one name a word
            set -- $others
            others=
            for each; do
                case "
$former
" in
                *"
$each
"*) discard "/config/layers/$each" && reclaimed="$reclaimed $each" && continue ;;
                esac
                others="$others $each"
            done
            ;;
        esac
    fi
    empty
}

# discard PATH: that layer is no more: one rename, so that none is ever half there.
discard() {
    mv "$1" "/config/layers/.gone-${1##*/}" 2> /dev/null
}

# empty: frees what was discarded, at this start or one that was cut off; after 5 s the rest is left to
# the next start.
empty() {
    set -- /config/layers/.gone-*
    [ -e "$1" ] || return 0
    rm -rf "$@" 2> /dev/null &
    uptime
    ended $! $((now + 500)) || kill $! 2> /dev/null
    wait $! || :
}

# room: how much of the config disk is free, in $room; nothing where that cannot be told. Many small files
# can fill it too.
room() {
    room=
    # shellcheck disable=SC2046 # its second line has the disk, its size, what is used and what is free
    set -- $(df -P -k /config 2> /dev/null)
    [ $# -lt 11 ] || room=", $((${11} / 1024))M of $((${9} / 1024))M free"
    # shellcheck disable=SC2046
    set -- $(df -P -i /config 2> /dev/null)
    [ $# -lt 11 ] || [ "${11}" -ge $((${9} / 20)) ] || room="$room but ${11} files more at most"
}

# disk_layer DIR: this image's layer on the config disk over the shared root. At 1 nothing is mounted at
# DIR, $why says what is wrong, and what the layer holds is in $kept where that can be read.
disk_layer() {
    layer="/config/layers/$generation" lower=/lower kept='' full='' others='' reclaimed=''
    uptime
    if [ -n "$local_id" ]; then
        [ -b "$config_dev" ] || why="$config_disk has no partition for settings"
    elif ! discover $((now + config_wait * 100)) "$config_disk"; then
        why="no answer from AoE disk $config_disk within $config_wait s"
    fi
    [ -z "$why" ] || return 1
    mkdir -p /config
    if ! check_config; then
        why="$config_disk holds no ext4 file system that can be repaired"
        return 1
    fi
    if ! attempt mount -t ext4 -o noatime "$config_dev" /config; then
        why="$config_disk holds no ext4 file system that mounts: $trouble"
        # One that the server only lets us read, unless its journal has to be replayed.
        mount -t ext4 -o ro "$config_dev" /config 2> /dev/null || return 1
        why="cannot write to $config_disk: $trouble"
        kept=$layer
        return 1
    fi
    if ! written; then
        why="cannot write to $config_disk: $trouble"
        kept=$layer
        case $trouble in *'No space'*) full=", which is full" ;; *) return 1 ;; esac
    fi
    [ -n "$local_id" ] || reclaim
    if [ -n "$full" ]; then
        why="$why${others:+, with layers of$others besides}"
        ! written || why='' kept='' full=''
    fi
    if [ -n "$local_id" ] && ! own_layer; then
        why="cannot write to $config_disk"
        kept=
    elif ! attempt mkdir -p "$layer/upper" "$layer/work"; then
        why="cannot write to $config_disk: $trouble"
    elif ! overlay "$layer" "$1"; then
        : "${why:="overlayfs refuses the layer on $config_disk"}"
    elif ! entered "$1"; then
        why="the layer on $config_disk is damaged"
        kept=
        umount "$1"
    else
        why=
        return 0
    fi
    return 1
}

# memory_layer DIR: a layer in memory, over what there is to read.
memory_layer() {
    layer=/run/pxed/ram
    mkdir -p "$layer"
    mount -t tmpfs -o mode=755 layer "$layer"
    mkdir -p "$layer/upper" "$layer/work"
    if [ -n "$kept" ] && [ -d "$kept/upper" ]; then
        lower=$kept/upper:/lower
        overlay "$layer" "$1" && entered "$1" && why="$why; what it holds is there" && return
        umount "$1" 2> /dev/null
    fi
    lower=/lower kept=
    overlay "$layer" "$1"
}

# mount_root DIR: the private layer over the shared root. There is one pair of directories for each
# image: an upper never meets another lower. In memory if the disk cannot be had, and marked so.
mount_root() {
    why=
    if disk_layer "$1"; then
        room
        step config "$config_disk$full$room${others:+, layers of$others besides}\
${reclaimed:+, removed those of$reclaimed}"
    else
        memory_layer "$1" || fail "overlayfs refuses even a layer in memory"
        echo "$why" > /run/pxed/degraded
        step degraded "changes will be lost, $why"
        # Nothing is written to what cannot be relied on. A full disk stays, so that room can be made.
        [ -n "$full" ] || mount -o remount,ro /config 2> /dev/null
        [ -n "$kept$full" ] || umount /config 2> /dev/null
    fi
    mount_more "$1"
    cd "$1" || fail "the root is gone"
    mkdir -p config proc sys dev run
    # Not a move: where systemd runs already, mounts are shared and cannot be moved.
    ! grep -q ' /config ' /proc/mounts || { mount -o bind /config config && umount /config; }
    wait
    [ -n "$local_id" ] || owed
}
