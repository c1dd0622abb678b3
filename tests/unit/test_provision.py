"""The server's side of installations: policy, orders, results, and what is booted after them."""

import dataclasses
from pathlib import Path

import pytest

from pxed.bootable import Kernel
from pxed.bootplans import BootPlans
from pxed.choice import Choice
from pxed.clients import Clients
from pxed.config import Config, Provision, parse
from pxed.dhcp.classify import Firmware
from pxed.dhcp.replies import Mode
from pxed.errors import UsageError
from pxed.events import Event, Kind
from pxed.images import Image
from pxed.mac import Mac
from pxed.provision import ORDERS_BYTES, orders, policy, stays
from pxed.reload import differences
from pxed.seat import Client, State
from pxed.watch import REPORT_LINES, SECTOR, erase_report

MAC = Mac("52:54:00:00:00:01")


def config(text: str) -> Config:
    return parse(f'interface = "eth0"\n{text}')


def test_without_a_table_nobody_has_said_anything() -> None:
    plain = config('[class.x86]\nmode = "provision"\n')
    assert plain.classes["x86"].provision is None
    assert orders(None, "2026-11-25").rstrip(b"\0") == b"pxed-orders 1\nreleased=2026-11-25\n"


def test_an_empty_table_is_unattended_and_careful() -> None:
    assert config("[class.x86.provision]\n").classes["x86"].provision == Provision(
        unattended=True, wipe=False, disk="only", supported_until=None, then="local"
    )


def test_a_client_overrides_what_it_names_and_no_more() -> None:
    both = config(
        "[class.x86.provision]\nsupported_until = 2027-12-31\ndisk = 'largest'\n"
        f"[client.'{MAC}'.provision]\nwipe = true\n"
    )
    mine = policy(both.classes["x86"].provision, both.clients[MAC].provision)
    assert mine == Provision(disk="largest", supported_until="2027-12-31", wipe=True)


def test_the_orders_are_one_page_of_plain_lines() -> None:
    said = orders(Provision(wipe=True, disk="sda", supported_until="2027-12-31"), "")
    assert len(said) == ORDERS_BYTES
    assert said.rstrip(b"\0").decode().splitlines() == [
        "pxed-orders 1", "unattended=yes", "wipe=yes", "disk=sda", "until=2027-12-31",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "disk = '/dev/sda'",
        "disk = 'sda\\nwipe=yes'",
        "supported_until = 'soon'",
        "supported_until = 2027-12-31T00:00:00",
        "wipe = 'yes'",
        "then = 'reboot'",
        "whipe = true",
    ],
)
def test_bad_values_are_named(line: str) -> None:
    with pytest.raises(UsageError, match=r"class\.x86\.provision"):
        config(f"[class.x86.provision]\n{line}\n")
    with pytest.raises(UsageError, match=rf"{MAC}.*provision"):
        config(f"[client.'{MAC}'.provision]\n{line}\n")


def test_a_reload_takes_over_a_policy() -> None:
    changed = differences(
        config("[class.x86.provision]\nwipe = false\n"),
        config("[class.x86.provision]\nwipe = true\n"),
    )
    assert [(each.key, each.live) for each in changed] == [("class.x86.provision.wipe", True)]


