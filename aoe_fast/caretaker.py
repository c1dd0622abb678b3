"""One thread beside the workers: follows the interfaces, and once a second looks after the rest.

Nothing here is on the data path, and nothing here may end the server: what goes wrong is logged
and tried again.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from aoe_fast.linkwatch import EVERY, LinkWatch
from aoe_fast.residency import scan
from aoe_fast.threads import begin
from aoe_fast.throttle import Throttle, announcements, count_clients
from aoe_fast.wire import AoeError

if TYPE_CHECKING:
    from aoe_fast import Export
    from aoe_fast.port import Port
    from aoe_fast.server import Server

_log = logging.getLogger("aoe_fast")

TICK_S = 1.0
# 4 MiB each: at start, and then in each second. A word takes about 10 us.
_FIRST_WORDS = 1024
_WORDS = 128
_AT_ONCE = 512  # exports in one second
_TWIN_NS = 5 * 10**9
_ACTIVE_NS = 120 * 10**9
"""A client that was heard of within two minutes counts: Linux asks every minute."""


class Caretaker:
    """Runs from ``start`` to ``stop``, in the network namespace of the thread that starts it.

    alarm: called with one line of text when something needs a person (frames lost, link gone).
    """

    def __init__(self, server: "Server", alarm: Callable[[str], None] | None = None) -> None:
        self._server = server
        self._alarm = alarm
        self._links: LinkWatch | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._drops = 0
        self._lost: list[int] = []
        self._throttles: list[Throttle] = []
        self._postponed: dict[int, int] = {}
        self._twins: set[int] = set()
        self._refused: dict[str, str] = {}
        self._words: dict[int, int] = {}
        self._turn = 0

    def start(self) -> None:
        self._links = LinkWatch()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        server = self._server
        self._drops = int(server.counters["drops"].sum())
        self._lost = [int(lost) for lost in server.counters["drops"]]
        self._throttles = [
            Throttle(server.target.bufcnt, server.ring_frames, server.write_frames)
            for _ in range(len(server.ports) * server.workers)
        ]
        # What everybody reads is known before the first frame, private disks soon after.
        self.learn(_FIRST_WORDS, server.target.view_of(None).values())
        thread = threading.Thread(target=self._run, name="aoe-care", daemon=True)
        begin(thread)
        self._thread = thread

    def stop(self) -> None:
        """End the thread; stopping twice is fine."""
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None
        if self._links is not None:
            self._links.close()
            self._links = None
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def say(self, text: str) -> None:
        """Raise the alarm; a callback that fails is its owner's trouble."""
        _log.warning("%s", text)
        if self._alarm is not None:
            try:
                self._alarm(text)
            except Exception:
                _log.exception("the alarm callback failed")

    def _run(self) -> None:
        assert self._links is not None
        poll = select.poll()
        poll.register(self._links, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        self.learn(_FIRST_WORDS)
        next_tick = time.monotonic() + TICK_S
        while True:
            left = max(0.0, next_tick - time.monotonic())
            ready = [fd for fd, _ in poll.poll(int(left * 1000) + 1)]
            if self._wake in ready:
                return
            try:
                if ready:
                    self.follow(self._links.take())
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + TICK_S
                    self.tick()
            except Exception:
                _log.exception("caretaker")

    def follow(self, names: set[str]) -> None:
        """Have every named interface looked at."""
        for port in self._server.ports:
            if names & {port.interface, EVERY}:
                try:
                    word = port.follow()
                except AoeError as error:
                    # Tried again every second, and said once.
                    if self._refused.get(port.interface) != str(error):
                        self._refused[port.interface] = str(error)
                        self.say(f"not serving: {error}")
                    continue
                if port.opened:
                    self._refused.pop(port.interface, None)
                if word == "gone":
                    self.say(f"{port.interface} is gone: waiting for it to come back")
                elif word is not None:
                    _log.info("%s %s: MTU %d, %s", port.interface, word, port.mtu, port.mac.hex())

    def tick(self) -> None:
        """What is due every second."""
        for port in self._server.ports:
            port.bury()
            # An event may have come too early (a device is announced before it is usable), or not
            # at all: one that was given another name has its news under that.
            self.follow({port.interface})
        drops = int(self._server.counters["drops"].sum())
        if drops > self._drops:
            self.say(f"{drops - self._drops} frames lost: raise max_clients or ring_frames")
        self._drops = drops
        self.throttle()
        self.look_for_twins()
        self._server.target.save_state()
        self.learn(_WORDS)

    def look_for_twins(self) -> None:
        """Say once when one address talks on two of our interfaces at the same time.

        A machine has an address for each of its cards: it is a loop, or somebody borrows it.
        """
        server = self._server
        if len(server.ports) < 2:
            return
        since = max(0, time.monotonic_ns() - _TWIN_NS)
        where: dict[int, str] = {}
        for number, rows in enumerate(server.clients):
            interface = server.ports[number // server.workers].interface
            for mac in map(int, rows["mac"][rows["last_ns"] > since]):
                other = where.setdefault(mac, interface)
                if other != interface and mac not in self._twins:
                    if len(self._twins) > 1000:
                        self._twins.clear()
                    self._twins.add(mac)
                    text = mac.to_bytes(6, "big").hex(":")
                    self.say(f"{text} is heard on {other} and {interface}: a loop, or a second"
                             " machine with this address")  # fmt: skip

    def throttle(self) -> None:
        """Fit every worker's advertised queue depth to its clients, and tell them if it fell.

        One that asks for more than it was offered is reminded of it.
        """
        server = self._server
        now = time.monotonic_ns()
        for number, throttle in enumerate(self._throttles):
            port = server.ports[number // server.workers]
            rows = server.clients[number]
            rows = rows[rows["last_ns"] > max(0, now - _ACTIVE_NS)]
            writers = int((rows["last_write_ns"] > max(0, now - _ACTIVE_NS)).sum())
            lost = int(server.counters["drops"][number])
            clients = count_clients(rows["requests"])
            fell = throttle.update(now / 1e9, clients, writers, lost - self._lost[number])
            self._lost[number] = lost
            port.advertise(number % server.workers, throttle.value)
            if fell:
                _log.info("%s: bufcnt %d for %d clients", port.interface, throttle.value, len(rows))
            told = [
                int(row["mac"])
                for row in rows
                if self._postponed.get(int(row["mac"]), 0) < int(row["postponed"]) or fell
            ]
            self._postponed |= {
                int(row["mac"]): int(row["postponed"]) for row in rows if row["postponed"]
            }
            if told and port.opened:
                self._announce(port, told, throttle.value)
        if len(self._postponed) > 65536:
            self._postponed.clear()

    def _announce(self, port: "Port", macs: list[int], bufcnt: int) -> None:
        """Send config replies that nobody asked for; on a link that is down they are lost."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sender:
            sent = 0
            with contextlib.suppress(OSError, AoeError):
                sender.bind((port.interface, 0))
                for mac in (number.to_bytes(6, "big") for number in macs):
                    view = self._server.target.view_of(mac)
                    for frame in announcements(mac, port.mac, port.mtu, bufcnt, view):
                        sender.send(frame)
                        sent += 1
            self._server.counters["announced"][-1] += sent

    def learn(self, budget: int, chosen: Iterable["Export"] | None = None) -> None:
        """Look at ``budget`` words of residency, all exports in turn; new ones as a whole.

        ``chosen``: at these only.
        """
        look_at = self._server.target.exports() if chosen is None else chosen
        exports = {id(export): export for export in look_at}
        if chosen is None:
            for gone in self._words.keys() - exports.keys():
                del self._words[gone]
        names = list(exports)
        if len(names) > _AT_ONCE and chosen is None:
            # Thousands are looked at a part at a time; those of which nothing is known come first.
            new_ones = [name for name in names if self._words.get(name, -1) < 0]
            self._turn = self._turn % len(names) + _AT_ONCE
            names = [*new_ones, *names[self._turn - _AT_ONCE : self._turn]]
        for name in names:
            export = exports[name]
            # -1: nothing is known of it. Afterwards only what was known needs another look.
            first = self._words.get(name, 0)
            new = name not in self._words or first < 0
            share = max(1, budget // len(names))
            with contextlib.suppress(AoeError):
                after = scan(export, -first - 1 if first < 0 else first, share, new)
                self._words[name] = -after - 1 if new and after else after
