"""Network interfaces, looked up over netlink."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from aoe_fast.master import deaf
from pxed.errors import HostError, UsageError
from pxed.mac import Mac, parse_mac
from pxed.threads import begin

_IFF_UP, _IFF_LOOPBACK, _IFF_NOARP = 0x1, 0x8, 0x80
_ARPHRD_ETHER = 1
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR = 0x1, 0x10
_SETTLE = 0.2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Link:
    """An Ethernet interface as it was when it was looked up; ``addresses`` primary first."""

    name: str
    index: int
    mac: Mac
    mtu: int
    up: bool
    carrier: bool
    addresses: tuple[IPv4Interface, ...]
    deaf: str = ""  # why nothing is heard on it: it is a bridge's port

    def address(self, wanted: IPv4Address | None = None) -> IPv4Interface:
        """The primary address, or ``wanted``; HostError if the interface has it not."""
        for address in self.addresses:
            if wanted in (None, address.ip):
                return address
        if wanted is not None:
            raise HostError(f"{self.name} does not have the address {wanted}")
        raise HostError(
            f"{self.name} has no IPv4 address: set one (ip addr add ...) or start its DHCP client"
        )


def look_up(name: str) -> Link:
    """The interface called ``name``.

    UsageError if there is none (it lists those that exist) or it is not Ethernet.
    """
    return _ask(lambda route: _look_up(route, name))


def names() -> list[str]:
    """Interfaces that could serve: Ethernet, not loopback."""
    return _ask(_names)


def _ask(call: Callable[[IPRoute], _T]) -> _T:
    """Run ``call`` with netlink open, in a thread of its own.

    pyroute2's synchronous calls run a private event loop, which cannot be done where one runs, and
    uvloop cannot hold a netlink socket. The thread is in the caller's network namespace.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def work() -> None:
        loop = asyncio.SelectorEventLoop()
        try:
            with IPRoute(use_event_loop=loop) as route:
                results.append(call(route))
        except BaseException as error:
            errors.append(error)
        finally:
            loop.close()

    thread = threading.Thread(target=work, name="pxed-netlink")
    begin(thread)
    thread.join()
    for error in errors:
        if isinstance(error, (OSError, NetlinkError)):
            raise HostError(f"netlink: {error}") from None
        raise error
    return results[0]


def _look_up(route: Any, name: str) -> Link:
    found = [item for item in route.get_links() if item.get_attr("IFLA_IFNAME") == name]
    if not found:
        raise UsageError(f"there is no interface {name!r}: choose from {_listed(_names(route))}")
    item = found[0]
    if not _ethernet(item):
        others = _listed(_names(route))
        raise UsageError(f"{name} is not an Ethernet interface: choose from {others}")
    addresses = tuple(
        IPv4Interface((row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS"), row["prefixlen"]))
        for row in route.get_addr(family=socket.AF_INET, index=item["index"])
    )
    return Link(
        name=name,
        index=item["index"],
        mac=parse_mac(item.get_attr("IFLA_ADDRESS")),
        mtu=item.get_attr("IFLA_MTU"),
        up=bool(item["flags"] & _IFF_UP),
        carrier=bool(item.get_attr("IFLA_CARRIER")),
        addresses=addresses,
        deaf=deaf(name),
    )


def _names(route: Any) -> list[str]:
    return [item.get_attr("IFLA_IFNAME") for item in route.get_links() if _ethernet(item)]


def _ethernet(item: Any) -> bool:
    return item["ifi_type"] == _ARPHRD_ETHER and not item["flags"] & (_IFF_LOOPBACK | _IFF_NOARP)


def _listed(found: list[str]) -> str:
    return ", ".join(found) or "nothing (this machine has no Ethernet interface)"


class Watch:
    """Calls ``changed(Link | None)`` on the running loop when the interface's state changes.

    None: the interface is gone. A burst of kernel messages is one call.
    """

    def __init__(self, name: str, changed: Callable[[Link | None], None]) -> None:
        self._name = name
        self._changed = changed
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last: Link | None = None

    async def start(self) -> None:
        """Begin to watch; HostError if netlink is not to be had."""
        self._last = look_up(self._name)
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            netlink.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR))
        except OSError as error:
            netlink.close()
            raise HostError(f"cannot watch {self._name}: {error.strerror}") from None
        self._socket = netlink
        asyncio.get_running_loop().add_reader(netlink.fileno(), self._readable)

    async def close(self) -> None:
        """Stop; closing twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        assert self._socket is not None
        # What it says does not matter (ENOBUFS: it said too much): the state is looked up afresh.
        with contextlib.suppress(OSError):
            while self._socket.recv(1 << 16):
                pass
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE, self._look)

    def _look(self) -> None:
        self._timer = None
        try:
            link = look_up(self._name)
        except UsageError:
            link = None
        except HostError:
            return
        if link != self._last:
            self._last = link
            self._changed(link)
