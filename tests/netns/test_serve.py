"""``pxed serve`` as a whole, against udhcpc, curl and our own initiator."""

import signal
import time
from pathlib import Path

import pytest

from aoe_fast.initiator import AtaError, Initiator, NoAnswer
from pxed.control import ControlClient
from pxed.mac import mac_bytes
from tests.aoe_peer import eventually
from tests.conftest import requires
from tests.netns.conftest import GOOD, Serve, kept

pytestmark = pytest.mark.netns

PXE = ("-V", "PXEClient:Arch:00000:UNDI:002001")
SEAT = "02:00:00:00:00:11"
OTHER = "02:00:00:00:00:22"


def udhcpc(
    serve: Serve, folder: Path, *options: str, mac: str = SEAT, tries: int = 60
) -> dict[str, str]:
    """One DHCP exchange as ``mac``; what the client was given, {} if nothing in so many tries."""
    requires("udhcpc")
    cli = serve.cable.cli
    cli.ip("link set eth0 down", f"link set eth0 address {mac}", "link set eth0 up")
    time.sleep(0.1)
    out, script = folder / "given", folder / "script"
    out.unlink(missing_ok=True)
    script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env > {out}\nexit 0\n')
    script.chmod(0o755)
    command = ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", str(tries), "-T", "1"]
    cli.run([*command, "-s", str(script), *options], check=False, timeout=tries + 120)
    if not out.exists():
        return {}
    return dict(line.split("=", 1) for line in out.read_text().splitlines() if "=" in line)


def initiator(mac: str, retries: int = 60) -> Initiator:
    """By default it asks for a minute."""
    return Initiator("eth0", source_mac=mac_bytes(mac), timeout=0.2, retries=retries)


def test_a_pxe_client_gets_a_lease_and_its_boot_file(serve: Serve, tmp_path: Path) -> None:
    serve.start()
    given = udhcpc(serve, tmp_path, *PXE)
    assert given["serverid"] == given["siaddr"] == "10.77.0.1"
    assert given["boot_file"] == "undionly.kpxe"


def test_an_operating_system_gets_silence(serve: Serve, tmp_path: Path) -> None:
    serve.start()
    status = serve.ask("status")
    assert [status[part]["faults"] for part in ("dhcp", "tftp", "http")] == [0, 0, 0]
    assert udhcpc(serve, tmp_path, tries=3) == {}
    assert eventually(lambda: serve.ask("status")["dhcp"]["ignored"] > 0, 60)  # it heard


def test_all_mode_answers_an_operating_system(serve: Serve, tmp_path: Path) -> None:
    serve.start(GOOD + '[dhcp]\nmode = "all"\nrange = "10.77.0.60-10.77.0.61"')
    assert udhcpc(serve, tmp_path)["ip"] in ("10.77.0.60", "10.77.0.61")


def test_the_boot_file_comes_by_tftp(serve: Serve, tmp_path: Path) -> None:
    requires("curl")
    serve.start()
    serve.cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    got = tmp_path / "got"
    serve.cable.cli.run(["curl", "-sf", "-o", str(got), "tftp://10.77.0.1/undionly.kpxe"])
    assert got.read_bytes() == Path("/usr/lib/ipxe/undionly.kpxe").read_bytes()


def test_what_was_fetched_is_served_with_a_script_beside_it(serve: Serve, tmp_path: Path) -> None:
    requires("curl")
    own = serve.state / "ipxe"
    own.mkdir()
    for name in ("undionly.kpxe", "ipxe-arm64.efi", "manifest.json"):
        (own / name).write_text(f"fetched {name}")
    serve.start()
    serve.cable.cli.ip("addr add 10.77.0.2/24 dev eth0")

    def get(url: str) -> bytes:
        (tmp_path / "got").unlink(missing_ok=True)
        serve.cable.cli.run(["curl", "-sf", "-o", str(tmp_path / "got"), url])
        return (tmp_path / "got").read_bytes()

    assert get("tftp://10.77.0.1/undionly.kpxe") == b"fetched undionly.kpxe"
    for where in ("tftp://10.77.0.1", "http://10.77.0.1/ipxe"):
        assert get(f"{where}/snponly-arm64.efi") == b"fetched ipxe-arm64.efi"
        assert get(f"{where}/autoexec.ipxe").startswith(b"#!ipxe\n")
    (own / "autoexec.ipxe").write_text("of the administrator's")
    assert get("http://10.77.0.1/ipxe/autoexec.ipxe") == b"of the administrator's"


