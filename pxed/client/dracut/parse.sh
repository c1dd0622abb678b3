#!/bin/sh
# Dracut reads this at its cmdline hook: with boot=pxed the root is ours to mount.
if [ "$(getarg boot=)" = pxed ]; then
    # dracut's own variables
    # shellcheck disable=SC2034
    root=pxed rootok=1
fi
