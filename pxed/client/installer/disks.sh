# shellcheck shell=sh
# Which disks this machine has, and what is on them; nothing here writes.

MIB=1048576

# disks: the disks that an installation may go to, in $disks; not the one that we run from ($own), no
# network disk, and nothing that is removable or read-only. A disk on USB may be anybody's who left it
# there, and is not the machine's own: it is meant only if $disk_wanted is its name; others are in $usb.
disks() {
    disks='' usb=''
    for path in /sys/block/*; do
        disk=${path##*/}
        case $disk in
        '*' | loop* | ram* | zram* | sr* | fd* | dm-* | md* | nbd* | mtd* | etherd* | mmcblk*boot* | "$own") continue ;;
        esac
        read -r sectors < "$path/size" && [ "$sectors" -gt 0 ] || continue
        read -r removable < "$path/removable" && [ "$removable" = 0 ] || continue
        read -r locked < "$path/ro" && [ "$locked" = 0 ] || continue
        case $(readlink -f "$path") in
        */usb[0-9]*)
            [ "$disk" = "$disk_wanted" ] || { usb="$usb $disk"; continue; }
            ;;
        esac
        disks="$disks $disk"
    done
    disks=${disks# }
}

# settled: waits until the list of disks has not changed for a second; 20 s for the first one.
settled() {
    uptime
    begun=$now since=$now before=none
    while :; do
        disks
        uptime
        if [ "$disks" != "$before" ]; then
            before=$disks since=$now
            coldplug
        fi
        [ -z "$disks" ] || [ $((now - since)) -lt 100 ] || return 0
        [ $((now - begun)) -lt 2000 ] || return 0
        usleep 100000
    done
}

# size_of DISK: its size in MiB, in $mib.
size_of() {
    read -r sectors < "/sys/block/$1/size"
    mib=$((sectors / 2048))
}

# blank DISK: whether its first and its last MiB hold nothing but zeros; there is the mark of every
# partition table and of every file system, volume manager and array that Linux knows.
blank() {
    size_of "$1"
    zeros "/dev/$1" 0 1 && zeros "/dev/$1" $((mib - 1)) 2
}

# reads DEVICE MIB COUNT: whether it can be read; one that fails must not pass for an empty one.
reads() {
    dd if="$1" of=/dev/null bs=$MIB skip="$2" count="$3" 2> /dev/null
}

# zeros DEVICE MIB COUNT
zeros() {
    [ "$(dd if="$1" bs=$MIB skip="$2" count="$3" 2> /dev/null | tr -d '\0' | head -c 1 | wc -c)" = 0 ]
}

# look DISK: what is on it, in $kind (empty, unfinished, ours, foreign), $content and $mib; of ours also
# $have_name and $have_version (the system that it starts next), $slot, $try, $id and $ends.
look() {
    kind=foreign content='' have_name='' have_version='' slot='' try='' id='' ends=''
    size_of "$1"
    parts=0 mine=0
    for path in /sys/block/"$1"/*/partition; do
        [ -e "$path" ] || continue
        parts=$((parts + 1))
    done
    for each in $PARTS; do
        ! part_named "pxed-$each" "$1" || mine=$((mine + 1))
    done
    part=/dev/$1
    [ "$mine" != 8 ] || part_named pxed-state "$1"
    if ! reads "/dev/$1" 0 1 || ! reads "/dev/$1" $((mib - 1)) 2 || ! reads "$part" 0 1; then
        content='what cannot be read: the disk may be failing'
    elif [ "$mine" = 8 ] && [ "$parts" = 8 ]; then
        kind=unfinished
        state_read "$part" || return 0
        part_named "pxed-boot-${try:-$slot}" "$1"
        # In a shell of its own: what is offered has variables of the same names.
        have=$(release_read "$part" && echo "$name@$version")
        [ -n "$have" ] || return 0
        kind=ours have_name=${have%@*} have_version=${have#*@} content=$have
    elif [ "$parts" -gt 0 ]; then
        content="$parts partitions that pxed did not make"
        [ "$parts" != 1 ] || content='a partition that pxed did not make'
    elif blank "$1"; then
        kind=empty
    else
        content='data, or a partition table without partitions'
    fi
}

# choose: the disk that $disk_wanted (only, first, smallest, largest, or a name) means, in $chosen; 1
# and $because if it means none.
choose() {
    chosen='' best=''
    set -- $disks
    if [ $# = 0 ]; then
        because='this machine has no disk that this image has a driver for'
        [ -z "$usb" ] || because="only disks on USB are here (${usb# }), and none was called by its name"
        return 1
    fi
    case $disk_wanted in
    only)
        because="it has $# disks ($disks) and nobody said which one"
        [ $# = 1 ] && chosen=$1
        ;;
    first) chosen=$1 ;;
    smallest | largest)
        for disk; do
            size_of "$disk"
            if [ -z "$best" ] || { [ "$disk_wanted" = largest ] && [ "$mib" -gt "$best" ]; } ||
                { [ "$disk_wanted" = smallest ] && [ "$mib" -lt "$best" ]; }; then
                best=$mib chosen=$disk
            fi
        done
        ;;
    *)
        because="it has no disk $disk_wanted, only $disks"
        for disk; do [ "$disk" != "$disk_wanted" ] || chosen=$disk; done
        ;;
    esac
    [ -n "$chosen" ]
}
