#!/bin/sh
# What busybox's udhcpc does with a lease: an address on the card, and a note for whoever asks.
case $1 in
deconfig) ip addr flush dev "$interface" ;;
bound | renew)
    ip addr replace "$ip/${mask:-24}" dev "$interface"
    mkdir -p /run/pxed
    echo "ip=$ip server=$serverid lease=$lease" > /run/pxed/lease
    ;;
esac
