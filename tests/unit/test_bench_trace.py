"""Traces of boots: the codec, the reader of frames, what the storm replays, Linux's timeouts."""

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench import native, stormweb
from bench.boottrace import Reader
from bench.storm import TRACE
from bench.trace import (
    ASIDE,
    MAGIC,
    Kind,
    Op,
    Part,
    Trace,
    by_file,
    decode,
    encode,
    load,
    program,
    sectors_written,
    shorten,
)
from pxed.errors import UsageError
from tests.conftest import requires

BOOT = Trace(
    1000, 2000,
    (
        Op(Kind.DHCP, 1, think_us=5, blob=b"\x3c\x02ab"),
        Op(Kind.TFTP, lba=1468, count=70000, blob=b"undionly.kpxe"),
        Op(Kind.FIND, 0),
        Op(Kind.SINGLE, 0, 10, 200, pace_us=7),
        Op(Kind.DISKS, lba=0b11011),
        Op(Kind.READ, 1, 100, 64),
        Op(Kind.READ, 1, 500, 8, after=2, think_us=1000),
        Op(Kind.WRITE, 3, 8, 4),
        Op(Kind.TELL, 4, 0, 1, blob=b"running 1.0\n"),
        Op(Kind.RUNNING),
    ),
    {"source": "test"},
)  # fmt: skip


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "boot.trace"
    path.write_bytes(encode(BOOT))
    assert load(path) == BOOT


