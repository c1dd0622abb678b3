#!/bin/busybox sh
# The first program of a diskless client: finds its disks on the Ethernet, lays the private
# writable layer over the shared root and starts the system. Runs in Debian's busybox-static, whose
# shell has every command below built in. Command line: pxed.shelf=16 pxed.root=eS.L pxed.config=eS.L
# pxed.report=eS.L pxed.mtu=BYTES pxed.wait=SECS (root) pxed.config_wait=SECS pxed.reboot=SECS
# (0: stay) pxed.shell (a shell after a failure).

export PATH=/bin
# Until /proc is there the shell cannot start itself again as another command.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/pxed

shelf=16 root= config= report= mtu= wait=90 config_wait=15 reboot=30 shell=
read -r cmdline < /proc/cmdline
for word in $cmdline; do
    value=${word#*=}
    case $word in
    pxed.shelf=*) shelf=$value ;;
    pxed.root=*) root=$value ;;
    pxed.config=*) config=$value ;;
    pxed.report=*) report=$value ;;
    pxed.mtu=*) mtu=$value ;;
    pxed.wait=*) wait=$value ;;
    pxed.config_wait=*) config_wait=$value ;;
    pxed.reboot=*) reboot=$value ;;
    pxed.shell) shell=1 ;;
    esac
done
: "${root:=e$shelf.1}" "${config:=e$shelf.3}" "${report:=e$shelf.4}"
read -r consoles < /sys/class/tty/console/active

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
lines=0 written=0
step() {
    read -r seconds rest < /proc/uptime
    say "$seconds $*"
    word=$1
    shift
    eval "line$lines=\"\$word \$seconds \$*\""
    lines=$((lines + 1))
    flush
}

flush() {
    [ "$written" -lt "$lines" ] && ready "$report" || return 0
    while [ "$written" -lt "$lines" ]; do
        eval "text=\$line$written"
        printf '%.500s\n' "$text" |
            dd of="/dev/etherd/$report" bs=512 seek="$written" conv=sync,notrunc oflag=direct \
                2> /dev/null &
        written=$((written + 1))
    done
}

# The driver makes its device nodes before it is ready: a write to one of them while the module still
# starts is a NULL pointer in the kernel (seen in 6.1).
listening() {
    [ -r /sys/module/aoe/initstate ] && read -r state < /sys/module/aoe/initstate &&
        [ "$state" = live ]
}

# discover UNTIL DISK...: ask the segment again and again, after 0.1 s, then less and less often,
# until the disks are there; 1 at UNTIL.
discover() {
    until=$1 pause=10 asked=0
    shift
    while :; do
        missing=
        for disk; do
            ready "$disk" || missing="$missing $disk"
        done
        [ -n "$missing" ] || return 0
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

fail() {
    step failed "$*"
    wait
    say "this machine cannot start: $*"
    [ -z "$shell" ] || setsid cttyhack sh
    if [ "$reboot" -gt 0 ]; then
        say "restarting in $reboot s"
        sleep "$reboot"
        reboot -f
    fi
    while :; do sleep 3600; done
}

# Drivers: those whose hardware is here, by the names that the buses give them; twice, because a
# virtio bus is itself found behind PCI.
drivers() {
    aliases=
    for file in /sys/bus/$1/devices/*/modalias; do
        [ -r "$file" ] && read -r name < "$file" && aliases="$aliases $name"
    done
    # shellcheck disable=SC2086 # a list of words, none with a blank
    [ -z "$aliases" ] || modprobe -a -q $aliases 2> /dev/null
}
drivers pci
drivers virtio
modprobe -a -q aoe overlay squashfs 2> /dev/null &

# Links: every wired one goes up; writing the flags is `ip link set up` without a fork.
wired=
for path in /sys/class/net/*; do
    [ -e "$path/device" ] && [ ! -e "$path/phy80211" ] || continue
    [ -z "$mtu" ] || echo "$mtu" > "$path/mtu"
    echo 0x1003 > "$path/flags"
    wired="$wired ${path##*/}"
done
[ -n "$wired" ] || fail "no wired network card that this image has a driver for"

carrier() {
    for nic in $wired; do
        read -r up < "/sys/class/net/$nic/carrier" && [ "$up" = 1 ] && return 0
    done 2> /dev/null
    return 1
}
uptime
limit=$((now + 6000))
until carrier; do
    uptime
    [ "$now" -lt "$limit" ] || fail "no carrier within 60 s on$wired: is the cable in?"
    usleep 20000
done

read -r release < /proc/sys/kernel/osrelease
step kernel "$release on$wired"
uptime
discover $((now + wait * 100)) "$root" ||
    fail "no answer from AoE disk $root within $wait s on$wired: is the server on this segment?"

wait
mkdir -p /lower /new
mount -r -t squashfs "/dev/etherd/$root" /lower 2> /dev/null ||
    mount -r -t erofs "/dev/etherd/$root" /lower 2> /dev/null ||
    mount -r -t ext4 -o noload "/dev/etherd/$root" /lower 2> /dev/null ||
    fail "disk $root holds no squashfs, erofs or ext4"

# Which image this is: what it says itself, or else a sum over its super block.
generation=
[ -r /lower/etc/pxed-image ] && read -r generation < /lower/etc/pxed-image
if [ -z "$generation" ]; then
    generation=$(dd if="/dev/etherd/$root" bs=2048 count=1 2> /dev/null | md5sum)
    generation=${generation%% *}
fi
step root "$root $generation"

# The private layer, one pair of directories for each image: an upper never meets another lower.
why= layers=/run/pxed/ram
uptime
if discover $((now + config_wait * 100)) "$config"; then
    mkdir -p /config
    if mount -t ext4 -o noatime "/dev/etherd/$config" /config 2> /dev/null; then
        layers="/config/layers/$generation"
        mkdir -p "$layers/upper" "$layers/work" || why="cannot write to $config"
    else
        why="$config holds no ext4 file system that mounts"
    fi
else
    why="no answer from AoE disk $config within $config_wait s"
fi

options=index=off,metacopy=off,redirect_dir=off,xino=off
overlay() {
    mount -t overlay -o "lowerdir=/lower,upperdir=$1/upper,workdir=$1/work,$options" root /new
}
if [ -z "$why" ]; then
    overlay "$layers" || why="overlayfs refuses the layer on $config"
fi
if [ -n "$why" ]; then
    mkdir -p /run/pxed/ram/upper /run/pxed/ram/work
    echo "$why" > /run/pxed/degraded
    overlay /run/pxed/ram || fail "overlayfs refuses even a layer in memory"
    step degraded "changes will be lost, $why"
else
    step config "$config"
fi

cd /new || fail "the root is gone"
mkdir -p config proc sys dev run
[ -d /config ] && [ -z "$why" ] && mount -o move /config config
wait
echo "report=$report lines=$lines" > /run/pxed/client
# proc goes last: without it the shell cannot start commands.
for path in run dev sys proc; do
    mount -o move "/$path" "$path"
done
exec /bin/busybox switch_root /new /sbin/init
