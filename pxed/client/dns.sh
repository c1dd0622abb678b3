#!/bin/sh
# pxed-dns: systemd-networkd tells name servers to systemd-resolved alone. Where a seat's system has none
# (Raspberry Pi OS: NetworkManager did that, and it keeps its hands off the card under the root) they go
# into resolv.conf. What networkd does not know is left as it was.
state=/run/systemd/netif/state
[ -r "$state" ] || exit 0
servers=$(sed -n 's/^DNS=//p' "$state")
[ -n "$servers" ] || exit 0
domains=$(sed -n 's/^DOMAINS=//p' "$state")
{
    for server in $servers; do
        # without a port or a name for TLS, which resolv.conf has no words for
        server=${server%%#*}
        case $server in
        '['*) server=${server#[} server=${server%%]*} ;;
        *.*:*) server=${server%%:*} ;;
        esac
        echo "nameserver $server"
    done
    [ -z "$domains" ] || echo "search $domains"
} > /run/pxed/resolv.conf
cmp -s /run/pxed/resolv.conf /etc/resolv.conf 2> /dev/null && exit 0
# A link may lead to what nobody writes any more.
cp --remove-destination /run/pxed/resolv.conf /etc/resolv.conf
