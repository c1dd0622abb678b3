"""``pxed demo``: a private lab on this machine, from nothing to clients that run."""

import contextlib
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from pxed.ask import LOOK_UP
from pxed.client.minimal import build_minimal
from pxed.control import ControlClient
from pxed.errors import HostError
from pxed.lab.accel import pick_accel
from pxed.lab.console import attach
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware
from pxed.lab.server import LabServer
from pxed.seat import Stage
from pxed.table import amount, table
from pxed.threads import begin

IMAGE = "lab"


@dataclass
class Seat:
    """One client of the demo; ``stages``: seconds since its power-on, as the server told them."""

    client: Client
    powered: float = 0.0  # seconds since the epoch
    stages: dict[str, float] = field(default_factory=dict)
    midlayer_ms: float | None = None
    failed: str = ""

    @property
    def running(self) -> float | None:
        return self.stages.get(Stage.RUNNING.label)


def run(firmware: Firmware, count: int, *, keep: bool, timeout: float, as_json: bool) -> bool:
    """The whole demo; True if every client came to run. Nothing is left afterwards, ever."""
    say = _say_to_stderr if as_json else click.echo
    with _terminated_like_interrupted(), Lab() as lab:
        state = lab.directory / "state"
        started = time.monotonic()
        say(f"lab      a bridge, a server and {count} {firmware.upper()} client(s) without disks")
        build_minimal(
            state / "images" / IMAGE / "1",
            name=IMAGE,
            version="1",
            progress=lambda text: say(f"image    {text}"),
        )
        say(f"qemu     {pick_accel()}")
        server = LabServer(lab, state)
        server.start()
        status = server.control.get("/v1/status")
        say(f"server   {status['ip']} on {status['interface']}, DHCP {status['dhcp']['mode']}")
        say(f"ready    after {time.monotonic() - started:.1f} s; power on\n")
        seats = [Seat(lab.add_client(firmware=firmware)) for _ in range(count)]
        say(f"{'AFTER':>8}  CLIENT   STAGE")
        _boot(server, seats, timeout, say)
        for seat in seats:
            if seat.running is None:
                _last_lines(seat, say)
        status = server.control.get("/v1/status")
        if as_json:
            click.echo(json.dumps(_summary(firmware, seats, status), indent=2))
        else:
            _conclude(seats, status)
            if keep:
                _keep(lab, server, seats)
        for seat in seats:
            seat.client.power_off()
        server.stop()
        return all(seat.running is not None for seat in seats)


def _boot(server: LabServer, seats: list[Seat], timeout: float, say: Any) -> None:
    """Power on, then tell each stage as it happens until all run, fail or the time is over."""
    news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    begin(threading.Thread(target=_follow, args=(server.control, news), daemon=True))
    by_mac = {seat.client.mac: seat for seat in seats}
    for seat in seats:
        seat.client.power_on()
        seat.powered = time.time()
        say(_line(0.0, seat, "power on"))
    until = time.monotonic() + timeout
    while any(seat.running is None and not seat.failed for seat in seats):
        left = until - time.monotonic()
        try:
            # A moment at a time: of a Ctrl-C just before the wait Python learns after it.
            entry = news.get(timeout=min(max(left, 0.001), LOOK_UP))
        except queue.Empty:
            if time.monotonic() < until:
                continue
            for seat in seats:
                if seat.running is None:
                    seat.failed = seat.failed or f"not running after {timeout:.0f} s"
                    say(_line(timeout, seat, "FAILED", seat.failed))
            return
        if entry is None:
            raise HostError(f"the server went away: {server.last_words()}")
        seat_or_none = by_mac.get(entry.get("mac") or "")
        if seat_or_none is not None:
            _tell(seat_or_none, entry, say)


