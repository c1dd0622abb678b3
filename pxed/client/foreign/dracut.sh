#!/bin/sh
# Dracut reads this whenever udev has nothing to do, until it has its root.
/pxed/start
