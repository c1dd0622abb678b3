"""DHCP on one interface: sockets around ``pxed.dhcp.policy``.

Port 67 by UDP, port 4011 in proxy mode, and a raw socket for replies to machines that have no
address yet and for the ARP probe that precedes the offer of an address never used before.
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from pxed.dhcp.codec import BOOT_PORT, SERVER_PORT, DhcpError
from pxed.dhcp.policy import Outcome, Policy
from pxed.dhcp.replies import Destination, Mode, Reply
from pxed.dhcp.replies import Kind as To
from pxed.errors import HostError
from pxed.events import Event, Kind
from pxed.mac import Mac, mac_bytes, mac_text
from pxed.net.link import Link
from pxed.net.lookout import Lookout
from pxed.net.packet import ETH_ARP, arp_probe, arp_sender, open_raw, udp_frame
from pxed.net.udp import bind_udp, dropped

_log = logging.getLogger("pxed.dhcp")
_BATCH = 8  # messages in one turn of the loop: a room at once must not hold it up
_IN_USE = "(another DHCP server runs on this machine): stop it, or serve another interface"
_QUIET = (Kind.IGNORED, Kind.DISCOVER, Kind.REQUEST)
_PROBES = 256
COUNTS = ("received", "replies", "ignored", "malformed", "conflicts", "send_errors", "faults")


@dataclass(slots=True)
class _Probe:
    """An offer that waits for somebody to say that its address is taken."""

    data: bytes
    outcome: Outcome
    timer: asyncio.TimerHandle

    @property
    def mac(self) -> Mac:
        return self.outcome.replies[0].to.mac


class DhcpServer:
    """Answers on ``link`` as ``policy`` decides; every event goes to ``emit``.

    ``probe_wait``: seconds to look for a machine that already uses an address which was never given
    out here, ahead of time as far as that goes; 0 turns that off. ``counters``: received,
    malformed, ignored, replies, send_errors, conflicts.
    """

    def __init__(
        self,
        link: Link,
        policy: Policy,
        emit: Callable[[Event], None],
        *,
        probe_wait: float = 0.1,
    ) -> None:
        self.policy = policy
        self.counters = Counter(dict.fromkeys(COUNTS, 0))
        self._link = link
        self._emit = emit
        self._probe_wait = probe_wait
        self._probes: dict[IPv4Address, _Probe] = {}
        self._lookout = Lookout(
            policy.leases, self._ask_for, self._gives_addresses, probe_wait, self._catch_up
        )
        self._later: set[asyncio.TimerHandle] = set()
        self._udp: socket.socket | None = None
        self._boot: socket.socket | None = None
        self._raw: socket.socket | None = None
        self._lost = 0  # at port 4011 before it was closed

    @property
    def dropped(self) -> int:
        """How many messages the kernel dropped, as more came than were read."""
        return self._lost + dropped(self._udp) + dropped(self._boot)

    async def start(self) -> None:
        """Open the ports; HostError names the one that cannot be had and what to do."""
        loop = asyncio.get_running_loop()
        try:
            self._udp = bind_udp(self._link, SERVER_PORT, _IN_USE)
            self._raw = open_raw(self._link, ETH_ARP)
            self._follow_mode()
        except BaseException:
            await self.close()
            raise
        loop.add_reader(self._udp.fileno(), self._readable, self._udp)
        loop.add_reader(self._raw.fileno(), self._arp_readable)
        if self._probe_wait > 0:
            self._lookout.start()
        settings = self.policy.settings
        _log.debug("DHCP on %s: %s as %s", self._link.name, settings.mode, settings.server)

    def set_mode(self, mode: Mode) -> None:
        """Answer in another mode from now on; HostError if port 4011 is not to be had, and then
        nothing has changed."""
        before = self.policy.settings.mode
        self.policy.set_mode(mode)
        try:
            self._follow_mode()
        except HostError:
            self.policy.set_mode(before)
            raise

    def _follow_mode(self) -> None:
        """Port 4011 is a proxy's."""
        loop = asyncio.get_running_loop()
        if self.policy.settings.mode is not Mode.PROXY:
            if self._boot is not None:
                loop.remove_reader(self._boot.fileno())
                self._lost += dropped(self._boot)
                self._boot.close()
                self._boot = None
        elif self._boot is None:
            self._boot = bind_udp(self._link, BOOT_PORT, _IN_USE)
            loop.add_reader(self._boot.fileno(), self._readable, self._boot)

    async def close(self) -> None:
        """Stop, and forget replies that wait; closing twice is fine."""
        loop = asyncio.get_running_loop()
        self._lookout.close()
        for probe in self._probes.values():
            probe.timer.cancel()
        for timer in self._later:
            timer.cancel()
        self._probes.clear()
        self._later.clear()
        for opened in (self._udp, self._boot, self._raw):
            if opened is not None:
                loop.remove_reader(opened.fileno())
                opened.close()
        self._udp = self._boot = self._raw = None

    # Receiving

    def _readable(self, udp: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, source = udp.recvfrom(4096)
            except OSError:  # nothing more; or an ICMP error about an earlier reply
                return
            self._received(data, source, boot=udp is self._boot)

    def _received(
        self, data: bytes, source: tuple[str, int], *, boot: bool = False, again: bool = False
    ) -> None:
        if not again:
            self.counters["received"] += 1
        now = time.time()
        try:
            if boot:
                outcome = self.policy.handle_boot(data, now, (IPv4Address(source[0]), source[1]))
            else:
                outcome = self.policy.handle(data, now, IPv4Address(source[0]))
        except DhcpError as error:
            self.counters["malformed"] += 1
            _log.debug("malformed message from %s: %s", source[0], error)
            return
        except Exception as error:  # a fault of ours must not stop the service
            self.counters["faults"] += 1
            _log.error("cannot handle a message from %s: %r", source[0], error)
            return
        if again:
            outcome = replace(outcome, events=_without_discover(outcome))
        probe = outcome.probe
        if any(event.kind is Kind.OFFER for event in outcome.events):
            self._lookout.used(dry=probe is not None)
        if probe is not None:
            # What the DISCOVER sets going need not wait for the probe.
            self._tell(event for event in outcome.events if event.kind is Kind.DISCOVER)
            outcome = replace(outcome, events=_without_discover(outcome))
            if self._probe(probe, data, outcome):
                return
        self._act(outcome)

    def _act(self, outcome: Outcome) -> None:
        """Answer, then tell what happened."""
        if not outcome.replies:
            self.counters["ignored"] += 1
        for reply in outcome.replies:
            if reply.delay > 0:
                self._send_later(reply)
            else:
                self._send(reply)
        self._tell(outcome.events)

    def _tell(self, events: Iterable[Event]) -> None:
        for event in events:
            level = logging.DEBUG if event.kind in _QUIET else logging.INFO
            if _log.isEnabledFor(level):
                detail = " ".join(f"{key}={value}" for key, value in event.detail.items())
                _log.log(level, "%s %s %s", event.mac, event.kind, detail)
            try:
                self._emit(event)
            except Exception as error:  # a fault in the listener must not stop the service
                self.counters["faults"] += 1
                _log.error("event %s of %s: %r", event.kind, event.mac, error)

    # Sending

    def _send_later(self, reply: Reply) -> None:
        def send() -> None:
            self._later.discard(timer)
            self._send(reply)

        timer = asyncio.get_running_loop().call_later(reply.delay, send)
        self._later.add(timer)

    def _send(self, reply: Reply) -> None:
        to = reply.to
        try:
            if to.kind is To.LINK:
                self._send_frame(reply.message, to)
            elif to.port not in (67, 68) and self._boot is not None:
                self._boot.sendto(reply.message, (str(to.ip), to.port))
            elif self._udp is not None:
                self._udp.sendto(reply.message, (str(to.ip), to.port))
        except OSError as error:
            self.counters["send_errors"] += 1
            _log.info("cannot answer %s at %s: %s", to.mac, to.ip, error.strerror)
            return
        self.counters["replies"] += 1

    def _send_frame(self, message: bytes, to: Destination) -> None:
        if self._raw is None:
            return
        source = (self.policy.settings.server, SERVER_PORT)
        own = mac_bytes(self._link.mac)
        self._raw.send(udp_frame(own, mac_bytes(to.mac), source, (to.ip, to.port), message))

    # Probing

    def _gives_addresses(self) -> bool:
        return self.policy.settings.mode is not Mode.PROXY

    def _ask_for(self, ip: IPv4Address) -> None:
        if self._raw is not None:
            self._raw.send(arp_probe(mac_bytes(self._link.mac), ip))

    def _probe(self, ip: IPv4Address, data: bytes, outcome: Outcome) -> bool:
        """Ask who has ``ip`` and hold the offer back; False if it should go out at once."""
        if self._raw is None or self._probe_wait <= 0 or len(self._probes) >= _PROBES:
            return False
        try:
            self._ask_for(ip)
        except OSError:
            return False
        before = self._probes.pop(ip, None)
        if before is not None:
            before.timer.cancel()
        timer = asyncio.get_running_loop().call_later(self._probe_wait, self._probed, ip)
        self._probes[ip] = _Probe(data, outcome, timer)
        return True

    def _probed(self, ip: IPv4Address) -> None:
        """Nobody answered: the offer may go out."""
        self._catch_up()
        if (probe := self._probes.pop(ip, None)) is None:
            return
        lease = self.policy.leases.of(probe.mac, time.time())
        if lease is None or lease.ip != ip:  # it has taken another server's offer meanwhile
            self.counters["ignored"] += 1
            return
        self._act(probe.outcome)

    def _catch_up(self) -> None:
        """Silence is what has not arrived, not what this busy loop has not read yet."""
        for _ in range(_PROBES):
            if not self._hear_one():
                return

    def _arp_readable(self) -> None:
        for _ in range(_BATCH):
            if not self._hear_one():
                return

    def _hear_one(self) -> bool:
        """Take one ARP frame; False: there is none."""
        if self._raw is None:
            return False
        try:
            frame = self._raw.recv(128)
        except OSError:
            return False
        said = arp_sender(frame)
        if said is None:
            return True
        self.policy.leases.answers(mac_text(said[0]), said[1], time.time())
        if said[1] in self._lookout:
            self._heard(said[1], said[0])
        # The very machine that asks may still have the address: that is no conflict.
        if said[1] in self._probes and mac_text(said[0]) != self._probes[said[1]].mac:
            self._conflict(said[1], said[0])
        return True

    def _heard(self, ip: IPv4Address, holder: bytes) -> None:
        """Somebody has an address that was looked at ahead of time."""
        now = time.time()
        mac = mac_text(holder)
        if self._lookout.heard(mac, ip, now):
            self.counters["conflicts"] += 1
            text = (
                f"{ip} is in use by {mac} and in pxed's range, which leaves it alone: give that "
                "machine another address, or set [dhcp] range"
            )
            self._tell([Event(Kind.ALARM, None, now, {"text": text})])

    def _conflict(self, ip: IPv4Address, holder: bytes) -> None:
        """Somebody has the address: quarantine it, and start over with the next one."""
        probe = self._probes.pop(ip)
        probe.timer.cancel()
        self.counters["conflicts"] += 1
        now = time.time()
        self.policy.conflict(ip, mac_text(holder), now)
        _log.info("%s is in use by %s: not offered", ip, holder.hex(":"))
        self._tell([Event(Kind.DECLINE, probe.mac, now, {"ip": str(ip)})])
        self._received(probe.data, ("0.0.0.0", 0), again=True)


def _without_discover(outcome: Outcome) -> tuple[Event, ...]:
    return tuple(event for event in outcome.events if event.kind is not Kind.DISCOVER)
