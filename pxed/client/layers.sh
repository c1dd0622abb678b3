# shellcheck shell=sh
# The seat's own writable layer over the shared root: whether its disk can be relied on, which layers
# there may go, the overlay, and a layer in memory where the disk cannot be had. Read after functions.sh
# and called once the root is at /lower (mount_lower); what starts no system, such as the installer, does
# without. Needs busybox's commands.

# attempt COMMAND...: run it; what it said when it failed, in $trouble: its first line's last words.
attempt() {
    trouble=$("$@" 2>&1) && return 0
    trouble=${trouble%%
*}
    trouble=${trouble##*: }
    # What util-linux makes of EIO, also where it was a write that failed.
    case $trouble in "can't read superblock"*) trouble='Input/output error' ;; esac
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