@pytest.mark.parametrize(
    "data",
    [
        b"", b"something else", MAGIC, MAGIC + b"junk", encode(BOOT)[:-3],
        encode(BOOT).replace(b"pxed-trace 1", b"pxed-trace 9"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        decode(data)


def test_every_cut_of_a_trace_is_refused() -> None:
    data = encode(BOOT)
    for end in range(len(data)):
        with pytest.raises(UsageError):
            decode(data[:end])


@pytest.mark.parametrize(
    "ops",
    [
        (),
        (Op(Kind.DHCP),),  # never runs
        (Op(Kind.READ, 1, 1999, 2), Op(Kind.RUNNING)),  # beyond the device
        (Op(Kind.DHCP), Op(Kind.RUNNING, after=2)),  # waits for what is not there
        (Op(Kind.DHCP, think_us=-1), Op(Kind.RUNNING)),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused(ops: tuple[Op, ...]) -> None:
    with pytest.raises(UsageError):
        Trace(1000, 2000, ops)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.trace"):
        load(tmp_path / "nothing.trace")


def test_what_a_client_moves() -> None:
    assert BOOT.total(Kind.SINGLE, Kind.READ) == 272
    assert BOOT.frames(2) == 100 + 32 + 4 + 2 + 1
    assert BOOT.frames(16) == 100 + 4 + 1 + 1 + 1
    # What the write waited for, and between the requests of the run.
    assert BOOT.thought() == pytest.approx((5 + 99 * 7 + 1000) / 1e6)
    assert sectors_written(BOOT.ops) == {8, 9, 10, 11}


def test_the_program_is_what_the_generator_reads() -> None:
    data = program(BOOT)
    assert data[:8] == b"PXEDSTRM"
    count, blobs = struct.unpack_from("<II", data, 8)
    assert count == len(BOOT.ops)
    assert len(data) == 16 + 32 * count + blobs
    rows = [struct.unpack_from("<BBHIQIIII", data, 16 + 32 * n) for n in range(count)]
    assert [row[5] for row in rows] == [0, 1, 2, 3, 4, 5, 5, 7, 8, 9]
    tftp = rows[1]
    start = 16 + 32 * count + tftp[8]
    assert data[start : start + tftp[2]] == b"undionly.kpxe"


def test_without_aoe_the_boot_disk_is_a_file() -> None:
    found = by_file(BOOT, "kernel")
    assert [op.kind for op in found.ops][2:5] == [Kind.TELL, Kind.TFTP, Kind.DISKS]
    assert found.ops[3].count == 200 * 512
    assert len(found.ops) == len(BOOT.ops)


def test_a_shorter_boot_reads_less_and_still_runs() -> None:
    many = [Op(Kind.READ, 1, 8 * n, 8) for n in range(100)]
    long = replace(BOOT, ops=(*BOOT.ops[:5], *many, *BOOT.ops[7:]))
    short = shorten(long, 0.1)
    assert short.total(Kind.READ) == pytest.approx(0.1 * long.total(Kind.READ), rel=0.2)
    assert short.total(Kind.SINGLE) == 20
    assert short.ops[-1].kind is Kind.RUNNING
    assert sectors_written(short.ops) == sectors_written(long.ops)
    assert shorten(BOOT, 1) == BOOT


def test_the_trace_that_comes_along_is_a_whole_boot() -> None:
    found = load(TRACE)
    kinds = {op.kind for op in found.ops}
    assert {Kind.DHCP, Kind.TFTP, Kind.FIND, Kind.SINGLE, Kind.DISKS, *ASIDE} <= kinds
    assert found.about["source"] == "minimal"
    assert len(TRACE.read_bytes()) < 50_000


@pytest.mark.parametrize("name", ["minimal-http", "debian"])
def test_the_others_are_whole_too(name: str) -> None:
    path = TRACE.with_name(f"{name}.trace")
    kinds = {op.kind for op in load(path).ops}
    loads = Kind.HTTP if name == "minimal-http" else Kind.SINGLE
    assert {Kind.DHCP, Kind.TFTP, loads, Kind.DISKS, *ASIDE} <= kinds
    assert len(path.read_bytes()) < 50_000


# From frames to a trace

MAC, SERVER = bytes.fromhex("525400000001"), bytes.fromhex("027700000001")


def aoe(tag: int, slot: int, what: int, lba: int = 0, count: int = 0, data: bytes = b"") -> bytes:
    head = MAC + b"\x88\xa2\x10\0" + struct.pack("!HBBI", 16, slot, 0, tag)
    return SERVER + head + bytes((0x40, 0, count, what)) + struct.pack("<Q", lba) + data


def reply(request: bytes) -> bytes:
    return MAC + SERVER + request[12:14] + bytes((request[14] | 8,)) + request[15:]


class Wire:
    def __init__(self) -> None:
        self.reader, self.now = Reader(MAC, 1000, 1000), 100.0

    def say(self, after: float, frame: bytes) -> None:
        self.now += after
        self.reader.frame(self.now, frame)

    def ask(self, after: float, frame: bytes, took: float = 0.001) -> None:
        self.say(after, frame)
        self.say(took, reply(frame))


def config(slot: int) -> bytes:
    shelf = 0xFFFF if slot == 255 else 16
    return b"\xff" * 6 + MAC + b"\x88\xa2\x10\0" + struct.pack("!HBBI8x", shelf, slot, 1, 0)


def kernel_is_up(wire: Wire) -> None:
    wire.say(1, config(255))
    for slot in (0, 1, 3, 4):
        wire.ask(0.01, aoe(900 + slot, slot, 0xEC, count=1))


def ends(wire: Wire) -> Trace:
    wire.ask(0.5, aoe(999, 4, 0x34, 0, 1, b"running 2.0 here\n".ljust(512, b"\0")))
    return wire.reader.trace(source="wire")


def test_ipxe_reads_become_runs_with_their_pace() -> None:
    wire = Wire()
    wire.say(0, config(0))
    for number in range(10):
        wire.ask(0.02, aoe(number, 0, 0x24, 50 + 2 * number, 2))
    wire.ask(0.3, aoe(77, 0, 0x24, 500, 2))
    kernel_is_up(wire)
    found = ends(wire)
    runs = [op for op in found.ops if op.kind is Kind.SINGLE]
    assert [(op.lba, op.count) for op in runs] == [(50, 20), (500, 2)]
    assert runs[0].pace_us == pytest.approx(20_000, abs=10)
    assert runs[1].think_us == pytest.approx(300_000, abs=10)
    disks = next(op for op in found.ops if op.kind is Kind.DISKS)
    assert disks.lba == 0b11011
    assert found.ops[-2].blob.startswith(b"running 2.0")


def test_frames_of_one_request_join_and_what_it_waited_for_is_known() -> None:
    wire = Wire()
    kernel_is_up(wire)
    for number in range(4):
        wire.say(0.0001, aoe(number, 1, 0x24, 10 + 2 * number, 2))
    wire.say(0.0001, aoe(10, 1, 0x24, 700, 2))  # beside it
    for number in (0, 1, 2, 3):
        wire.say(0.0001, reply(aoe(number, 1, 0x24, 10 + 2 * number, 2)))
    wire.ask(0.25, aoe(11, 1, 0x24, 800, 2))  # after the first, while the second is under way
    wire.say(0, reply(aoe(10, 1, 0x24, 700, 2)))
    found = ends(wire)
    reads = [(n, op) for n, op in enumerate(found.ops) if op.kind is Kind.READ]
    assert [(op.lba, op.count) for _, op in reads] == [(10, 8), (700, 2), (800, 2)]
    (first, _), (second, beside), (third, waited) = reads
    assert second - beside.after == first - 1  # the disks
    assert third - waited.after == first
    assert waited.think_us == pytest.approx(250_000, abs=10)


def test_frames_that_were_answered_before_the_next_was_sent_are_still_one_request() -> None:
    wire = Wire()
    kernel_is_up(wire)
    for number in range(3):
        wire.ask(0.0002, aoe(number, 1, 0x24, 10 + 2 * number, 2), 0.0001)
    wire.say(0.0002, aoe(3, 1, 0x24, 16, 2))  # it goes on, and is under way
    wire.ask(0.1, aoe(4, 3, 0x24, 8, 2))  # so this one did not wait for it
    wire.say(0, reply(aoe(3, 1, 0x24, 16, 2)))
    wire.ask(0.005, aoe(5, 1, 0x24, 18, 2))  # the next block, too late to be the same request
    found = ends(wire)
    reads = [(op.device, op.lba, op.count) for op in found.ops if op.kind is Kind.READ]
    assert reads == [(1, 10, 8), (3, 8, 2), (1, 18, 2)]
    first, beside, later = (op for op in found.ops if op.kind is Kind.READ)
    assert beside.after == 2  # the disks, before the first
    assert later.after == 2  # the first, which ended last
    assert later.think_us == pytest.approx(5000, abs=10)
    assert found.thought() < 3
    assert first.after == 1


def test_a_request_that_was_sent_again_counts_once() -> None:
    wire = Wire()
    kernel_is_up(wire)
    wire.say(0.1, aoe(1, 1, 0x24, 10, 2))
    wire.ask(1, aoe(2, 1, 0x24, 10, 2))
    wire.say(0, reply(aoe(1, 1, 0x24, 10, 2)))
    found = ends(wire)
    assert found.total(Kind.READ) == 2
    assert wire.reader.repeated == 1


def test_a_boot_that_does_not_come_to_run_is_no_trace() -> None:
    wire = Wire()
    kernel_is_up(wire)
    with pytest.raises(UsageError, match="did not come to run"):
        wire.reader.trace()


@pytest.mark.parametrize("size", [0, 13, 31, 33, 41, 53])
def test_short_frames_are_passed_over(size: int) -> None:
    wire = Wire()
    for kind in (b"\x88\xa2", b"\x08\0\x45"):
        wire.say(0.1, (SERVER + MAC + kind).ljust(80, b"\x11")[:size])
    kernel_is_up(wire)
    assert ends(wire).ops[-1].kind is Kind.RUNNING


class Web:
    """One connection of the client's to port 80, of which a capture keeps the first bytes."""

    def __init__(self, wire: Wire, port: int = 2000) -> None:
        self.wire, self.port, self.asks, self.says = wire, port, 1000, 2**32 - 5000

    def ask(self, after: float, text: bytes, *, again: bool = False) -> None:
        if again:
            self.asks -= len(text)
        self.wire.say(after, segment(MAC, self.port, 80, self.asks, text))
        self.asks += len(text)

    def answer(self, after: float, head: bytes, data: bytes = b"", piece: int = 1400) -> None:
        whole = head + data
        for at in range(0, len(whole), piece):
            part = whole[at : at + piece]
            self.wire.say(after, segment(SERVER, 80, self.port, self.says, part)[:1100])
            self.says = (self.says + len(part)) & 0xFFFFFFFF


def segment(src: bytes, sport: int, dport: int, sequence: int, data: bytes) -> bytes:
    dst = SERVER if src == MAC else MAC
    ip = struct.pack("!BBHIBBHII", 0x45, 0, 40 + len(data), 0, 64, 6, 0, 1, 2)
    tcp = struct.pack("!HHIIBBHI", sport, dport, sequence, 1, 0x50, 0x18, 512, 0)
    return dst + src + b"\x08\0" + ip + tcp + data


def test_what_is_loaded_by_http_and_how_long_it_is() -> None:
    wire = Wire()
    web = Web(wire)
    web.ask(0, b"HEAD /image/lab@1/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
    web.answer(0.01, b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n")
    web.ask(0.5, b"GET /image/lab@1/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
    web.ask(0.5, b"GET /image/lab@1/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n", again=True)
    web.answer(0.01, b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", bytes(9000))
    web.ask(0.25, b"GET /image/lab@1/initrd HTTP/1.1\r\nRange: bytes=512-1023\r\n\r\n")
    web.answer(0.01, b"HTTP/1.1 206 Partial\r\nContent-Length: 512\r\n\r\n", bytes(512))
    kernel_is_up(wire)
    found = ends(wire)
    files = [op for op in found.ops if op.kind is Kind.HTTP]
    assert [(op.device, op.lba, op.count) for op in files] == [
        (Part.HEAD, 0, 0), (Part.WHOLE, 0, 9000), (Part.RANGE, 512, 512),
    ]  # fmt: skip
    assert [op.blob for op in files] == [b"/image/lab@1/vmlinuz"] * 2 + [b"/image/lab@1/initrd"]
    assert [op.after for op in files] == [1, 1, 1]
    # From the end of the one before, however many segments it took.
    assert [op.think_us for op in files[1:]] == pytest.approx([500_000, 250_000], abs=10)
    assert wire.reader.repeated == 1


def test_a_file_that_never_came_whole_ends_nothing() -> None:
    wire = Wire()
    web = Web(wire)
    web.ask(0, b"GET /image/lab@1/initrd HTTP/1.1\r\n\r\n")
    web.answer(0.01, b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", bytes(8000))
    kernel_is_up(wire)
    found = ends(wire)
    assert found.ops[0].kind is Kind.HTTP
    assert found.ops[1].after == 0  # it cannot have waited for that


HTTP = Trace(
    8, 8, (Op(Kind.HTTP, count=300, blob=b"/boot/lab%401.ipxe"),
           Op(Kind.HTTP, count=1000, blob=b"/image/lab@1/vmlinuz"),
           Op(Kind.HTTP, Part.RANGE, 500, 2000, blob=b"/image/lab@1/initrd"), Op(Kind.RUNNING)),
)  # fmt: skip


def test_files_by_http_are_made_up_as_long_as_they_were(tmp_path: Path) -> None:
    web = stormweb.web_of(HTTP)
    assert web.spec == "lab@1"
    stormweb.make(web, tmp_path, tmp_path, "10.0.0.1", 16)
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert sizes.pop("lab@1.ipxe") > 100
    assert sizes == {"vmlinuz": 1000, "initrd": 2500}
    assert b"http://10.0.0.1/image/lab@1/vmlinuz" in (tmp_path / "boot/lab@1.ipxe").read_bytes()
    assert not stormweb.web_of(BOOT)


@pytest.mark.parametrize("path", [b"/image/lab@1/../x", b"/other", b"/image/two@2/initrd"])
def test_a_trace_of_other_urls_is_refused(path: bytes) -> None:
    odd = replace(HTTP, ops=(HTTP.ops[0], Op(Kind.HTTP, count=5, blob=path), *HTTP.ops[1:]))
    with pytest.raises(UsageError):
        stormweb.web_of(odd)


def test_a_shorter_boot_has_shorter_files() -> None:
    short = shorten(HTTP, 0.5)
    assert [(op.lba, op.count) for op in short.ops[:3]] == [(0, 300), (0, 500), (250, 1000)]


# Linux's timeouts


class Driver:
    """The driver's arithmetic once more, plainly."""

    def __init__(self, bufcnt: int = 64) -> None:
        self.offered = min(bufcnt, 64)
        self.window, self.threshold, self.turns = self.offered // 2, self.offered // 2, self.offered
        self.average, self.deviation = 250_000 * 256, 250_000 * 256 // 4

    def heard(self, us: int) -> None:
        error = us - (self.average >> 8)
        self.average += error
        self.deviation += abs(error) - (self.deviation >> 3)
        if self.window >= self.offered:
            return
        if self.window < self.threshold:
            self.window += 1
        else:
            if self.turns == 0:
                self.window += 1
                self.turns = self.window
            else:
                self.turns -= 1

    def lost(self) -> None:
        if self.window != 1:
            self.threshold, self.window = self.window // 2, 1

    @property
    def timeout(self) -> int:
        return (2 * self.average >> 8) + (8 * self.deviation >> 3)


def linux(words: list[str], bufcnt: int = 64) -> list[tuple[int, int]]:
    """(timeout, window) before and after each word, by the generator."""
    requires("gcc")
    done = subprocess.run(
        [str(native.program("storm")), "timeouts=1", f"bufcnt={bufcnt}"],
        input="\n".join(words), capture_output=True, text=True, check=True,
    )  # fmt: skip
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [(int(timeout), int(window)) for timeout, window in pairs]


@pytest.mark.parametrize(
    ("replies", "seconds"), [(0, 16.5), (10, 6.1), (100, 1.7), (500, 0.36), (1000, 0.05)]
)
def test_a_frame_lost_early_costs_many_seconds(replies: int, seconds: float) -> None:
    assert linux(["200"] * replies)[-1][0] / 1e6 == pytest.approx(seconds, rel=0.04)


@pytest.mark.parametrize("bufcnt", [2, 8, 64, 1000])
def test_timeouts_and_windows_are_the_drivers(bufcnt: int) -> None:
    words, plain = [], Driver(bufcnt)
    expected = [(plain.timeout, plain.window)]
    for number in range(3000):
        if number % 700 == 650:
            words.append("lost")
            plain.lost()
        else:
            us = 100 + number * 7919 % 5000
            words.append(str(us))
            plain.heard(us)
        expected.append((plain.timeout, plain.window))
    assert linux(words, bufcnt) == expected


def test_a_lower_offer_shrinks_the_window_at_once() -> None:
    assert linux(["200", "offer=8", "200"])[2][1] == 1
    assert linux(["200", "offer=64"])[2][1] == 32
