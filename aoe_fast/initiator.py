"""AoE client on one interface, for tests, doctor and bench: blocking, several requests in flight.

A request is repeated with the same tag, so a late answer to the first copy still counts, and
anything whose tag is not awaited is dropped: duplicates, answers to what was given up, other
clients' traffic.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from aoe_fast.frames import (
    AFLAG_LBA48,
    ANY_SHELF,
    ANY_SLOT,
    BROADCAST,
    SECTOR,
    Ata,
    AtaError,
    AtaReply,
    BadReply,
    Command,
    Config,
    ConfigCommand,
    Device,
    Identity,
    InitiatorError,
    InterfaceError,
    LinuxPace,
    NoAnswer,
    Pace,
    Reply,
    TargetError,
    ata_body,
    build,
    config_body,
    device_of,
    opcode_name,
    parse_ata,
    parse_config,
    parse_identity,
    sectors_that_fit,
    transfer_body,
)
from aoe_fast.framesocket import FrameSocket

__all__ = [
    "AtaError",
    "AtaReply",
    "BadReply",
    "Config",
    "ConfigCommand",
    "Device",
    "Identity",
    "Initiator",
    "InitiatorError",
    "InterfaceError",
    "LinuxPace",
    "NoAnswer",
    "Pace",
    "TargetError",
]

_LONGEST_WAIT = 1.0
_LONGEST_PATIENT = 10.0
"""After the last of ``retries`` a request is lost no more: its disk is busy, and each copy of a
write is one more for that disk."""
_READ_AHEAD = 256
"""Replies kept while an earlier one is missing."""


@dataclass(slots=True)
class _Flight:
    """One request that awaits its answer."""

    index: int
    frame: bytes
    what: str
    sent: float
    due: float
    wait: float
    patience: float
    copies: int = 1


class Initiator:
    """AoE requests on one interface, until ``close``; a context manager. Not for several threads.

    timeout: seconds before the first repetition; doubles each time, to 1 s at most. retries:
    repetitions before NoAnswer. patience: seconds for which an ATA command that is repeated may in
    any case stay unanswered, as its disk may; not IDENTIFY, which has none. After ``retries`` the
    waits go on doubling then, to 10 s. source_mac: another MAC
    to send from (the interface then listens promiscuously). window: requests in flight at most;
    default: what the target advertises. pace: "linux" imitates the Linux driver's window and
    timeouts.
    InterfaceError: no such interface, no privilege, or the link is down.
    """

    def __init__(
        self,
        interface: str,
        *,
        timeout: float = 0.25,
        retries: int = 5,
        patience: float = 0.0,
        source_mac: bytes | None = None,
        window: int | None = None,
        pace: Literal["steady", "linux"] = "steady",
    ) -> None:
        self.interface = interface
        self.timeout = timeout
        self.retries = retries
        self.patience = patience
        self.window = window
        self.repeated = 0
        """Requests sent again since the beginning."""
        self._pace = LinuxPace if pace == "linux" else Pace
        self._tag = int.from_bytes(os.urandom(4), "big")
        self._devices: dict[tuple[int, int], Device] = {}
        self._lba48: dict[tuple[int, int], bool] = {}
        self._link = FrameSocket(interface, source_mac)
        self.mac = self._link.mac
        self.mtu = self._link.mtu

    def close(self) -> None:
        """Give the socket up; closing twice is fine."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Discovery

    def discover(
        self, shelf: int = ANY_SHELF, slot: int = ANY_SLOT, *, wait: float | None = None
    ) -> list[Device]:
        """Everything that answers a broadcast config query, in order of shelf, slot and MAC.

        Listens for ``wait`` seconds (default: twice the timeout) and asks again half-way, in case
        a frame was lost. An address without wildcards returns at its first answer.
        """
        wait = 2 * self.timeout if wait is None else wait
        found: dict[tuple[int, int, bytes], Device] = {}
        tags = {self._next_tag()}
        frame = build(
            BROADCAST,
            self.mac,
            shelf,
            slot,
            Command.CONFIG,
            next(iter(tags)),
            config_body(),
        )
        for _ in range(2):
            self._link.send(frame)
            # From now on: whoever is held up before it sends must not listen for less.
            for reply in self._link.receive_until(time.monotonic() + wait / 2):
                if reply.tag not in tags or reply.command != Command.CONFIG or reply.failed:
                    continue
                with contextlib.suppress(BadReply):
                    device = device_of(reply)
                    found[device.shelf, device.slot, device.mac] = device
                    self._devices[device.shelf, device.slot] = device
                if found and shelf != ANY_SHELF and slot != ANY_SLOT:
                    return list(found.values())
        return [found[key] for key in sorted(found)]

    def device(self, shelf: int, slot: int) -> Device:
        """The export's target, asked for once; NoAnswer if there is none."""
        known = self._devices.get((shelf, slot))
        if known is not None:
            return known
        what = f"{shelf}.{slot} on {self.interface}"
        reply = self._one(BROADCAST, shelf, slot, Command.CONFIG, config_body(), what)
        self._devices[shelf, slot] = device = device_of(reply)
        return device

    # Single commands

    def command(self, shelf: int, slot: int, command: int, body: bytes) -> Reply:
        """One request of any class to the export's target. NoAnswer, TargetError."""
        mac = self.device(shelf, slot).mac
        return self._one(mac, shelf, slot, command, body, f"{shelf}.{slot} command {command}")

    def config(
        self,
        shelf: int,
        slot: int,
        command: ConfigCommand = ConfigCommand.READ,
        string: bytes = b"",
    ) -> Config | None:
        """One config subcommand, by broadcast; None when a test or prefix test does not match.

        TargetError 4: SET on a string that is already set to another. NoAnswer for the other
        subcommands when nothing answers.
        """
        what = f"{shelf}.{slot} config {command.name.lower()}"
        try:
            reply = self._one(
                BROADCAST,
                shelf,
                slot,
                Command.CONFIG,
                config_body(command, string),
                what,
            )
        except NoAnswer:
            if command in (ConfigCommand.TEST, ConfigCommand.PREFIX):
                return None
            raise
        return parse_config(reply.body)

    def ata(
        self,
        shelf: int,
        slot: int,
        opcode: int,
        *,
        lba: int = 0,
        count: int = 0,
        feature: int = 0,
        aflags: int = 0,
        data: bytes = b"",
        check: bool = True,
    ) -> AtaReply:
        """One raw ATA command. AtaError if it fails, unless ``check`` is off."""
        body = ata_body(opcode, lba=lba, count=count, feature=feature, aflags=aflags, data=data)
        what = f"{shelf}.{slot} {opcode_name(opcode)}"
        mac = self.device(shelf, slot).mac
        patience = 0.0 if opcode == Ata.IDENTIFY else self.patience
        reply = parse_ata(self._one(mac, shelf, slot, Command.ATA, body, what, patience).body)
        if check and reply.bad:
            raise AtaError(what, reply.status, reply.error)
        return reply

    def identify(self, shelf: int, slot: int) -> Identity:
        """IDENTIFY DEVICE of the export."""
        identity = parse_identity(self.ata(shelf, slot, Ata.IDENTIFY, count=1).data)
        self._lba48[shelf, slot] = identity.lba48
        return identity

    def identify_at(self, device: Device) -> Identity:
        """IDENTIFY DEVICE of one of several targets that answer for an address."""
        body = ata_body(Ata.IDENTIFY, count=1)
        what = f"{device.address} identify"
        reply = parse_ata(
            self._one(device.mac, device.shelf, device.slot, Command.ATA, body, what).body
        )
        if reply.bad:
            raise AtaError(what, reply.status, reply.error)
        return parse_identity(reply.data)

    def flush(self, shelf: int, slot: int) -> None:
        """Return when the target says that all writes are on its disk."""
        if self._wide(shelf, slot):
            self.ata(shelf, slot, Ata.FLUSH_EXT, aflags=AFLAG_LBA48)
        else:
            self.ata(shelf, slot, Ata.FLUSH)

    # Transfers

    def read(self, shelf: int, slot: int, lba: int, count: int) -> bytes:
        """``count`` sectors from ``lba`` on, in as many frames as it takes."""
        return b"".join(self.read_range(shelf, slot, lba, count))

    def write(self, shelf: int, slot: int, lba: int, data: bytes) -> None:
        """``data``, whole sectors, at ``lba``; returns when every frame is acknowledged."""
        self.write_range(shelf, slot, lba, [data])

    def read_range(self, shelf: int, slot: int, lba: int, count: int) -> Iterator[bytes]:
        """The data of ``count`` sectors in order, a frame's worth at a time, a window in flight.

        Another command on this Initiator between two pieces only costs repetitions.
        """
        device = self.device(shelf, slot)
        step = self._step(device)
        wide = self._wide(shelf, slot)

        def requests() -> Iterator[tuple[bytes, str, int]]:
            for at in range(lba, lba + count, step):
                many = min(step, lba + count - at)
                body = transfer_body(at, many, None, lba48=wide)
                yield body, f"{device.address} read of sector {at}", many

        for many, reply in self._transfer(device, requests()):
            data = reply.data[: many * SECTOR]
            if len(data) < many * SECTOR:
                raise BadReply(f"{device.address} read: {len(data)} bytes for {many} sectors")
            yield data

    def write_range(
        self,
        shelf: int,
        slot: int,
        lba: int,
        pieces: Iterable[bytes],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write ``pieces`` one after the other from ``lba`` on; how many sectors that was.

        Each piece is whole sectors (ValueError). ``progress`` is told the sectors acknowledged.
        Returns when all are; the frames of one call never overlap, so their order is free.
        """
        device = self.device(shelf, slot)
        step = self._step(device)
        wide = self._wide(shelf, slot)

        def requests() -> Iterator[tuple[bytes, str, int]]:
            at = lba
            for piece in pieces:
                if len(piece) % SECTOR:
                    raise ValueError(f"{len(piece)} bytes are not whole sectors of {SECTOR}")
                for start in range(0, len(piece), step * SECTOR):
                    data = piece[start : start + step * SECTOR]
                    many = len(data) // SECTOR
                    body = transfer_body(at, many, data, lba48=wide)
                    yield body, f"{device.address} write of sector {at}", many
                    at += many

        total = 0
        for many, _ in self._transfer(device, requests()):
            total += many
            if progress is not None:
                progress(many)
        return total

    def _step(self, device: Device) -> int:
        step = sectors_that_fit(self.mtu, device.scnt)
        if step == 0:
            raise InterfaceError(f"{self.interface}: MTU {self.mtu} is too small for one sector")
        return step

    def _wide(self, shelf: int, slot: int) -> bool:
        if (shelf, slot) not in self._lba48:
            self.identify(shelf, slot)
        return self._lba48[shelf, slot]

    def _transfer(
        self, device: Device, requests: Iterator[tuple[bytes, str, int]]
    ) -> Iterator[tuple[int, AtaReply]]:
        """Send (body, what, sectors) with a window in flight; (sectors, reply) in order."""
        limit = device.bufcnt if self.window is None else min(self.window, device.bufcnt or 1)
        pace = self._pace(limit, self.timeout)
        flights: dict[int, _Flight] = {}
        sizes: dict[int, int] = {}
        ready: dict[int, AtaReply] = {}
        sent = delivered = 0
        more = True
        while more or sizes:
            while more and len(flights) < pace.window and sent - delivered < limit + _READ_AHEAD:
                request = next(requests, None)
                if request is None:
                    more = False
                    break
                body, what, sizes[sent] = request
                tag = self._next_tag()
                frame = build(
                    device.mac,
                    self.mac,
                    device.shelf,
                    device.slot,
                    Command.ATA,
                    tag,
                    body,
                )
                flights[tag] = self._launch(sent, frame, what, pace.rto, self.patience)
                sent += 1
            if flights:
                self._advance(flights, pace, ready)
            while delivered in ready:
                yield sizes.pop(delivered), ready.pop(delivered)
                delivered += 1

    def _advance(self, flights: dict[int, _Flight], pace: Pace, ready: dict[int, AtaReply]) -> None:
        """Wait for one answer or the next deadline; take every answer there is."""
        for reply in self._link.receive_until(
            min(flight.due for flight in flights.values()), once=True
        ):
            flight = flights.get(reply.tag)
            if flight is None or reply.command != Command.ATA:
                continue
            if flight.copies == 1:
                pace.answered(time.monotonic() - flight.sent)
            if reply.failed:
                raise TargetError(flight.what, reply.error)
            answer = parse_ata(reply.body)
            if answer.bad:
                raise AtaError(flight.what, answer.status, answer.error)
            del flights[reply.tag]
            ready[flight.index] = answer
        now = time.monotonic()
        for flight in flights.values():
            if flight.due <= now:
                self._again(flight, now)
                pace.lost()

    # One request

    def _one(
        self, mac: bytes, shelf: int, slot: int, command: int, body: bytes, what: str,
        patience: float = 0.0,
    ) -> Reply:  # fmt: skip
        """Send one request until it is answered. NoAnswer, TargetError."""
        tag = self._next_tag()
        frame = build(mac, self.mac, shelf, slot, command, tag, body)
        flight = self._launch(0, frame, what, self.timeout, patience)
        while True:
            for reply in self._link.receive_until(flight.due):
                if reply.tag != tag or reply.command != command:
                    continue
                if reply.failed:
                    raise TargetError(what, reply.error)
                return reply
            self._again(flight, time.monotonic())

    def _launch(self, index: int, frame: bytes, what: str, rto: float, patience: float) -> _Flight:
        self._link.send(frame)
        now = time.monotonic()
        return _Flight(index, frame, what, now, now + rto, rto, patience)

    def _again(self, flight: _Flight, now: float) -> None:
        if flight.copies > self.retries and now - flight.sent >= flight.patience:
            raise NoAnswer(
                f"{flight.what}: no answer in {now - flight.sent:.1f} s and {flight.copies} tries:"
                " check the address, the cable, the server's disk, and that it lets this MAC in"
            )
        flight.copies += 1
        patient = flight.copies > self.retries
        longest = max(_LONGEST_PATIENT if patient else _LONGEST_WAIT, self.timeout)
        flight.wait = min(max(2 * flight.wait, self.timeout), longest)
        flight.due = now + flight.wait
        if patient:
            # No later than its patience ends, and the last copy has time for an answer too.
            end = max(flight.sent + flight.patience, now + min(flight.wait, _LONGEST_WAIT))
            flight.due = min(flight.due, end)
        self.repeated += 1
        self._link.send(flight.frame)

    def _next_tag(self) -> int:
        self._tag = (self._tag + 1) & 0xFFFFFFFF
        return self._tag
