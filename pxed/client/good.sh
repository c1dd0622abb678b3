#!/bin/sh
# pxed-good: this system, which the disk's boot loader has started, runs; from now on it is the one that
# starts. Without it the loader goes back to the system before. Does nothing where nothing is installed.
[ -r /run/pxed/local ] || exit 0
state= mine=
. /run/pxed/local
. /usr/share/pxed/state.sh
state_read "$state" || exit 1
[ "$slot$try" != "$mine" ] || exit 0
# shellcheck disable=SC2034 # read by state_write
slot=$mine try=
state_write "$state"
