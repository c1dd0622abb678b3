"""The conflict watch against Debian's dnsmasq as a rival and vblade as a second AoE target."""

import asyncio
import select
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pxed.conflicts import GONE, Conflicts, What
from pxed.control import ControlClient
from pxed.dhcp.replies import Mode
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.net.conflicts import ConflictWatch, find_targets
from pxed.net.link import Link, look_up
from pxed.net.rival import find_rivals, find_tftp
from pxed.net.thread import LoopThread
from tests.conftest import Cable, requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.site import vblade
from tests.netns.test_mode import dnsmasq, eventually, running, serve

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns


@contextmanager
def watching(cable: Cable, *, every: float = 1.0) -> Iterator[tuple[ConflictWatch, list[Event]]]:
    events: list[Event] = []
    with LoopThread(cable.srv.inside()) as thread:

        async def start() -> ConflictWatch:
            conflicts = Conflicts(Mode.PXE_ONLY, lambda ip: ip > IPv4Address("10.77.0.110"))
            watch = ConflictWatch(
                look_up("eth0"), conflicts, events.append, shelves={16}, every=every
            )
            await watch.start()
            return watch

        watch = thread.call(start())
        try:
            yield watch, events
        finally:
            thread.call(watch.close())
            thread.call(watch.close())


def mac_of(cable: Cable) -> str:
    with cable.cli.inside():
        return str(look_up("eth0").mac)


@pytest.fixture
def site(cable: Cable) -> Cable:
    requires("dnsmasq", "vblade")
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    return cable


def test_a_rival_that_boots_is_named_with_what_it_offers(site: Cable, tmp_path: Path) -> None:
    dnsmasq(site, tmp_path, "--no-ping", "--dhcp-boot=pxelinux.0")
    with watching(site) as (_, events):
        eventually(lambda: len(events) >= 2)
    by_what = {event.detail["what"]: event.detail for event in events}
    assert by_what[What.BOOT]["rival"] == mac_of(site)
    assert by_what[What.BOOT]["ip"] == "10.77.0.2"
    assert by_what[What.BOOT]["offer"] == "boot file pxelinux.0"
    assert What.DHCP in by_what


def test_one_that_answers_others_is_heard_between_looks(site: Cable, tmp_path: Path) -> None:
    requires("udhcpc")
    with watching(site, every=3600) as (_, events):
        time.sleep(3.5)  # the first look is over
        assert events == []
        dnsmasq(site, tmp_path, "--no-ping")
        site.srv.run(["udhcpc", "-i", "eth0", "-B", "-n", "-q", "-f", "-t", "3", "-T", "1",
                      "-s", "/bin/true"], check=False)  # fmt: skip
        eventually(lambda: bool(events))
    assert events[0].detail["what"] == What.DHCP