def test_the_orders_follow_the_lines_of_the_report_device(tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.write_bytes(b"kernel 1.0 old".ljust(16384, b"x"))
    erase_report(report, orders(Provision(), ""))
    data = report.read_bytes()
    assert len(data) == 16384
    assert not any(data[: REPORT_LINES * SECTOR])
    assert data[REPORT_LINES * SECTOR :].startswith(b"pxed-orders 1\n")
    erase_report(report)
    assert not any(report.read_bytes())


# The state machine


def seat(mode: str = "provision") -> tuple[Clients, Client]:
    client = Client(MAC, State.BOOTING, mode=mode, image="lab@1.1", boots=1)
    clients = Clients([client])
    clients.feed(Event(Kind.AOE_READ, MAC, 1.0, {"shelf": 16, "slot": 2}))
    return clients, client


def report(clients: Clients, step: str, text: str, at: float = 2.0) -> None:
    clients.feed(Event(Kind.REPORT, MAC, at, {"step": step, "text": text}))


def test_progress_is_shown_and_is_not_the_end() -> None:
    clients, client = seat()
    report(clients, "installing", "vda: 50 %")
    assert (client.state, client.result) == (State.BOOTING, "installing vda: 50 %")


@pytest.mark.parametrize("step", ["installed", "upgraded", "kept"])
def test_an_end_that_is_fine(step: str) -> None:
    clients, client = seat()
    report(clients, step, "vda: so")
    assert (client.state, client.result) == (State.LOCAL, f"{step} vda: so")
    assert (client.provisioned, client.why) == ("lab@1.1", "")


@pytest.mark.parametrize("step", ["refused", "failed"])
def test_an_end_that_needs_a_person(step: str) -> None:
    clients, client = seat()
    report(clients, step, "vda: it holds 2 partitions")
    assert client.state is State.FAILED
    assert client.why == "vda: it holds 2 partitions"
    assert client.result.startswith(step)
    assert client.provisioned == ""


def test_a_diskless_client_cannot_say_that_it_was_installed() -> None:
    clients, client = seat("diskless")
    report(clients, "installed", "vda")
    assert (client.state, client.result) == (State.BOOTING, "")


def test_a_long_installation_is_no_running_system() -> None:
    clients, client = seat()
    report(clients, "kernel", "6.1", 2.0)
    clients.feed(Event(Kind.AOE_HEARD, MAC, 99.0))
    clients.tick(100.0)
    assert client.state is State.BOOTING


def test_uefi_tries_ipv6_and_http_on_its_way_to_the_disk() -> None:
    clients = Clients([Client(MAC, order="local")])
    discover = {"firmware": "pxe", "arch": 7}
    clients.feed(Event(Kind.DISCOVER, MAC, 1.0, discover))
    clients.feed(Event(Kind.TFTP_DONE, MAC, 3.0, {"file": "local.ipxe"}))
    client = clients.get(MAC)
    assert client is not None
    clients.feed(Event(Kind.SOLICIT6, MAC, 10.0, discover))
    http = {"firmware": "uefi-http", "arch": 16}
    clients.feed(Event(Kind.DISCOVER, MAC, 60.0, http))
    assert (client.state, client.boots) == (State.LOCAL, 1)
    clients.feed(Event(Kind.DISCOVER, MAC, 900.0, http))
    assert (client.state, client.boots) == (State.SEEN, 2)


# What is booted next


@pytest.mark.parametrize(
    ("step", "policy", "standing", "expected"),
    [
        ("installed", None, False, True),
        ("upgraded", Provision(), False, True),
        ("kept", Provision(), False, True),
        ("refused", Provision(), False, False),
        ("failed", Provision(), False, False),
        ("installed", Provision(then="default"), False, False),
        ("installed", Provision(), True, False),
    ],
)
def test_who_stays_on_its_disk(
    step: str, policy: Provision | None, standing: bool, expected: bool
) -> None:
    assert stays(step, policy, standing=standing) is expected


@pytest.fixture
def choice() -> Choice:
    made = Choice(config('[class.x86]\nmode = "provision"\n'))
    made.clients = Clients([Client(MAC, provisioned="lab@1.1")])
    made.images["x86"] = Image("lab", "1.1", "x86", Path("/"), {})
    return made


def test_who_has_this_image_already_goes_on_to_its_disk(choice: Choice) -> None:
    assert choice.mode_of(MAC, "x86") == "local"


KERNEL = Kernel(Path("/vmlinuz"), Path("/initrd"), "quiet")


@pytest.mark.parametrize("boot", ["san", "kernel"])
@pytest.mark.parametrize("maintenance", [None, KERNEL])
def test_the_installer_comes_by_http_where_that_is_wanted_and_possible(
    choice: Choice, boot: str, maintenance: Kernel | None
) -> None:
    choice.config = config(f'[class.x86]\nmode = "provision"\nboot = "{boot}"\n')
    choice.images["x86"] = Image(
        "lab", "1.2", "x86", Path("/"), {}, KERNEL, maintenance=maintenance
    )
    plans = BootPlans(choice, lambda: "http://10.77.0.1", lambda: Mode.PXE_ONLY)
    plan = plans.plan(MAC, Firmware.IPXE, 7, frozenset())
    assert plan is not None
    if boot == "kernel" and maintenance is not None:
        assert (plan.root_path, plan.script) == (None, "http://10.77.0.1/tfm/lab@1.2.ipxe")
    else:
        assert (plan.root_path, plan.script) == ("aoe:e16.2", None)


def test_a_class_that_provisions_by_http_needs_a_kernel_for_it() -> None:
    choice = Choice(config('[class.x86]\nmode = "provision"\nboot = "kernel"\n'))
    image = Image("lab", "1", "x86", Path("/"), {"tfm": Path("/tfm")}, KERNEL)
    choice.images = {"x86": image}
    with pytest.raises(UsageError, match="no maintenance kernel"):
        choice.check()
    choice.images = {"x86": dataclasses.replace(image, maintenance=KERNEL)}
    choice.check()


def test_another_image_is_provisioned(choice: Choice) -> None:
    choice.images["x86"] = dataclasses.replace(choice.images["x86"], version="1.2")
    assert choice.mode_of(MAC, "x86") == "provision"


def test_a_one_shot_order_is_obeyed_all_the_same(choice: Choice) -> None:
    client = choice.clients.get(MAC)
    assert client is not None
    client.once = "provision"
    assert choice.mode_of(MAC, "x86") == "provision"


def test_a_stranger_is_provisioned(choice: Choice) -> None:
    assert choice.mode_of(Mac("52:54:00:00:00:02"), "x86") == "provision"