def test_a_discover_prepares_a_config_for_that_mac_alone(serve: Serve, tmp_path: Path) -> None:
    serve.start()
    udhcpc(serve, tmp_path, *PXE)
    with serve.cable.cli.inside(), initiator(SEAT) as mine, initiator(OTHER) as theirs:
        assert mine.identify(16, 3).sectors == (512 << 20) // 512
        mine.write(16, 3, 1000, b"m" * 512)
        assert mine.read(16, 3, 1000, 1) == b"m" * 512
        found = set[tuple[int, int]]()

        def both() -> bool:
            found.update((d.shelf, d.slot) for d in theirs.discover())
            return len(found) >= 2

        assert eventually(both, 60)
        assert found == {(16, 0), (16, 1)}
        theirs.retries = 2
        with pytest.raises(NoAnswer):
            theirs.identify(16, 3)
        with pytest.raises(NoAnswer):
            theirs.write(16, 3, 1000, b"t" * 512)
        assert mine.read(16, 3, 1000, 1) == b"m" * 512


def test_two_clients_have_different_configs_at_one_address(serve: Serve, tmp_path: Path) -> None:
    serve.start()
    for mac in (SEAT, OTHER):
        udhcpc(serve, tmp_path, *PXE, mac=mac)
    with serve.cable.cli.inside():
        for mac in (SEAT, OTHER):
            with initiator(mac) as one:
                one.write(16, 3, 1000, mac.encode().ljust(512))
        for mac in (SEAT, OTHER):
            with initiator(mac) as one:
                assert one.read(16, 3, 1000, 1) == mac.encode().ljust(512)


def test_after_kill_9_the_client_has_its_config_and_its_address_at_once(
    serve: Serve, tmp_path: Path
) -> None:
    process = serve.start()
    before = udhcpc(serve, tmp_path, *PXE)
    with serve.cable.cli.inside(), initiator(SEAT) as one:
        one.write(16, 3, 1000, b"kept" * 128)
    # A lease is saved at once, a machine in a moment.
    assert eventually(lambda: kept(serve.state, SEAT).get("image") == "lab@1", 60)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    serve.state.joinpath("control.sock").unlink()
    serve.start()
    with serve.cable.cli.inside(), initiator(SEAT) as one:
        assert one.read(16, 3, 1000, 1) == b"kept" * 128
    assert udhcpc(serve, tmp_path, *PXE)["ip"] == before["ip"]


def test_a_new_address_of_the_server_is_followed(serve: Serve, tmp_path: Path) -> None:
    serve.start()
    assert udhcpc(serve, tmp_path, *PXE)["siaddr"] == "10.77.0.1"
    serve.cable.srv.ip("addr del 10.77.0.1/24 dev eth0", "addr add 10.88.0.9/24 dev eth0")
    assert eventually(lambda: "10.88.0.9" in serve.ask("status")["ip"], 60)
    given = udhcpc(serve, tmp_path, *PXE)
    assert given["siaddr"] == given["serverid"] == "10.88.0.9"
    assert given["ip"].startswith("10.88.0.")


def test_it_serves_again_after_its_link_was_down(serve: Serve, tmp_path: Path) -> None:
    process = serve.start()
    serve.cable.srv.ip("link set eth0 down")
    time.sleep(0.5)
    serve.cable.srv.ip("link set eth0 up")
    assert udhcpc(serve, tmp_path, *PXE)["boot_file"] == "undionly.kpxe"
    with serve.cable.cli.inside(), initiator(SEAT) as one:
        assert one.read(16, 1, 0, 1) == b"root" * 128
    assert process.poll() is None


def test_every_client_sees_the_shared_devices_read_only(serve: Serve) -> None:
    serve.start()
    with serve.cable.cli.inside(), initiator(OTHER) as one:
        assert one.read(16, 0, 0, 1) == b"boot" * 128
        with pytest.raises(AtaError):
            one.write(16, 0, 0, b"x" * 512)
        assert one.read(16, 0, 0, 1) == b"boot" * 128


def test_what_the_block_server_complains_of_is_an_event(serve: Serve) -> None:
    serve.start()
    control = ControlClient(serve.state / "control.sock")
    serve.cable.cli.ip("link del eth0")  # the other end goes with it

    def said() -> list[str]:
        return [e["text"] for e in control.follow("/v1/events") if e["kind"] == "alarm"]

    assert eventually(lambda: any("eth0 is gone: waiting for it" in text for text in said()), 60)
    control.get("/v1/status")