def test_one_that_stops_is_gone(
    site: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, late, looks = Conflicts.swept, [0.0], [0]

    def later(self: Conflicts, now: float) -> list[Event]:
        looks[0] += 1
        return swept(self, now + late[0])

    monkeypatch.setattr(Conflicts, "swept", later)
    process = dnsmasq(site, tmp_path, "--no-ping")
    with watching(site, every=0.5) as (watch, events):
        eventually(lambda: bool(events))
        process.kill()
        process.wait()
        begun = watch.counters["looks"]
        eventually(lambda: watch.counters["looks"] > begun)
        assert [event.kind for event in events] == [Kind.RIVAL]
        late[0], swept_before = GONE + 100, looks[0]
        eventually(lambda: any(event.kind is Kind.RIVAL_GONE for event in events))
        eventually(lambda: looks[0] > swept_before + 1)
    assert [event.kind for event in events] == [Kind.RIVAL, Kind.RIVAL_GONE]


@pytest.mark.parametrize(
    "command",
    ["in.tftpd -L -l -a :69 -s {folder}",
     "dnsmasq --no-daemon --conf-file=/dev/null -p0 -uroot --enable-tftp --tftp-root={folder}"],
    ids=["tftpd-hpa", "dnsmasq"],
)  # fmt: skip
def test_a_tftp_server_is_found(site: Cable, tmp_path: Path, command: str) -> None:
    requires(command.split()[0])
    site.cli.popen(command.format(folder=tmp_path).split())
    eventually(lambda: ":69 " in site.cli.run(["ss", "-ulnH"]).stdout)
    with watching(site, every=0.5) as (_, events):
        eventually(lambda: bool(events))
    assert events[0].detail["what"] == What.TFTP
    assert events[0].detail["rival"] == mac_of(site)
    assert events[0].detail["ip"] == "10.77.0.2"


def test_another_target_at_our_address(site: Cable, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    vblade(site.cli, 16, 1, disk)
    vblade(site.cli, 20, 1, disk)  # not one of ours: no business of ours
    with watching(site) as (watch, events):
        eventually(lambda: bool(events))
        begun = watch.counters["looks"]
        eventually(lambda: watch.counters["looks"] > begun)
    (event,) = events
    assert event.detail["what"] == What.AOE
    assert event.detail["rival"] == mac_of(site)
    assert event.detail["offer"] == "e16.1"


def held(loop: asyncio.AbstractEventLoop, fd: int, _read: Callable[[], object]) -> None:
    """In ``loop.add_reader``'s place: the loop stands still until something lies in the socket.

    Nor does it come to that before the time to listen is over.
    """

    def hold() -> None:
        there = select.poll()
        there.register(fd, select.POLLIN)
        assert there.poll(60_000)

    loop.call_soon(hold)


async def dhcp_servers(link: Link) -> list[Mac]:
    return [rival.mac for rival in await find_rivals(link, 0.2)]


async def tftp_servers(link: Link) -> list[Mac]:
    return list(await find_tftp(link, 0.2))


async def targets(link: Link) -> list[Mac]:
    return list(await find_targets(link, {16}, 0.2))


@pytest.mark.parametrize("look", [dhcp_servers, tftp_servers, targets])
def test_an_answer_that_lies_unread_when_the_time_is_over_counts(
    site: Cable, tmp_path: Path, look: Callable[[Link], Coroutine[Any, Any, list[Mac]]]
) -> None:
    if look is targets:
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(1 << 20))
        vblade(site.cli, 16, 1, disk)
    else:
        dnsmasq(site, tmp_path, "--no-ping", "--enable-tftp", f"--tftp-root={tmp_path}")

    async def busy() -> list[Mac]:
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "add_reader", partial(held, loop))
            return await look(look_up("eth0"))

    with LoopThread(site.srv.inside()) as thread:
        assert thread.call(busy(), 120) == [mac_of(site)]


def test_a_quiet_segment_has_no_finding(site: Cable) -> None:
    with watching(site, every=0.0) as (watch, events):
        eventually(lambda: watch.counters["looks"] > 1)
    assert events == []
    assert watch.counters["failed"] == 0


def found(control: ControlClient) -> dict[str, Any]:
    return {each["what"]: each for each in control.get("/v1/status")["conflicts"]}


def test_the_whole_server_shows_them_and_its_own_target_is_none(
    serve: Serve, tmp_path: Path
) -> None:
    requires("vblade")
    dnsmasq(serve.cable, tmp_path, "--no-ping", "--dhcp-boot=pxelinux.0")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    vblade(serve.cable.cli, 16, 0, disk)
    quick = "from pxed import netboot; netboot.EVERY = 1.0\n"
    with running(serve, GOOD + "[aoe]\nforce = true", before=quick) as control:
        eventually(lambda: len(found(control)) == 3)
        conflicts = found(control)
        kinds = [e["kind"] for e in control.follow("/v1/events")]
        shown = subprocess.run(
            [*serve.command(GOOD)[:3], "status", "--state-dir", str(serve.state)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    assert conflicts["aoe"]["offer"] == "e16.0"
    assert kinds.count("rival") == 3
    assert "boot server 10.77.0.2" in shown
    assert "AoE target" in shown
