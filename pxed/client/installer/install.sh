# shellcheck shell=sh
# Writes to the disk: the only part of the installer that does. A new disk gets eight partitions; an
# upgrade touches the two of the system that is not in use, and then one sector.

PARTS='bios esp state boot-a root-a boot-b root-b settings'
BIOS_START=2048 # sectors; core.img is made for this place
LOG=/run/pxed/log

# run COMMAND...: what it says goes to the log; what it said last is the reason if it fails.
run() {
    echo "+ $(cut -d" " -f1 /proc/uptime) $*" >> $LOG
    "$@" >> $LOG 2>&1 || fail "cannot write to $chosen: $(tail -n 1 $LOG)"
}

# up BYTES: in whole MiB.
up() {
    echo $((($1 + MIB - 1) / MIB))
}

# layout: sizes of the slots in MiB, from $mib of the disk and from what is offered, in $boot_mib and
# $root_mib; the settings get what is left. 1 and $because if the disk is too small. A slot has room for
# a system of twice the size, where the disk allows that.
layout() {
    boot_least=$(($(up "$boot_size") + 1)) root_least=$(($(up "$root_size") + 1))
    fixed=$((1 + 1 + esp_mib + 1 + 1 + 64)) # alignment, BIOS, ESP, state, second table, settings
    room=$((mib - fixed))
    if [ $((2 * (boot_least + root_least))) -gt "$room" ]; then
        because="$chosen has $mib MiB, and $name@$version needs $((2 * (boot_least + root_least) + fixed))"
        return 1
    fi
    boot_mib=$((2 * boot_least))
    [ "$boot_mib" -ge 64 ] || boot_mib=64
    [ "$boot_mib" -le $((room / 8)) ] || boot_mib=$boot_least
    room=$((room - 2 * boot_mib))
    root_mib=$((room / 4))
    [ "$root_mib" -le 16384 ] || root_mib=16384
    [ "$root_mib" -ge $((2 * root_least)) ] || root_mib=$((2 * root_least))
    [ $((2 * root_mib)) -le "$room" ] || root_mib=$root_least
    [ $((2 * root_mib)) -le "$room" ] || {
        boot_mib=$boot_least room=$((mib - fixed - 2 * boot_least))
        root_mib=$root_least
    }
}

# partition: the table, new. The types are those of the Discoverable Partitions Specification for what
# firmware looks at, and Linux data for the rest.
partition() {
    linux=0FC63DAF-8483-4772-8E79-3D69D8477DE4
    # Numbers from the kernel: the tools' own way waits until it has seen enough of chance.
    {
        uuid
        echo "label: gpt
label-id: $uuid
unit: sectors
first-lba: $BIOS_START"
        entry "start=$BIOS_START, size=2048, type=21686148-6449-6E6F-744E-656564454649" bios
        entry "size=$((esp_mib * 2048)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B" esp
        entry "size=2048, type=$linux" state
        for letter in a b; do
            entry "size=$((boot_mib * 2048)), type=$linux" boot-$letter
            entry "size=$((root_mib * 2048)), type=$linux" root-$letter
        done
        entry "type=$linux" settings
    } > /run/pxed/table
    step installing "$chosen: partitions, 2 x $((boot_mib + root_mib)) MiB for systems"
    echo "+ sfdisk" >> $LOG
    /sbin/sfdisk -q --wipe always --wipe-partitions always "/dev/$chosen" < /run/pxed/table >> $LOG 2>&1 ||
        fail "cannot partition $chosen: $(tail -n 1 $LOG)"
    uptime
    limit=$((now + 1000))
    until part_named pxed-settings "$chosen" && [ -b "$part" ]; do
        uptime
        [ "$now" -lt "$limit" ] || fail "the kernel does not show the new partitions of $chosen"
        usleep 50000
    done
}

uuid() {
    read -r uuid < /proc/sys/kernel/random/uuid
}

# entry FIELDS NAME: one line of the table.
entry() {
    uuid
    echo "$1, name=pxed-$2, uuid=$uuid"
}

# loader: GRUB for BIOS and for UEFI. The first 440 bytes of the disk are code, and then the table.
loader() {
    run dd if=/loader/boot.img of="/dev/$chosen" bs=440 count=1 conv=notrunc,fsync
    part_named pxed-bios "$chosen"
    run dd if=/loader/core.img of="$part" bs=$MIB conv=fsync
    part_named pxed-esp "$chosen"
    # Not by a mere redirection: a disk that refuses says so at fsync alone.
    gunzip -c /loader/esp.img.gz | dd of="$part" bs=$MIB conv=notrunc,fsync 2>> $LOG ||
        fail "cannot write the EFI partition of $chosen: $(tail -n 1 $LOG)"
}

# settings: keeps a file system that is ours, makes one where there is none. Under a new table there is
# none, whatever is left of one at that place: sfdisk has taken its first mark.
settings() {
    part_named pxed-settings "$chosen"
    label=$(dd if="$part" bs=1 skip=1144 count=13 2> /dev/null)
    if [ "$kind" = unfinished ] && [ "$label" = pxed-settings ]; then
        /sbin/e2fsck -p "$part" >> $LOG 2>&1
        [ $? -ge 4 ] || return 0
        fail "the settings on $chosen are damaged: mend them with e2fsck $part, or wipe the disk"
    fi
    uuid
    run /sbin/mke2fs -q -F -t ext4 -L pxed-settings -U "$uuid" -E "hash_seed=$uuid" "$part"
}

