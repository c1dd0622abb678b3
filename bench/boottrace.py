"""Frames of one client's boot -> its trace. Takes bytes and times, knows no socket."""

import struct
from dataclasses import dataclass, replace
from typing import Any

from bench.trace import Kind, Op, Part, Trace
from pxed.errors import UsageError

CONFIG, REPORT = 3, 4
_TOGETHER = 0.001  # seconds: the next frame of one request of the block layer follows within these
_LONGEST = 2560  # sectors of such a request
_OWN = frozenset((0, 12, 50, 53, 54, 61, 97, 255))
"""DHCP options that the storm fills in for each client, or that name the recorded one."""


_IDENTIFY, _READS, _WRITES = 0xEC, frozenset((0x20, 0x24)), frozenset((0x30, 0x34))


@dataclass(frozen=True)
class _Asked:
    """An AoE request that is on its way; ``op`` -1: IDENTIFY."""

    op: int
    slot: int
    lba: int
    sectors: int


@dataclass
class _Answer:
    """A file on its way by HTTP; sequence numbers of its request, and of its end (-1: unknown)."""

    op: int
    asked: int
    end: int = -1


class Reader:
    """Give it every frame of the cable in order; ``trace`` at the end.

    ``mac``: the client. UsageError from ``trace`` if the boot did not come to run.
    """

    def __init__(self, mac: bytes, boot_sectors: int, root_sectors: int) -> None:
        self._mac = mac
        self._boot, self._root = boot_sectors, root_sectors
        self._ops: list[Op] = []
        self._begun: list[float] = []
        self._ended: list[float] = []  # 0: not yet
        self._left: list[int] = []  # sectors without a reply
        self._paced: list[float] = []  # seconds between a reply and the next request of a run
        self._asked: dict[int, _Asked] = {}
        self._done: list[int] = []  # what has ended, in that order
        self._kernel = False
        self._disks = -1
        self._open: dict[int, int] = {}  # device -> the operation whose next frame may come
        self._last_frame: dict[int, float] = {}
        self._tftp: dict[
            int, tuple[int, int, list[int]]
        ] = {}  # port -> operation, block size, bytes
        self._dhcp = -1
        self._http: dict[int, _Answer] = {}  # by the client's port
        self._wait = 0.0  # inside a DHCP exchange
        self._running = False
        self.repeated = 0

    def frame(self, when: float, data: bytes) -> None:
        """One frame of the cable, cut off or not; what is not this client's boot is passed over."""
        if len(data) < 32 or self._running:  # short: nothing pads what a machine sends to its tap
            return
        own, to_us = data[6:12] == self._mac, data[:6] == self._mac
        kind = data[12:14]
        if kind == b"\x88\xa2":
            if own and not data[14] & 8:
                self._aoe_request(when, data)
            elif to_us and data[14] & 8:
                self._aoe_reply(when, data)
        elif kind == b"\x08\x00" and data[14] == 0x45 and len(data) >= 54:
            if data[23] == 17:
                self._udp(when, data, own)
            elif data[23] == 6:
                self._tcp(when, data, own)

    # Operations

    def _begin(self, when: float, op: Op) -> int:
        number = len(self._ops)
        last = self._done[-1] if self._done else -1
        think = when - self._ended[last] if last >= 0 else 0.0
        after = number - last if last >= 0 else 1
        if not number:
            after = 1
        elif last < 0:
            after = 0
        self._ops.append(replace(op, after=after, think_us=max(0, round(think * 1e6))))
        self._begun.append(when)
        self._ended.append(0.0)
        self._left.append(0)
        self._paced.append(0.0)
        return number

    def _end(self, when: float, number: int, **changes: Any) -> None:
        self._ended[number] = when
        self._ops[number] = replace(self._ops[number], **changes)
        self._done.append(number)

    # DHCP and TFTP

    def _udp(self, when: float, data: bytes, own: bool) -> None:
        sport, dport, length = struct.unpack_from("!HHH", data, 34)
        body = data[42 : 34 + length]
        if (sport, dport) == (68, 67) and own:
            self._dhcp_request(when, body)
        elif (sport, dport) == (67, 68):
            self._dhcp_reply(when, body)
        elif own and dport == 69 and body[:2] == b"\0\1":
            words = body[2:].split(b"\0")
            options = dict(zip(words[2::2], words[3::2], strict=False))
            size = int(options.get(b"blksize", b"512"))
            op = Op(Kind.TFTP, lba=size, blob=words[0].lstrip(b"/"))
            self._tftp[sport] = (self._begin(when, op), size, [])
        elif not own and dport in self._tftp and body[:2] == b"\0\3":
            number, size, got = self._tftp[dport]
            block = struct.unpack_from("!H", body, 2)[0]
            if block == (len(got) + 1) & 0xFFFF:
                got.append(length - 12)
            if got and got[-1] < size:
                self._end(when, number, count=sum(got))
                del self._tftp[dport]

    def _dhcp_request(self, when: float, body: bytes) -> None:
        if len(body) < 240 or body[28:34] != self._mac:
            return
        options = _options(body)
        vendor = options.get(60, b"")
        if not vendor.startswith(b"PXEClient") and 175 not in options:
            return  # the operating system's own
        if options.get(53) == b"\1" and (self._dhcp < 0 or self._ended[self._dhcp]):
            said = b"".join(
                bytes((code, len(value))) + value
                for code, value in options.items()
                if code not in _OWN
            )
            self._wait = 0.0
            op = Op(Kind.DHCP, device=body[10] >> 7, blob=said)
            self._dhcp = self._begin(when, op)
        elif options.get(53) == b"\3" and self._dhcp >= 0 and self._wait:
            # What firmware waits between an offer and its request is think time too.
            op = self._ops[self._dhcp]
            waited = round((when - self._wait) * 1e6)
            self._ops[self._dhcp] = replace(op, think_us=op.think_us + waited)
            self._wait = 0.0

    def _dhcp_reply(self, when: float, body: bytes) -> None:
        if len(body) < 240 or body[28:34] != self._mac or self._dhcp < 0:
            return
        kind = _options(body).get(53)
        if kind == b"\2" and not self._wait:
            self._wait = when
        elif kind == b"\5" and not self._ended[self._dhcp]:
            self._end(when, self._dhcp)

    # HTTP

    def _tcp(self, when: float, data: bytes, own: bool) -> None:
        sport, dport, sequence = struct.unpack_from("!HHI", data, 34)
        length = struct.unpack_from("!H", data, 16)[0] - 20 - (data[46] >> 4) * 4
        body = data[34 + (data[46] >> 4) * 4 :]
        if own and dport == 80 and body.startswith((b"GET ", b"HEAD ")):
            known = self._http.get(sport)
            if known is not None and known.asked == sequence:
                self.repeated += 1
                return
            op = _http_op(body)
            self._http[sport] = _Answer(self._begin(when, op), sequence)
        elif not own and sport == 80 and dport in self._http and length > 0:
            answer = self._http[dport]
            number = answer.op
            if self._ended[number] and answer.end >= 0:
                return
            head, gap, _ = body.partition(b"\r\n\r\n")
            if answer.end < 0 and gap:
                size = int(_header(head, b"content-length") or 0)
                op = self._ops[number]
                size = 0 if op.device == Part.HEAD else size
                self._ops[number] = replace(op, count=size)
                whole = len(head) + 4 + size
                answer.end = (sequence + whole) & 0xFFFFFFFF
            if answer.end >= 0 and (sequence + length - answer.end) & 0xFFFFFFFF < 1 << 31:
                self._end(when, number)

    # AoE

    def _aoe_request(self, when: float, data: bytes) -> None:
        shelf, slot, command, tag = struct.unpack_from("!HBBI", data, 16)
        if command == 1:
            if (shelf, slot) == (0xFFFF, 0xFF):
                if not self._kernel:
                    self._kernel = True
                    self._disks = self._begin(when, Op(Kind.DISKS))
            elif not self._kernel:
                self._end(when, self._begin(when, Op(Kind.FIND, device=slot)))
            return
        if command != 0 or len(data) < 36:
            return
        count, what, lba = data[26], data[27], int.from_bytes(data[28:34], "little")
        if what == _IDENTIFY:
            self._asked[tag] = _Asked(-1, slot, 0, 0)
            return
        if what not in _READS | _WRITES or slot > REPORT:
            return
        kind = Kind.WRITE if what in _WRITES else Kind.READ
        if any((a.slot, a.lba, a.sectors) == (slot, lba, count) for a in self._asked.values()):
            self.repeated += 1  # it had to wait long: one request, twice
            return
        number = self._place(when, kind, slot, lba, count, data)
        self._left[number] += count
        self._asked[tag] = _Asked(number, slot, lba, count)

    def _place(self, when: float, kind: Kind, slot: int, lba: int, count: int, data: bytes) -> int:
        """The operation that this frame belongs to: the one that it goes on, or a new one."""
        if not self._kernel:
            kind = Kind.SINGLE
        elif slot == REPORT and kind is Kind.WRITE:
            kind = Kind.TELL
        number = self._open.get(slot, -1)
        if number >= 0:
            op = self._ops[number]
            near = when - self._last_frame[slot] < _TOGETHER and op.count < _LONGEST
            if kind is Kind.SINGLE:
                near = number == len(self._ops) - 1
            if op.kind is kind and op.lba + op.count == lba and near:
                if kind is Kind.SINGLE:
                    self._paced[number] += when - self._ended[number]
                told = op.blob + (data[36 : 36 + 512 * count] if kind is Kind.TELL else b"")
                self._ops[number] = replace(op, count=op.count + count, blob=told)
                self._last_frame[slot] = when
                if self._ended[number]:  # all of it so far was answered, and it goes on
                    self._ended[number] = 0.0
                    self._done = [done for done in self._done if done != number]
                return number
        told = data[36 : 36 + 512 * count] if kind is Kind.TELL else b""
        number = self._begin(when, Op(kind, slot, lba, count, blob=told))
        self._open[slot] = number
        self._last_frame[slot] = when
        return number

    def _aoe_reply(self, when: float, data: bytes) -> None:
        asked = self._asked.pop(struct.unpack_from("!I", data, 20)[0], None)
        if asked is None or data[19] != 0:
            return
        number = asked.op
        if number < 0:
            if self._kernel:
                slots = self._ops[self._disks].lba | 1 << asked.slot
                self._end(when, self._disks, lba=slots)
            return
        self._left[number] -= asked.sectors
        if self._left[number]:
            return
        self._end(when, number)
        op = self._ops[number]
        if op.kind is Kind.TELL and any(
            op.blob[at:].startswith(b"running") for at in range(0, len(op.blob), 512)
        ):
            self._begin(when, Op(Kind.RUNNING))
            self._running = True

    def trace(self, **about: Any) -> Trace:
        """Everything up to the report that it runs."""
        if not self._running:
            raise UsageError("the recorded boot did not come to run")
        ops = [
            replace(op, pace_us=round(paced / max(1, op.count // 2 - 1) * 1e6))
            if op.kind is Kind.SINGLE
            else op
            for op, paced in zip(self._ops, self._paced, strict=True)
        ]
        return Trace(self._boot, self._root, tuple(ops), about)


def _header(head: bytes, name: bytes) -> bytes:
    """The value of a header, or nothing; ``name`` in small letters."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _http_op(request: bytes) -> Op:
    """What a request for a file asks for; the answer says how long it is."""
    head = request.partition(b"\r\n\r\n")[0]
    method, path, *_ = head.split(b" ")
    part, first = (Part.HEAD if method == b"HEAD" else Part.WHOLE), 0
    asked = _header(head, b"range").removeprefix(b"bytes=").partition(b"-")[0]
    if asked.isdigit() and part is Part.WHOLE:
        part, first = Part.RANGE, int(asked)
    return Op(Kind.HTTP, device=part, lba=first, blob=path)


def _options(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 240
    while at + 2 <= len(body) and body[at] != 255:
        if body[at] == 0:
            at += 1
            continue
        found[body[at]] = body[at + 2 : at + 2 + body[at + 1]]
        at += 2 + body[at + 1]
    return found
