#!/bin/sh
# Dracut reads this whenever udev has nothing to do, until it has its root. The driver itself asks for
# disks once a minute, and for the first time before the link is up. While it is not live yet a question
# is a NULL pointer in the kernel (seen in 6.1).
if [ -r /sys/module/aoe/initstate ] && read -r state < /sys/module/aoe/initstate &&
    [ "$state" = live ] && [ -c /dev/etherd/discover ]; then
    echo > /dev/etherd/discover
fi
