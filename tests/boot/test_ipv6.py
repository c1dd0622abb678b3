"""OVMF that asks by IPv6 first: it is told of, and forgotten when it goes on by IPv4."""

import time
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.server import LabServer
from tests.boot.test_beside import events_of, lab
from tests.netns.conftest import make_state

__all__ = ["lab"]  # the fixture
pytestmark = [pytest.mark.boot, pytest.mark.timeout(500), pytest.mark.long]
NO_IPV4_PXE = ("-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")


def test_pxe_by_ipv6_then_http_by_ipv4(lab: Lab, tmp_path: Path) -> None:
    server = LabServer(lab, make_state(tmp_path))
    server.start()
    client = lab.add_client(firmware="uefi", extra=NO_IPV4_PXE, memory=256)
    client.power_on()
    until = time.monotonic() + 180
    # As the server wrote it down: the firmware goes on by itself.
    while not (said := [e for e in events_of(server, client) if "IPv6 only" in e.get("why", "")]):
        assert time.monotonic() < until, events_of(server, client)
        time.sleep(0.2)
    assert (said[0]["kind"], said[0]["state"]) == ("state", "failed")
    assert {e["arch"] for e in events_of(server, client) if e["kind"] == "solicit6"} == {7}
    while server.client(client.mac)["state"] == "failed":
        assert time.monotonic() < until + 180, events_of(server, client)
        time.sleep(0.2)
    assert server.client(client.mac)["firmware"] in ("uefi-http", "ipxe")
    assert server.client(client.mac)["why"] == ""
    client.power_off()
    server.stop()
