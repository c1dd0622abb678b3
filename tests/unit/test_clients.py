"""The state machine of a client's life, fed by hand."""

import pytest

from pxed.clients import SILENT_BOOT, SILENT_RUN, UNTOLD, Clients
from pxed.errors import READ_ONLY
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.seat import Change, Client, Stage, State, What

MAC = Mac("52:54:00:00:00:01")


def feed(clients: Clients, time: float, kind: Kind, **detail: object) -> list[Change]:
    return clients.feed(Event(kind, MAC, time, detail))


def only(clients: Clients) -> Client:
    (client,) = clients
    return client


def boot(clients: Clients, start: float) -> None:
    """A whole UEFI boot, from its DISCOVER at ``start``."""
    feed(clients, start, Kind.DISCOVER, firmware="pxe", arch=7)
    feed(clients, start + 0.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, start + 0.2, Kind.ACK, ip="10.77.0.50", firmware="pxe")
    feed(clients, start + 0.3, Kind.TFTP_DONE, file="snponly.efi")
    feed(clients, start + 0.5, Kind.TFTP_DONE, file="autoexec.ipxe")
    feed(clients, start + 1.0, Kind.DISCOVER, firmware="ipxe", arch=7)
    feed(clients, start + 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, start + 2.0, Kind.AOE_READ, shelf=16, slot=0)
    feed(clients, start + 4.0, Kind.REPORT, step="kernel", uptime=1.0, text="")
    feed(clients, start + 4.5, Kind.REPORT, step="root", uptime=1.5, text="")
    feed(clients, start + 4.6, Kind.REPORT, step="config", uptime=1.6, text="")
    feed(clients, start + 5.0, Kind.REPORT, step="running", uptime=2.0, text="")


def test_a_boot_goes_through_all_stages_in_order() -> None:
    clients = Clients()
    boot(clients, 100.0)
    client = only(clients)
    assert client.state is State.RUNNING
    assert [step.stage for step in client.timeline] == list(Stage)
    assert client.stage_seconds(Stage.RUNNING) == pytest.approx(5.0)


def test_the_first_discover_is_a_new_boot() -> None:
    clients = Clients()
    changes = feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=0)
    assert [c.what for c in changes] == [What.NEW_BOOT, What.STAGE]


def test_a_repeated_discover_is_the_same_boot() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=0)
    assert feed(clients, 5.0, Kind.DISCOVER, firmware="pxe", arch=0) == []
    assert only(clients).boots == 1


def test_ipxe_after_its_boot_file_is_the_same_boot() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=7)
    feed(clients, 1.1, Kind.TFTP_DONE, file="snponly.efi")
    feed(clients, 2.0, Kind.DISCOVER, firmware="ipxe", arch=7)
    assert only(clients).boots == 1
    assert only(clients).stage is Stage.IPXE


def test_an_ipxe_that_loads_ours_reaches_ipxe_with_ours() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 2.0, Kind.TFTP_DONE, file="undionly.kpxe")
    feed(clients, 3.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    client = only(clients)
    assert client.boots == 1
    assert client.stage_seconds(Stage.IPXE) == pytest.approx(2.0)


def test_ipxe_in_the_rom_begins_a_boot() -> None:
    clients = Clients()
    changes = feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    assert [c.what for c in changes] == [What.NEW_BOOT, What.STAGE, What.STAGE]


@pytest.mark.parametrize("firmware", ["pxe", "ipxe"])
def test_a_discover_after_running_is_a_new_boot(firmware: str) -> None:
    clients = Clients()
    boot(clients, 100.0)
    feed(clients, 200.0, Kind.DISCOVER, firmware=firmware, arch=0)
    client = only(clients)
    assert (client.boots, client.state) == (2, State.SEEN)
    assert client.timeline[0].time == 200.0


@pytest.mark.parametrize("firmware", ["pxe", "ipxe"])
def test_a_reset_in_the_middle_of_a_boot_is_a_new_boot(firmware: str) -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware=firmware, arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 2.0, Kind.AOE_READ, shelf=16, slot=0)
    feed(clients, 9.0, Kind.DISCOVER, firmware=firmware, arch=0)
    assert only(clients).boots == 2


def test_the_systems_own_dhcp_is_no_boot() -> None:
    clients = Clients()
    boot(clients, 100.0)
    assert feed(clients, 110.0, Kind.DISCOVER, firmware="other") == []
    assert only(clients).state is State.RUNNING


def test_a_machine_that_never_netbooted_is_not_kept() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="other")
    assert len(clients) == 0


def test_a_flood_of_macs_is_bounded() -> None:
    clients = Clients(limit=10)
    for n in range(100):
        mac = Mac(f"52:54:00:00:00:{n:02x}")
        clients.feed(Event(Kind.DISCOVER, mac, 1.0, {"firmware": "pxe"}))
    assert len(clients) == 10


