"""AoE counters and report devices become events."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from pxed import watch
from pxed.events import Event, Kind
from pxed.mac import Mac, mac_bytes
from pxed.watch import LATE_NS, SECTOR, Watch, erase_report, parse_report, rows_of

MAC = Mac("52:54:00:00:00:01")
OWN = bytes.fromhex("525400ffffff")


class Bench:
    """A target with one client that sees a root at 16.1 and a report device at 16.4."""

    def __init__(self, directory: Path) -> None:
        self.root, self.report = directory / "root", directory / "report"
        self.root.write_bytes(bytes(8192))
        self.report.write_bytes(bytes(16384))
        self.exports = [Export(self.root), Export(self.report, writable=True)]
        self.target = Target()
        self.target.set_view(mac_bytes(MAC), {(16, 1): self.exports[0], (16, 4): self.exports[1]})
        self.watch = Watch(self.target, lambda _mac: self.report)
        self.watch.refresh()

    def ata(self, slot: int, command: int, lba: int, data: bytes = b"") -> None:
        lbas = lba.to_bytes(6, "little")
        frame = (
            OWN + mac_bytes(MAC) + b"\x88\xa2\x10\x00\x00\x10" + bytes([slot, 0]) + bytes(4)
            + bytes([0x41 if data else 0x40, 0, 1, command]) + lbas + bytes(2) + data
        )  # fmt: skip
        assert self.target.handle(frame, OWN)

    def say(self, line: int, text: str) -> None:
        self.ata(4, 0x34, line, text.encode().ljust(SECTOR, b"\0"))

    def poll(self) -> list[Event]:
        return self.watch.poll(time.monotonic_ns(), time.time())

    def kinds(self) -> list[Kind]:
        return [event.kind for event in self.poll() if event.kind is not Kind.AOE_HEARD]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.target.drop_view(mac_bytes(MAC))
    for export in made.exports:
        export.close()


def test_the_first_read_is_told_once(bench: Bench) -> None:
    bench.ata(1, 0x24, 0)
    (event,) = [e for e in bench.poll() if e.kind is Kind.AOE_READ]
    assert (event.mac, event.detail) == (MAC, {"shelf": 16, "slot": 1})
    assert event.time == pytest.approx(time.time(), abs=300)
    bench.ata(1, 0x24, 1)
    assert bench.kinds() == []


def test_what_a_client_says_before_its_rows_are_looked_up_is_heard(bench: Bench) -> None:
    late = Watch(bench.target, lambda _mac: bench.report)
    bench.say(0, "running 1.0")
    late.refresh()
    steps = [e.detail["step"] for e in late.poll(time.monotonic_ns(), time.time())
             if e.kind is Kind.REPORT]  # fmt: skip
    assert steps == ["running"]


def told_after_a_restart(bench: Bench, since: float) -> list[Event]:
    """What a new server's first look finds of a boot that began then."""
    exports = {(16, 4): bench.exports[1]}
    target = Target()
    target.set_view(mac_bytes(MAC), exports)
    watch = Watch(target, lambda _mac: bench.report)
    watch.refresh()
    watch.unread(MAC, since)
    events = watch.poll(time.monotonic_ns(), time.time())
    assert watch.poll(time.monotonic_ns(), time.time()) == []
    target.drop_view(mac_bytes(MAC))
    return events


def test_what_was_said_to_the_server_before_is_read_once(bench: Bench) -> None:
    bench.say(0, "kernel 1.00")
    bench.say(1, "running 3.00")
    os.utime(bench.report, (7000.0, 7000.0))
    events = told_after_a_restart(bench, 6990.0)
    assert [(e.detail["step"], e.time) for e in events] == [("kernel", 6998.0), ("running", 7000.0)]


def test_what_it_said_before_a_new_boot_began_is_not(bench: Bench) -> None:
    bench.say(0, "running 3.00")
    os.utime(bench.report, (7000.0, 7000.0))
    assert told_after_a_restart(bench, 7002.0) == []


def test_who_said_nothing_before_a_restart_has_said_nothing(bench: Bench) -> None:
    assert told_after_a_restart(bench, 0.0) == []
    bench.report.unlink()
    assert told_after_a_restart(bench, 0.0) == []


def test_a_new_boot_tells_the_first_read_again(bench: Bench) -> None:
    bench.ata(1, 0x24, 0)
    bench.poll()
    bench.watch.begin_boot(MAC)
    assert bench.kinds() == []
    bench.ata(1, 0x24, 0)
    assert Kind.AOE_READ in bench.kinds()


