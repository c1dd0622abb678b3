# shellcheck shell=sh
# The start of a machine from its own disk, after an installation: the same root and the same layer as
# without a disk, from two partitions. Read after functions.sh, layers.sh and state.sh; pxed.local=ID and
# pxed.slot=a|b on the kernel command line come from the boot loader.

# What belongs to one version of the system and not to its user: put aside when another version starts,
# and put back when the first one starts again. All else in the layer stays: /etc, /home, /root,
# /usr/local, /opt, /srv, and what services keep in /var/lib.
OF_VERSION='bin sbin lib lib32 lib64 libx32 boot usr/bin usr/sbin usr/lib usr/lib32 usr/lib64
usr/libx32 usr/libexec usr/include usr/share usr/src usr/games var/cache var/lib/dpkg var/lib/apt
var/lib/ucf etc/ld.so.cache etc/alternatives'

# find_local: our own disk by its number, into $disk; and its root and settings as what functions.sh
# mounts. The loader found the disk already, so it only takes its driver some time.
find_local() {
    uptime
    limit=$((now + root_wait * 100))
    until own_disk; do
        uptime
        [ "$now" -lt "$limit" ] ||
            fail "the disk that this was started from does not show within $root_wait s"
        ! command -v coldplug > /dev/null || coldplug
        usleep 100000
    done
    part_named "pxed-root-$local_slot" "$disk" || fail "$disk has no partition pxed-root-$local_slot"
    root_disk=$disk root_dev=$part
    part_named pxed-settings "$disk" && config_disk=$disk config_dev=$part
    read -r release < /proc/sys/kernel/osrelease
    step kernel "$release from $disk, system $local_slot"
    echo "state=$state mine=$local_slot" > /run/pxed/local
}

own_disk() {
    for about in /sys/class/block/*/uevent; do
        grep -q '^PARTNAME=pxed-state$' "$about" 2> /dev/null || continue
        path=${about%/uevent}
        state=/dev/${path##*/}
        if [ -b "$state" ] && state_read "$state" && [ "$id" = "$local_id" ]; then
            disk=$(readlink -f "$path/..")
            disk=${disk##*/}
            return 0
        fi
    done
    return 1
}

# own_layer: one layer for all versions, in $layer, made fit for the one that starts: what belongs to
# another version goes aside. Every step is a rename, and a start that is cut off goes on at the next.
own_layer() {
    layer=/config/layers/local
    aside=/config/layers/aside
    mkdir -p "$layer/upper" "$layer/work" "$aside" || return 1
    before=
    [ ! -r "$layer/generation" ] || read -r before < "$layer/generation"
    if [ "$before" != "$generation" ]; then
        [ -z "$before" ] || move "$layer/upper" "$aside/$before"
        merge_accounts
        sync
        echo "$generation" > "$layer/generation.new" && sync &&
            mv "$layer/generation.new" "$layer/generation" && sync
        # The disk has two systems. What belonged to a third nothing can start again.
        for other in "$aside"/*; do
            case ${other##*/} in
            '*' | "$before" | "$generation") ;;
            *) discard "$other" ;;
            esac
        done
        empty
    fi
    move "$aside/$generation" "$layer/upper"
}

# move FROM TO
move() {
    for part in $OF_VERSION; do
        if [ -e "$1/$part" ] || [ -L "$1/$part" ]; then
            mkdir -p "$2/${part%/*}"
            [ "$part" != "${part%/*}" ] || rmdir "$2/$part" 2> /dev/null
            mv "$1/$part" "$2/$part"
        fi
    done
}

# merge_accounts: accounts of the system that only the new version has, where the user's file hides its.
merge_accounts() {
    for file in passwd group shadow gshadow; do
        mine=$layer/upper/etc/$file
        [ -f "$mine" ] && [ -r "/lower/etc/$file" ] || continue
        cp -p "$mine" "$mine.new"
        while IFS= read -r line; do
            grep -q "^${line%%:*}:" "$mine" || echo "$line" >> "$mine.new"
        done < "/lower/etc/$file"
        mv "$mine.new" "$mine"
    done
}
