"""pxed under systemd as the operators' guide installs it: a Debian machine in QEMU. Long."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast.initiator import Initiator
from bench.overload import SEAT
from bench.restart import Seat
from pxed.lab.lab import Lab
from pxed.lab.netns import Namespace
from pxed.lab.qemu import Client
from tests.aoe_peer import eventually
from tests.conftest import requires
from tests.debian_server import WORDS, build_machine
from tests.guest import add_guest

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.ci, pytest.mark.timeout(1800)]

GUIDE = Path(__file__).parents[2] / "docs" / "operators.md"
RESTARTS = 3
LIMIT = 200.0
"""Seconds for what is bound to come: in an emulated machine a program starts slowly."""
_CONFIG = (
    'interface = "eth0"\\n[midlayer]\\nsize = "256M"\\nkeep_free = "0"\\n'
    f'[client."{SEAT}"]\\nname = "seat"\\n'
)


def steps() -> list[str]:
    """The commands that the guide gives for the installation as a service."""
    text = GUIDE.read_text().partition("## As a service")[2]
    found = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert found
    return [line.replace("sudo ", "") for line in found[1].splitlines()]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as room:
        room.server.ip("addr del 10.77.0.1/24 dev eth0")
        yield room


@pytest.fixture(scope="module")
def machine(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Installed and started with the guide's own lines."""
    requires("qemu-system-x86_64", "mksquashfs", "mmdebstrap", "unshare")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("what is compiled here does not fit Debian 12's Python 3.11 in the machine")
    system = build_machine(tmp_path_factory.mktemp("debian"))
    guest = add_guest(lab, system, memory=1024, words=WORDS)
    guest.power_on()
    guest.wait_for("login: ", 400)
    guest.send("root\n")
    guest.wait_for(r"root@[^\n]*# ", LIMIT)
    guest.shell("ip addr add 10.77.0.1/24 dev eth0 && ip link set eth0 up", LIMIT)
    guest.shell(f"mkdir /etc/pxed && printf '{_CONFIG}' > /etc/pxed/pxed.toml")
    for line in steps():
        guest.shell(f"cd /src && {line}", LIMIT)
    return guest


@pytest.fixture(scope="module")
def cli(lab: Lab, machine: Client) -> Namespace:
    """A machine on the segment that has its lease, and so its own /config."""
    requires("udhcpc")
    host = lab.add_host("seat")
    host.ip("link set eth0 down", f"link set eth0 address {SEAT}", "link set eth0 up")
    host.run(
        ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "60", "-T", "2", "-s", "/bin/true",
         "-V", "PXEClient:Arch:00000:UNDI:002001"]
    )  # fmt: skip
    with host.inside(), Initiator("eth0", timeout=0.5) as initiator:
        assert eventually(lambda: bool(initiator.discover(16, 3)), LIMIT)
    return host


def shown(machine: Client, *names: str) -> dict[str, str]:
    """Properties of the running unit."""
    said = machine.shell(f"systemctl show pxed {' '.join(f'-p {name}' for name in names)}", LIMIT)
    return dict(line.partition("=")[::2] for line in said.strip().splitlines())


def journal(machine: Client, words: str) -> str:
    """What journalctl shows; all that was said before is in it."""
    return machine.shell(f"journalctl --sync; journalctl --no-pager {words}", LIMIT)


def test_it_is_ready_when_systemd_says_so(machine: Client) -> None:
    """``enable --now`` has returned, so the server has said READY: its control socket answers."""
    told = shown(machine, "ActiveState", "SubState", "Type", "User", "StatusText", "NRestarts")
    assert told["StatusText"].startswith("serving eth0 (10.77.0.1")
    del told["StatusText"]
    assert told == {
        "ActiveState": "active", "SubState": "running", "Type": "notify", "User": "pxed",
        "NRestarts": "0",
    }  # fmt: skip
    machine.shell("pxed status", LIMIT)


def test_it_runs_as_its_own_user_with_two_capabilities(machine: Client) -> None:
    pid = shown(machine, "MainPID")["MainPID"]
    for kind in ("Prm", "Eff", "Bnd", "Amb"):
        held = machine.shell(
            f"capsh --decode=$(awk '/^Cap{kind}/ {{print $2}}' /proc/{pid}/status)"
        )
        assert held.strip().partition("=")[2] in ("cap_net_bind_service,cap_net_raw", "")
    assert "pxed pxed" in machine.shell("stat -c '%U %G' /var/lib/pxed/pxed.db")
    assert machine.shell("cat /proc/sys/net/core/rmem_max").strip() == "8388608"


def test_little_is_exposed_on_the_real_thing(machine: Client) -> None:
    said = machine.shell("systemd-analyze security --no-pager pxed | tail -1", LIMIT)
    level = re.search(r"exposure level for pxed.service: ([0-9.]+)", said)
    assert level, said
    print(f"systemd-analyze security: {level[1]}")
    assert float(level[1]) <= 2.5