def _last_lines(seat: Seat, say: Any) -> None:
    """What a client that did not come to run wrote to its serial line, or else to its screen."""
    text = seat.client.console()
    if not text.strip() and seat.client.running:
        text = seat.client.screen()
    text = "".join(c for c in text if c.isprintable() or c == "\n")
    say(f"\n{seat.client.name}  the last lines that it wrote:")
    for line in [line for line in text.splitlines() if line.strip()][-10:] or ["(nothing)"]:
        say(f"         {line[:100]}")


def _tell(seat: Seat, entry: dict[str, Any], say: Any) -> None:
    after = entry["time"] - seat.powered
    if entry["kind"] == "stage":
        seat.stages[entry["stage"]] = round(after, 3)
        say(_line(after, seat, entry["stage"], entry.get("detail", "")))
    elif entry["kind"] == "midlayer-ready":
        seat.midlayer_ms = round(entry["seconds"] * 1000, 1)
        say(_line(after, seat, "/config prepared", f"{seat.midlayer_ms} ms after its DISCOVER"))
    elif entry["kind"] == "state" and entry["state"] == "failed":
        seat.failed = entry["why"] or "failed"
        say(_line(after, seat, "FAILED", seat.failed))


def _follow(control: ControlClient, news: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    with contextlib.suppress(HostError):
        for entry in control.follow("/v1/events?follow=1"):
            news.put(entry)
    news.put(None)


def _line(after: float, seat: Seat, what: str, detail: str = "") -> str:
    return f"{after:6.2f} s  {seat.client.name}  {what:16}  {detail}".rstrip()


def _summary(firmware: str, seats: list[Seat], status: dict[str, Any]) -> dict[str, Any]:
    return {
        "firmware": firmware,
        "accelerator": pick_accel(),
        "clients": [
            {
                "name": seat.client.name,
                "mac": seat.client.mac,
                "running": seat.running is not None,
                "power_on_to_running_s": seat.running,
                "midlayer_ms": seat.midlayer_ms,
                "failed": seat.failed,
                "stages": seat.stages,
            }
            for seat in seats
        ],
        "tftp_bytes": status["tftp"]["bytes"],
        "aoe": status["aoe"],
    }


def _conclude(seats: list[Seat], status: dict[str, Any]) -> None:
    rows = []
    for seat in seats:
        first = seat.stages.get(Stage.DISCOVER.label)
        took = "-" if seat.running is None else f"{seat.running:.1f} s"
        boot = "-" if seat.running is None or first is None else f"{seat.running - first:.1f} s"
        private = "-" if seat.midlayer_ms is None else f"{seat.midlayer_ms} ms"
        rows.append([seat.client.name, seat.client.mac, took, boot, private, seat.failed])
    click.echo()
    heads = ["CLIENT", "MAC", "POWER-ON TO RUNNING", "FROM DISCOVER", "/CONFIG READY", "FAILED"]
    click.echo(table(heads, rows))
    aoe = status["aoe"]
    click.echo(
        f"\nserved   {amount(aoe['read_bytes'])} read and {amount(aoe['written_bytes'])} written "
        f"over AoE in {aoe['frames']} frames, {aoe['drops']} dropped; "
        f"{amount(status['tftp']['bytes'])} by TFTP"
    )
    click.echo(
        "next     pxed demo --keep gives a console on a client; pxed serve -i INTERFACE serves a "
        "real lab (README.md)"
    )


def _keep(lab: Lab, server: LabServer, seats: list[Seat]) -> None:
    state = server.control.path.parent
    click.echo(
        f"\nThe lab stays up. In another terminal:\n"
        f"  {sys.executable} -m pxed client list --state-dir {state}\n"
        f"  {sys.executable} -m pxed event --follow --state-dir {state}\n"
        f"  nsenter --net=/proc/{lab.server.pid}/ns/net tcpdump -i eth0\n"
        f"This is the console of {seats[0].client.name}; Ctrl-] ends the lab.\n"
    )
    attach(seats[0].client)


def _say_to_stderr(text: str) -> None:
    click.echo(text, err=True)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with everything cleaned up.

    SIGINT too is set: a shell starts what it puts in the background with SIGINT ignored.
    """

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
