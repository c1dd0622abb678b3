"""DHCP against clients that other people wrote, and beside dnsmasq as the site's server."""

import time
from pathlib import Path

import pytest

from pxed.dhcp.replies import Mode
from pxed.events import Kind
from pxed.lab.lab import Lab
from pxed.lab.netns import Namespace
from tests.aoe_peer import eventually
from tests.conftest import Cable, requires
from tests.netns.site import networkd
from tests.netns.test_dhcp_server import kinds, serving, udhcpc
from tests.netns.test_mode import dnsmasq

pytestmark = pytest.mark.netns
PXE = "PXEClient:Arch:00007:UNDI:003016"


def address(host: Namespace) -> str:
    said = host.run(["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).stdout.split()
    return said[said.index("inet") + 1] if "inet" in said else ""


def dhclient(host: Namespace, folder: Path, *more: str, config: str = "") -> None:
    """ISC's client in the foreground, until it has an address; what it leaves is its lease file.

    That is written after the address was set: it is waited for as well.
    """
    requires("dhclient")
    (folder / "dhclient.conf").write_text("timeout 60;\nretry 1;\n" + config)
    argv = [
        "dhclient", "-d", "-v", "-cf", str(folder / "dhclient.conf"), "-pf", str(folder / "pid"),
        "-lf", str(folder / "isc.leases"), "-sf", str(script(folder)), *more, "eth0",
    ]  # fmt: skip
    client = host.popen(argv)
    leases, until = folder / "isc.leases", time.monotonic() + 60
    while time.monotonic() < until and client.poll() is None:
        if address(host) and leases.exists() and "expire" in leases.read_text():
            break
        time.sleep(0.05)
    client.kill()
    client.wait()


def script(folder: Path) -> Path:
    """What dhclient calls; its own would write the host's resolv.conf."""
    path = folder / "dhclient-script"
    path.write_text(
        '#!/bin/sh\ncase "$reason" in\n'
        'BOUND|RENEW|REBOOT) ip addr replace "$new_ip_address/24" dev "$interface" ;;\n'
        'RELEASE|EXPIRE|STOP) ip addr flush dev "$interface" ;;\nesac\nexit 0\n'
    )
    path.chmod(0o755)
    return path


def test_dhclient_gets_a_lease_keeps_it_and_gives_it_back(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.ALL) as (_, events):
        dhclient(cable.cli, tmp_path)
        first = address(cable.cli)
        cable.cli.ip("addr flush dev eth0")
        dhclient(cable.cli, tmp_path)  # again, with its lease file
        assert address(cable.cli) == first
        cable.cli.run(["dhclient", "-r", "-lf", str(tmp_path / "isc.leases"), "-cf",
                       str(tmp_path / "dhclient.conf"), "-pf", str(tmp_path / "none"), "-sf",
                       str(script(tmp_path)), "eth0"], check=False, timeout=100)  # fmt: skip
        assert eventually(lambda: events[-1].kind is Kind.RELEASE)
    assert first.startswith("10.77.0.")
    said = [Kind.DISCOVER, Kind.OFFER, Kind.REQUEST, Kind.ACK, Kind.RELEASE]
    assert kinds(events) == said
    assert events[-2].kind is Kind.ACK


def test_dhclient_as_firmware(cable: Cable, tmp_path: Path) -> None:
    config = f'send vendor-class-identifier "{PXE}";\n'
    with serving(cable.srv, Mode.PXE_ONLY) as (_, events):
        dhclient(cable.cli, tmp_path, config=config)
    assert events[-1].kind is Kind.ACK
    assert 'filename "undionly.kpxe"' in (tmp_path / "isc.leases").read_text()


def test_dhcpcd(cable: Cable, tmp_path: Path) -> None:
    requires("dhcpcd")
    (tmp_path / "conf").write_text("duid\nnoarp\nnoipv6rs\nnoipv4ll\n")
    options = f"-f {tmp_path}/conf -c /bin/true"
    apart = "mount -t tmpfs none /var/lib/dhcpcd && mount -t tmpfs none /run &&"
    with serving(cable.srv, Mode.ALL) as (_, events):
        said = cable.cli.run(
            # Its lease and pid files have fixed places: in a mount namespace they go with it.
            ["unshare", "--mount", "sh", "-c",
             f"{apart} exec dhcpcd --oneshot --nobackground -4 {options} -t 60 eth0"],
            check=False, timeout=100,
        )  # fmt: skip
    assert Kind.ACK in [event.kind for event in events], said.stderr
    assert address(cable.cli).startswith("10.77.0.")


def test_pxe_only_beside_dnsmasq(tmp_path: Path) -> None:
    """M3: the site's server gives the system its address, we give the firmware its own."""
    requires("dnsmasq", "udhcpc")
    with Lab() as lab:
        site = lab.add_host("site", "10.77.0.2/24")
        seat = lab.add_host("seat")
        dnsmasq(Cable(lab.server, site), tmp_path, "--no-ping")
        with serving(lab.server, Mode.PXE_ONLY) as (server, _):
            system = udhcpc(Cable(lab.server, seat), tmp_path)
            assert server.counters["replies"] == 0
    assert system["serverid"] == "10.77.0.2"
    assert system["ip"].startswith("10.77.0.1")


def test_firmware_beside_dnsmasq_gets_our_boot_file_from_both_offers(tmp_path: Path) -> None:
    """Firmware that takes ours has our file; one that takes the site's is left alone by us."""
    requires("dnsmasq", "udhcpc")
    with Lab() as lab:
        site = lab.add_host("site", "10.77.0.2/24")
        seat = lab.add_host("seat")
        dnsmasq(Cable(lab.server, site), tmp_path, "--no-ping")
        with serving(lab.server, Mode.PXE_ONLY) as (_, events):
            got = udhcpc(Cable(lab.server, seat), tmp_path, "-V", PXE, "-O", "bootfile")
            # It may have the other's answer before its question has been looked at here.
            assert eventually(lambda: bool({Kind.ACK, Kind.IGNORED} & {*kinds(events)}))
    last = events[-1]
    if got["serverid"] == "10.77.0.1":
        assert got["boot_file"] == "undionly.kpxe"
    else:  # the first offer won, and it was the other's
        assert last.kind is Kind.IGNORED
        assert "10.77.0.2" in str(last.detail["why"])


def test_networkd(cable: Cable, tmp_path: Path) -> None:
    """systemd's client. Its RELEASE (version 252) names no server, so it is not ours to take."""
    with serving(cable.srv, Mode.ALL) as (_, events):
        client = networkd(
            cable.cli, tmp_path, "DHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        )
        assert eventually(lambda: bool(address(cable.cli)))
        had = address(cable.cli)
        client.terminate()
        assert eventually(lambda: events[-1].kind is Kind.IGNORED)
    assert had.startswith("10.77.0.")
    assert kinds(events) == [Kind.DISCOVER, Kind.OFFER, Kind.REQUEST, Kind.ACK, Kind.IGNORED]
    assert "names no server" in str(events[-1].detail["why"])


def test_networkd_is_left_to_the_site_in_pxe_only(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.PXE_ONLY) as (server, events):
        networkd(cable.cli, tmp_path, "DHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
        assert eventually(lambda: bool(events))
    assert {event.kind for event in events} == {Kind.IGNORED}
    assert server.counters["replies"] == 0


def test_perfdhcp(cable: Cable) -> None:
    """Forty machines, four messages each: all of it, and no address twice."""
    requires("perfdhcp")
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    with serving(cable.srv, Mode.ALL, last="10.77.0.150") as (_, events):
        # Nothing counts as lost because it is late, and it waits for the last answers.
        said = cable.cli.run(
            ["perfdhcp", "-4", "-r", "40", "-n", "40", "-R", "40", "-l", "eth0", "-W", "4000000",
             "-d", "30", "-d", "30"], check=False, timeout=100,
        ).stdout  # fmt: skip
    assert said.count("drops: 0") == 2, said
    acked = [event for event in events if event.kind is Kind.ACK]
    given = {(event.mac, event.detail["ip"]) for event in acked}
    assert len({mac for mac, _ in given}) == len({ip for _, ip in given}) == len(given) >= 40