def test_a_restart_under_load_is_a_pause(machine: Client, cli: Namespace) -> None:
    # One that never rests takes nearly all of one emulated processor: a start would take minutes.
    seat = Seat(rest=0.005)
    thread = threading.Thread(target=seat.run, args=(cli,))
    thread.start()
    try:
        for _ in range(RESTARTS):
            assert progress(seat)
            seat.longest = 0.0
            machine.shell("systemctl restart pxed", LIMIT)
            assert progress(seat)
            seat.gaps.append(seat.longest)
    finally:
        seat.stop = True
        thread.join()
    print(f"{RESTARTS} restarts in an emulated machine, {seat.answers} answers; the seat waited "
          f"{', '.join(f'{gap:.2f}' for gap in seat.gaps)} s")  # fmt: skip
    assert seat.errors == []
    said = journal(machine, "-u pxed -o cat | grep 'stopped after'")
    assert said.count("writable devices synced") >= RESTARTS


def progress(seat: Seat) -> bool:
    """Whether the seat's requests are answered."""
    before = seat.answers
    return eventually(lambda: seat.answers > before + 20, LIMIT)


def test_a_reload_is_told_of(machine: Client) -> None:
    machine.shell(
        'sed -i \'s/"seat"/"other"/\' /etc/pxed/pxed.toml && systemctl reload pxed', LIMIT
    )
    assert eventually(lambda: '"other"' in machine.shell("pxed client list --json", LIMIT), LIMIT)
    assert shown(machine, "ActiveState")["ActiveState"] == "active"


def test_alarms_are_warnings_in_the_journal(machine: Client) -> None:
    """And what is of interest only is not."""
    machine.shell("ip addr del 10.77.0.1/24 dev eth0", LIMIT)
    try:
        assert eventually(
            lambda: "no IPv4 address" in journal(machine, "-u pxed -p warning -o cat"), LIMIT,
        )  # fmt: skip
    finally:
        machine.shell("ip addr add 10.77.0.1/24 dev eth0", LIMIT)
    # Of all that it ever said: how much it has said since depends on what else happened.
    fields = "-o json --output-fields=PRIORITY,MESSAGE"
    rows = journal(machine, f"-u pxed {fields} | grep 'serving eth0'")
    found = [json.loads(line) for line in rows.splitlines() if line.startswith("{")]
    assert {row["PRIORITY"] for row in found if "serving eth0" in row["MESSAGE"]} == {"6"}


def test_one_that_hangs_is_started_again(machine: Client, cli: Namespace) -> None:
    before = shown(machine, "MainPID", "NRestarts", "WatchdogUSec")
    assert before["WatchdogUSec"] == "20s"
    machine.shell("systemctl kill -s STOP pxed", LIMIT)
    once_more = str(int(before["NRestarts"]) + 1)
    assert eventually(lambda: shown(machine, "NRestarts")["NRestarts"] == once_more, LIMIT)
    assert eventually(lambda: shown(machine, "SubState")["SubState"] == "running", LIMIT)
    assert shown(machine, "MainPID")["MainPID"] != before["MainPID"]
    said = journal(machine, "-u pxed -u init.scope -o cat | grep -i watchdog")
    assert "Watchdog timeout" in said
    with cli.inside(), Initiator("eth0", timeout=0.5, retries=20) as initiator:
        assert len(initiator.read(16, 3, 0, 2)) == 1024


_OTHER = "aoe-fast serve -i eth0 --control /run/c --export 16.0=/var/lib/pxed/images/lab/1/boot.img"


def test_it_and_another_server_of_the_machine_find_each_other(machine: Client) -> None:
    """Out of the sandbox and into it: what /proc shows there is enough."""
    assert "16.0 is served on eth0 by another pxed" in machine.shell(_OTHER, LIMIT, check=False)
    machine.shell("systemctl stop pxed && rm /var/lib/pxed/stopped", LIMIT)
    machine.shell(f"{_OTHER} > /run/said 2>&1 & echo $! > /run/other", LIMIT)
    machine.shell("until grep -q ready /run/said; do sleep 1; done", LIMIT)
    try:
        machine.shell("! systemctl start pxed", LIMIT)
        said = journal(machine, "-u pxed -o cat | grep 'by another'")
        assert "16.0 is served on eth0 by another aoe-fast" in said
    finally:
        machine.shell("kill $(cat /run/other); wait", LIMIT, check=False)
        machine.shell(
            "until systemctl start pxed; do systemctl reset-failed pxed; sleep 1; done", LIMIT
        )


def test_it_stops_in_order(machine: Client) -> None:
    machine.shell("systemctl stop pxed", LIMIT)
    assert shown(machine, "ActiveState", "Result") == {"ActiveState": "inactive",
                                                       "Result": "success"}  # fmt: skip
