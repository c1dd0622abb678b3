# shellcheck shell=sh
# The state of an installed disk: one sector that the boot loader, the installer and the running system
# share. It is the data of the one file in a tar archive, because GRUB can change a file of its
# environment there on BIOS and UEFI alike, and its place is known without any file system: sector 1
# of the partition pxed-state. A disk writes one sector whole or not at all, so a change is never half
# done.
#   slot   a or b: the system that is known to start; nothing else: the installation never ended
#   try    a or b: start this one next, once; the boot loader clears it before it does
#   id     this installation, so that a system finds its own disk among several
#   until  the day when support ends, or nothing

# state_read PARTITION: into $slot, $try, $id and $ends; 1 if there is none.
state_read() {
    slot='' try='' id='' ends=''
    block=$(dd if="$1" bs=512 skip=1 count=1 2> /dev/null | tr -d '\0')
    case $block in '# GRUB Environment Block'*) ;; *) return 1 ;; esac
    while IFS='=' read -r key value; do
        case $key in
        slot) slot=$value ;;
        try) try=$value ;;
        id) id=$value ;;
        until) ends=$value ;;
        esac
    done << END
$block
END
    case $slot in a | b) ;; *) return 1 ;; esac
    case $try in a | b) ;; *) try='' ;; esac
}

# state_write PARTITION: from the same, in one sector that is on the disk when this returns.
state_write() {
    block=$(printf '# GRUB Environment Block\nslot=%s\ntry=%s\nid=%s\nuntil=%s\n.' \
        "$slot" "$try" "$id" "$ends")
    block=${block%.}
    [ "${#block}" -le 512 ] || return 1
    {
        printf %s "$block"
        head -c $((512 - ${#block})) /dev/zero | tr '\0' '#'
    } | dd of="$1" bs=512 seek=1 count=1 conv=notrunc,fsync 2> /dev/null
}

# release_read PARTITION: what a boot partition says of its system, into $name, $version, $released,
# $root_size, $root_sha256 and $boot_size; 1 if it says nothing.
release_read() {
    name='' version='' released='' root_size=0 root_sha256='' boot_size=0
    text=$(dd if="$1" bs=512 skip=1 count=1 2> /dev/null | tr -d '\0')
    while IFS='=' read -r key value; do
        case $key in
        name) name=$value ;;
        version) version=$value ;;
        released) released=$value ;;
        root_size) root_size=$value ;;
        root_sha256) root_sha256=$value ;;
        boot_size) boot_size=$value ;;
        esac
    done << END
$text
END
    case $name$version in '' | *[!A-Za-z0-9._+~-]*) return 1 ;; esac
    case $root_size$boot_size in '' | *[!0-9]*) return 1 ;; esac
    [ -n "$name" ] && [ -n "$version" ] && [ "$root_size" -gt 0 ] && [ "$boot_size" -gt 0 ]
}

# part_named NAME [DISK]: the partition of that name on that disk (or the first on any), in $part.
part_named() {
    part=''
    for about in /sys/class/block/*/uevent; do
        text=
        while IFS='=' read -r key value; do
            [ "$key" != PARTNAME ] || text=$value
        done < "$about" 2> /dev/null
        [ "$text" = "$1" ] || continue
        where=${about%/uevent}
        if [ -n "${2:-}" ]; then
            path=$(readlink -f "$where/..")
            [ "${path##*/}" = "$2" ] || continue
        fi
        where=${where##*/}
        part=/dev/$(echo "$where" | tr '!' /)
        return 0
    done
    return 1
}
