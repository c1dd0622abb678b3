"""Events by the million: through the log into the database, and through a server's client lives."""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import cast

import uvloop

from aoe_fast import Target
from bench.livesclients import Numbers, mac
from pxed.choice import Choice
from pxed.config import parse
from pxed.dhcp.replies import Mode as DhcpMode
from pxed.eventlog import EventLog
from pxed.events import Event, Kind
from pxed.journal import Journal
from pxed.keeper import Keeper
from pxed.lives import Lives
from pxed.mac import Mac
from pxed.netboot import NetBoot
from pxed.store import Store
from pxed.watch import Watch
from pxed.why import Scene


def events(count: int = 1_000_000, keep: int = 100_000) -> Numbers:
    with tempfile.TemporaryDirectory(prefix="pxed-bench-", dir="/var/tmp") as name:
        path = Path(name) / "pxed.db"
        log = EventLog()
        began = time.perf_counter()
        worst = 0.0
        with Store(path) as store:
            for number in range(count):
                log.add({"time": 1e9 + number, "kind": "stage", "mac": mac(number & 0xFFF),
                         "stage": "root mounted", "after": 2.5, "detail": "lab@1"})  # fmt: skip
                if number % 500 == 499:
                    before = time.perf_counter()
                    store.save_events(log.unsaved(500), keep)
                    worst = max(worst, time.perf_counter() - before)
                if number % 20_000 == 19_999:
                    store.checkpoint()
            took = time.perf_counter() - began
            kept = len(list(store.events()))
            store.checkpoint()
        size = sum(each.stat().st_size for each in Path(name).iterdir())
        return {
            "events": count,
            "kept": kept,
            "seconds": round(took, 1),
            "file_mib": round(size / (1 << 20), 1),
            "worst_batch_of_500_ms": round(worst * 1e3, 1),
        }


class _Quiet:
    """The boot protocols, of which a soak needs none."""

    def heard(self, _event: Event) -> None:
        pass

    def settled(self, _mac: Mac) -> None:
        pass

    def loads(self, _mac: Mac) -> bool:
        return False

    def scene(self) -> Scene:
        return Scene(DhcpMode.PXE_ONLY, None, True, 80, "/usr/lib/ipxe")


def soak(count: int = 1_000_000, clients: int = 300) -> Numbers:
    """So many events through the whole of a server's lives: a room that boots again and again."""
    with tempfile.TemporaryDirectory(prefix="pxed-bench-", dir="/var/tmp") as name:
        return uvloop.run(_soak(count, clients, Path(name)))


async def _soak(count: int, clients: int, directory: Path) -> Numbers:
    choice, log = Choice(parse('interface = "eth0"')), EventLog()
    room = [mac(number) for number in range(clients)]
    boot: list[tuple[Kind, dict[str, object]]] = [
        (Kind.DISCOVER, {"firmware": "pxe", "arch": 7}),
        (Kind.OFFER, {"ip": "10.77.1.1", "boot_file": "snponly.efi", "root_path": ""}),
        (Kind.REQUEST, {"firmware": "pxe", "arch": 7, "ip": "10.77.1.1"}),
        (Kind.ACK, {"ip": "10.77.1.1", "boot_file": "snponly.efi", "root_path": ""}),
        (Kind.TFTP_DONE, {"ip": "10.77.1.1", "file": "snponly.efi", "bytes": 1, "seconds": 0.1}),
        (Kind.DISCOVER, {"firmware": "ipxe", "arch": 7}),
        (Kind.AOE_FOUND, {"shelf": 16, "slot": 0}),
        (Kind.AOE_READ, {"shelf": 16, "slot": 0}),
        (Kind.REPORT, {"step": "root", "uptime": 2.0, "text": "lab@1"}),
        (Kind.REPORT, {"step": "running", "uptime": 3.0, "text": "lab@1"}),
    ]
    with Store(directory / "pxed.db") as store:
        journal = Journal(directory / "leases.journal")
        keeper = Keeper(store, choice.clients, log, 10_000, lambda _text: None, journal)
        watch = Watch(Target(), lambda _mac: directory / "none")
        lives = Lives(choice, log, keeper, watch, lambda *_: None, lambda _client: None)
        lives.netboot = cast(NetBoot, _Quiet())
        marks: list[int] = []
        sent, now = 0, time.time() - 10 * count
        while sent < count:
            for kind, detail in boot:
                now += 1
                for each in room:
                    lives.emit(Event(kind, each, now, detail))
                sent += len(room)
                await asyncio.sleep(0)
            now += 600
            lives.tick(now)
            await keeper.checkpoint()
            marks.append(_anonymous())
        keeper.close()
        rows = len(list(store.events()))
        store.checkpoint()
    quarter = len(marks) // 4
    return {
        "events": sent,
        "memory_at_a_quarter_mib": round(max(marks[: quarter + 1]) / (1 << 20), 1),
        "memory_at_the_end_mib": round(marks[-1] / (1 << 20), 1),
        "event_rows": rows,
        "files_mib": round(sum(p.stat().st_size for p in directory.iterdir()) / (1 << 20), 1),
        "clients": len(choice.clients),
    }


def _anonymous() -> int:
    """This process's own memory in bytes, without the page cache."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