def test_a_client_that_says_it_failed_has_its_reason() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 9.0, Kind.REPORT, step="failed", uptime=60.0, text="no carrier on eth0")
    assert (only(clients).state, only(clients).why) == (State.FAILED, "no carrier on eth0")


def test_a_boot_that_loads_a_long_file_is_not_silent() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="rpi", arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 2.0, Kind.TFTP_READ, file="kernel8.img")
    assert clients.tick(500.0, {MAC}.__contains__) == []
    assert only(clients).state is not State.FAILED
    clients.tick(501.0)
    assert (only(clients).state, only(clients).why[:16]) == (State.FAILED, "silent for 499 s")


def test_a_silent_boot_fails_and_says_where() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    assert clients.tick(SILENT_BOOT) == []
    clients.tick(2 + SILENT_BOOT)
    assert only(clients).state is State.FAILED
    assert "after OFFER" in only(clients).why


def test_a_running_client_is_lost_and_found() -> None:
    clients = Clients()
    boot(clients, 100.0)
    clients.tick(106.0 + SILENT_RUN)
    assert only(clients).state is State.LOST
    feed(clients, 300.0, Kind.AOE_HEARD)
    assert only(clients).state is State.RUNNING


def test_a_client_that_never_reports_counts_as_running_after_a_while() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 2.0, Kind.AOE_READ, shelf=16, slot=0)
    feed(clients, 4.0, Kind.AOE_READ, shelf=16, slot=1)
    feed(clients, 60.0, Kind.AOE_HEARD)
    clients.tick(70.0)
    assert only(clients).state is State.RUNNING
    assert only(clients).timeline[-1].detail == UNTOLD
    # A slow machine's report comes after all: what was guessed is no more said.
    feed(clients, 80.0, Kind.REPORT, step="running", uptime=76.0, text="lab@1")
    assert only(clients).timeline[-1].detail == "lab@1"


def test_a_seat_whose_servers_disk_is_read_only_says_so_and_is_not_damaged() -> None:
    clients = Clients()
    boot(clients, 100.0)
    only(clients).damage = f"/srv/state: {READ_ONLY}"
    feed(clients, 106.0, Kind.REPORT, step="degraded", uptime=3.0, text="cannot write to e16.3")
    assert only(clients).degraded
    assert only(clients).why == f"changes will be lost: /srv/state: {READ_ONLY}"
    assert not only(clients).damaged


def test_a_write_to_config_is_its_mount() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 2.0, Kind.AOE_WRITE, shelf=16, slot=3)
    assert only(clients).stage is Stage.CONFIG
    # What the client says of it comes later.
    feed(clients, 2.1, Kind.REPORT, step="config", uptime=1.6, text="e16.3, 3M of 4M free")
    step = only(clients).timeline[-1]
    assert (step.stage, step.time, step.detail) == (Stage.CONFIG, 2.0, "e16.3, 3M of 4M free")


def test_a_degraded_client_is_marked() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    feed(clients, 2.0, Kind.REPORT, step="degraded", uptime=1.0, text="no /config")
    assert only(clients).degraded


def test_why_a_client_is_degraded_is_said_until_it_boots_again() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    feed(clients, 2.0, Kind.REPORT, step="degraded", uptime=1.0, text="no disk")
    feed(clients, 3.0, Kind.REPORT, step="running", uptime=2.0, text="")
    client = only(clients)
    assert client.state is State.RUNNING
    cause, _, todo = client.why.partition("; ")
    assert cause == "no disk"
    assert f"pxed client reset {client.mac}" in todo
    feed(clients, 500.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    assert (client.degraded, client.why) == (False, "")


def test_a_damaged_midlayer_is_why_a_client_is_degraded() -> None:
    """It waited for a disk that was not shown to it, and can only say that."""
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    only(clients).damage = "e2fsck failed"
    feed(clients, 2.0, Kind.REPORT, step="degraded", uptime=1.0, text="e16.3: no answer")
    assert only(clients).why.startswith("its midlayer is damaged: e2fsck failed; ")


def test_one_whose_disk_is_full_is_said_to_need_a_larger_one() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    said = "cannot write to e16.3: No space left on device"
    feed(clients, 2.0, Kind.REPORT, step="degraded", uptime=1.0, text=said)
    assert "pxed midlayer resize" in only(clients).why


def test_a_client_that_runs_well_needs_no_reason() -> None:
    clients = Clients()
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=0)
    only(clients).why = "of an earlier moment"
    feed(clients, 3.0, Kind.REPORT, step="running", uptime=2.0, text="")
    assert only(clients).why == ""


def test_a_one_shot_order_is_used_up_when_the_client_reads_its_disk() -> None:
    clients = Clients()
    client = clients.add(MAC)
    client.order, client.once = "diskless", "provision"
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=7)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    assert (client.ordered, client.once) == ("provision", "provision")
    feed(clients, 2.0, Kind.AOE_READ, shelf=16, slot=2)
    assert (client.doing, client.once) == ("provision", "")
    assert client.ordered == "diskless"