def test_reports_come_in_order_with_the_clients_own_intervals(bench: Bench) -> None:
    bench.say(0, "kernel 1.00 6.1")
    bench.say(1, "root 1.50 e16.1 lab@1")
    events = [e for e in bench.poll() if e.kind is Kind.REPORT]
    assert [e.detail["step"] for e in events] == ["kernel", "root"]
    assert events[1].time - events[0].time == pytest.approx(0.5)
    assert events[1].detail["text"] == "e16.1 lab@1"


def test_a_report_is_told_once(bench: Bench) -> None:
    bench.say(0, "kernel 1.00")
    bench.poll()
    bench.say(1, "root 1.50")
    assert [e.detail["step"] for e in bench.poll() if e.kind is Kind.REPORT] == ["root"]


def test_a_line_that_is_counted_before_it_is_there_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that waits for the disk."""
    monkeypatch.setattr(watch, "LATE_NS", 10**15)
    for line, text in enumerate(("kernel 1.00", "root 1.50")):
        bench.say(line, text)
    with bench.report.open("r+b") as file:
        file.seek(SECTOR)
        there = file.read(SECTOR)
        file.seek(SECTOR)
        file.write(bytes(SECTOR))
    assert [e.detail["step"] for e in bench.poll() if e.kind is Kind.REPORT] == ["kernel"]
    with bench.report.open("r+b") as file:
        file.seek(SECTOR)
        file.write(there)
    assert [e.detail["step"] for e in bench.poll() if e.kind is Kind.REPORT] == ["root"]
    assert bench.kinds() == []


def test_a_report_that_says_nothing_is_not_read_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.say(5, "a line that follows none")
    assert Kind.REPORT not in bench.kinds()
    later = time.monotonic_ns() + LATE_NS
    bench.watch.poll(later, time.time())
    monkeypatch.setattr(bench.watch, "_read_report", None)
    assert bench.watch.poll(later, time.time()) == []


def test_what_one_client_wrote_can_be_had_before_the_next_look(bench: Bench) -> None:
    bench.say(0, "installed 9.00 lab@1")
    (event,) = bench.watch.reports(MAC, time.monotonic_ns(), time.time())
    assert (event.mac, event.detail["step"]) == (MAC, "installed")
    assert event.time == pytest.approx(time.time(), abs=60)
    assert bench.watch.reports(MAC, time.monotonic_ns(), time.time()) == []
    assert Kind.REPORT not in bench.kinds()


def test_an_erased_report_begins_again(bench: Bench) -> None:
    bench.say(0, "kernel 1.00")
    bench.poll()
    erase_report(bench.report)
    bench.watch.begin_boot(MAC)
    bench.say(0, "kernel 2.00")
    assert [e.detail["uptime"] for e in bench.poll() if e.kind is Kind.REPORT] == [2.0]


def test_rows_of_a_client_are_found(bench: Bench) -> None:
    assert rows_of(bench.target, MAC).keys() == {(16, 1), (16, 4)}


def test_replacing_a_view_does_not_tell_old_reads_again(bench: Bench) -> None:
    bench.ata(1, 0x24, 0)
    bench.poll()
    bench.target.set_view(mac_bytes(MAC), {(16, 1): bench.exports[0], (16, 4): bench.exports[1]})
    bench.watch.refresh()
    assert bench.kinds() == []


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        (b"root 1.5 e16.1", ("root", 1.5, "e16.1")),
        (b"running", ("running", 0.0, "")),
        (b"", ("", 0.0, "")),
        (b"root x y", ("root", 0.0, "y")),
        (b"root nan y", ("root", 0.0, "y")),
        (b"failed 2 \x1b[31mred\xff\n", ("failed", 2.0, "[31mred")),
    ],
)
def test_a_report_line_is_parsed_and_made_safe(raw: bytes, parsed: tuple[str, float, str]) -> None:
    assert parse_report(raw.ljust(SECTOR, b"\0")) == parsed


def test_rows_that_go_and_come_are_followed(bench: Bench) -> None:
    other = Mac("52:54:00:00:00:02")
    for _ in range(3):
        bench.target.set_view(mac_bytes(other), {(16, 4): bench.exports[1]})
        bench.watch.refresh()
        assert bench.watch.silence([other], time.monotonic_ns()) == float("inf")
        bench.target.drop_view(mac_bytes(MAC))
        bench.watch.refresh()
        assert bench.kinds() == []
        bench.target.set_view(
            mac_bytes(MAC), {(16, 1): bench.exports[0], (16, 4): bench.exports[1]}
        )
        bench.watch.refresh()
        bench.ata(1, 0x24, 0)
        assert bench.kinds() == [Kind.AOE_READ]
        assert bench.watch.silence([other, MAC], time.monotonic_ns()) < 600
        bench.target.drop_view(mac_bytes(other))
        bench.watch.refresh()