# pieces BYTES: the work ahead, in $total MiB, and how much of it is done at once.
pieces() {
    total=$(up "$1") at=0 told=0 shown=0
    piece=$((total / 40 + 1))
    [ "$piece" -ge 4 ] || piece=4
}

# progress WHAT: one piece more is done; each quarter is told to the server, each twentieth shown.
progress() {
    at=$((at + piece))
    [ "$at" -le "$total" ] || at=$total
    percent=$((at * 100 / total))
    if [ "$percent" -ge $((told + 25)) ]; then
        told=$((percent / 25 * 25)) shown=$percent
        step installing "$chosen: $1 $percent %"
    elif [ "$percent" -ge $((shown + 5)) ]; then
        shown=$percent
        say "$chosen: $1 $percent %"
    fi
}

# copy FROM TO BYTES: in pieces that are on the disk when they count, with progress.
copy() {
    pieces "$3"
    # Open throughout: the last to close a disk has all that was read ahead of it thrown away.
    exec 7< "$1"
    while [ "$at" -lt "$total" ]; do
        dd if="$1" of="$2" bs=$MIB skip="$at" seek="$at" count="$piece" conv=notrunc,fsync 2>> $LOG ||
            fail "cannot write to $chosen, or read $1: $(tail -n 1 $LOG)"
        progress "$name@$version"
    done
    exec 7<&-
}

# read_back: the digest of the root that is on the disk now, in $sum, with progress.
read_back() {
    step installing "$chosen: reading it back"
    echo 3 > /proc/sys/vm/drop_caches
    rm -f /run/pxed/back
    mkfifo /run/pxed/back
    head -c "$root_size" < /run/pxed/back | sha256sum > /run/pxed/sum &
    summing=$!
    pieces "$root_size"
    exec 7< "$root_part" 8> /run/pxed/back
    while [ "$at" -lt "$total" ]; do
        # What is behind the root's last byte, in the last piece, nobody takes.
        dd bs=$MIB count="$piece" <&7 >&8 2>> $LOG || [ $((at + piece)) -ge "$total" ] ||
            fail "cannot read $root_part back: $(tail -n 1 $LOG)"
        progress "reading it back"
    done
    exec 7<&- 8>&-
    wait "$summing"
    read -r sum rest < /run/pxed/sum
}

# system SLOT: what is offered into that slot, and every byte of it read back from the disk.
system() {
    part_named "pxed-root-$1" "$chosen"
    root_part=$part
    part_named "pxed-boot-$1" "$chosen"
    boot_part=$part
    for part in "$boot_part $boot_size" "$root_part $root_size"; do
        read -r sectors < "/sys/class/block/$(basename "${part% *}")/size"
        [ $((sectors * 512)) -ge "${part#* }" ] || return 1
    done
    # Nothing may take what is half written for a system.
    run dd if=/dev/zero of="$boot_part" bs=4096 count=1 conv=notrunc,fsync
    copy "$from_root" "$root_part" "$root_size"
    read_back
    [ "$sum" = "$root_sha256" ] ||
        fail "what was written to $root_part is not $name@$version: the disk or the network is bad"
    run dd if="$from_boot" of="$boot_part" bs=4096 skip=1 seek=1 \
        count=$((boot_size / 4096 - 1)) conv=notrunc,fsync
    run dd if="$from_boot" of="$boot_part" bs=4096 count=1 conv=notrunc,fsync
    echo 3 > /proc/sys/vm/drop_caches
    cmp -s -n "$boot_size" "$from_boot" "$boot_part" ||
        fail "what was written to $boot_part is not $name@$version: the disk or the network is bad"
}

# install: a whole disk. The state comes last: before it there is no system here.
install() {
    if [ "$kind" != unfinished ]; then
        layout || return 1
        partition
    fi
    part_named pxed-state "$chosen"
    run dd if=/loader/state of="$part" bs=4096 conv=notrunc,fsync
    loader
    settings
    system a || { because="the slots of $chosen are too small for $name@$version"; return 1; }
    slot=a try='' ends=$ends_wanted
    uuid
    id=$(echo "$uuid" | tr -d -)
    part_named pxed-state "$chosen"
    state_write "$part" || fail "cannot write the state of $chosen"
    step installing "$chosen: boot loader and state"
}

# upgrade: the other slot. The system in use stays as it is, and starts again if the new one does not.
upgrade() {
    other=b
    [ "$slot" != b ] || other=a
    part_named pxed-state "$chosen"
    state=$part
    if [ -n "$try" ]; then # an upgrade that was never started is written over
        try=''
        state_write "$state" || fail "cannot write the state of $chosen"
    fi
    system $other || { because="the slots of $chosen are too small for $name@$version"; return 1; }
    try=$other
    [ -z "$ends_wanted" ] || ends=$ends_wanted
    state_write "$state" || fail "cannot write the state of $chosen"
    step installing "$chosen: $name@$version starts next"
}