def test_an_order_given_during_a_boot_waits_for_the_next() -> None:
    clients = Clients()
    client = clients.add(MAC)
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=7)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    client.once = "provision"
    assert client.ordered == ""
    feed(clients, 2.0, Kind.AOE_READ, shelf=16, slot=0)
    assert client.once == "provision"


def test_an_order_given_before_anything_was_loaded_holds_when_the_firmware_asks_again() -> None:
    """Given to a seat in its firmware, which is then switched off and on at once."""
    clients = Clients()
    client = clients.add(MAC)
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=7)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    client.once = "provision"
    feed(clients, 3.0, Kind.DISCOVER, firmware="pxe", arch=7)
    assert (client.doing, client.boots) == ("provision", 2)
    feed(clients, 3.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 7.0, Kind.DISCOVER, firmware="pxe", arch=7)
    assert client.boots == 2
    feed(clients, 9.0, Kind.AOE_READ, shelf=16, slot=2)
    assert client.once == ""


def test_a_boot_that_never_read_its_disk_leaves_the_order() -> None:
    clients = Clients()
    client = clients.add(MAC)
    client.once = "provision"
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=7)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    clients.tick(500.0)
    assert (client.state, client.once) == (State.FAILED, "provision")


def test_a_client_that_was_sent_to_its_own_disk() -> None:
    clients = Clients()
    client = clients.add(MAC)
    client.once = "local"
    feed(clients, 1.0, Kind.DISCOVER, firmware="ipxe", arch=7)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    feed(clients, 1.2, Kind.TFTP_DONE, file="local.ipxe")
    assert (client.state, client.once) == (State.LOCAL, "")
    assert clients.tick(1000.0) == []
    feed(clients, 2000.0, Kind.DISCOVER, firmware="ipxe", arch=7)
    assert (client.boots, client.doing) == (2, "")


def test_several_addresses_are_one_client() -> None:
    other = Mac("52:54:00:00:01:01")
    clients = Clients()
    client = clients.add(MAC)
    clients.join(client, other)
    clients.feed(Event(Kind.DISCOVER, other, 1.0, {"firmware": "pxe"}))
    assert clients.get(other) is clients.get(MAC) is client
    assert (len(clients), client.boots) == (1, 1)
    assert Clients([client]).get(other) is client
    clients.part(client, other)
    assert clients.get(other) is None


def test_a_forgotten_client_begins_again() -> None:
    clients = Clients()
    boot(clients, 100.0)
    clients.forget(only(clients))
    assert len(clients) == 0
    assert clients.tick(1e9) == []
    boot(clients, 200.0)
    assert only(clients).boots == 1


def test_a_tick_looks_only_at_those_that_time_can_change() -> None:
    clients = Clients(Client(Mac(f"52:54:00:00:00:{n:02x}"), State.LOST) for n in range(100))
    assert clients.booting == 0
    feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=0)
    feed(clients, 1.1, Kind.OFFER, ip="10.77.0.50")
    assert clients.booting == 1


@pytest.mark.parametrize("lost", [False, True])
def test_a_running_machine_is_not_sent_away_by_whoever_has_its_ip_address(lost: bool) -> None:
    """Files are told apart by IP address, which anybody can take: only a boot of its own counts."""
    clients = Clients()
    boot(clients, 100.0)
    if lost:
        clients.tick(106.0 + SILENT_RUN)
    before = only(clients).state
    only(clients).once = only(clients).doing
    assert feed(clients, 300.0, Kind.HTTP_DONE, file="local.ipxe") == []
    assert feed(clients, 301.0, Kind.TFTP_DONE, file="local.ipxe") == []
    assert only(clients).state is before


@pytest.mark.parametrize("file", ["/ipxe/snponly.efi", "/image/pi@1/pxed.efi"])
def test_what_uefi_loads_by_http_is_its_boot_file(file: str) -> None:
    clients = Clients()
    feed(clients, 100.0, Kind.DISCOVER, firmware="uefi-http", arch=19)
    feed(clients, 100.1, Kind.OFFER, ip="10.0.0.1")
    feed(clients, 100.2, Kind.HTTP_DONE, file="/image/lab@1/vmlinuz")
    assert only(clients).stage is Stage.OFFER
    feed(clients, 100.3, Kind.HTTP_DONE, file=file)
    assert only(clients).stage is Stage.BOOT_FILE


def test_a_running_machine_does_not_boot_because_a_relay_elsewhere_says_so() -> None:
    clients = Clients()
    boot(clients, 100.0)
    assert feed(clients, 300.0, Kind.DISCOVER, firmware="pxe", arch=7, relayed=True) == []
    assert only(clients).state is State.RUNNING
    assert feed(clients, 301.0, Kind.DISCOVER, firmware="pxe", arch=7) != []


def test_a_machine_that_is_new_behind_a_relay_is_told_of() -> None:
    clients = Clients()
    assert feed(clients, 1.0, Kind.DISCOVER, firmware="pxe", arch=7, relayed=True) != []
