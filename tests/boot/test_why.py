"""Boots of real firmware that are stopped on purpose, and what is said of each.

What firmware does with a rival's answer, a filter or a port that does not forward is its own; that
the server sees through it is what is tested here. ``tests/netns/test_why_room.py`` has the rest.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from pxed.lab.server import LabServer
from pxed.why import GAP
from tests.boot.test_beside import events_of
from tests.conftest import Cable, requires
from tests.netns.conftest import make_state
from tests.netns.test_mode import dnsmasq, eventually

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]
TABLE = (
    "add table bridge filter;"
    " add chain bridge filter forward { type filter hook forward priority 0; }"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    requires("qemu-system-x86_64", "mkfs.ext4", "nft", "dnsmasq")
    with Lab() as made:
        made.switch.run(["nft", TABLE])
        yield made


def until(
    server: LabServer, client: Client, met: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The client as the server shows it once ``met`` is."""
    end = time.monotonic() + 300
    while True:
        try:
            shown = server.client(client.mac)
        except Exception:  # not heard of yet
            shown = {}
        if shown and met(shown):
            return shown
        assert time.monotonic() < end, shown or server.last_words()
        time.sleep(0.1)


def drop(lab: Lab, client: Client, rule: str = "") -> str:
    """The switch forwards nothing from this client's port that ``rule`` fits; the rule's handle."""
    said = lab.switch.run(
        [
            "nft",
            "-j",
            "-e",
            "-a",
            f"add rule bridge filter forward iifname {client.tap} {rule} drop",
        ]
    ).stdout
    handle: int = json.loads(said)["nftables"][0]["add"]["rule"]["handle"]
    return f"{handle}"


def dropped(lab: Lab) -> bool:
    """Whether a rule of the switch that counts has met a frame."""
    said = lab.switch.run(["nft", "-j", "list", "ruleset"]).stdout
    words = [
        word
        for each in json.loads(said)["nftables"]
        for word in each.get("rule", {}).get("expr", ())
    ]
    return any(word["counter"]["packets"] for word in words if "counter" in word)


def test_a_rival_with_a_wrong_next_server(lab: Lab, tmp_path: Path) -> None:
    """The switch trusts the rival's offers and not ours, and nobody has the file that it names."""
    site = lab.add_host("site", "10.77.0.2/24")
    dnsmasq(Cable(site, site), tmp_path, "--no-ping", "--dhcp-boot=pxelinux.0,site,10.77.0.3")
    server = LabServer(lab, make_state(tmp_path), '[dhcp]\nmode = "pxe-only"\n')
    server.start()
    eventually(lambda: "boot" in [
        each["what"] for each in server.control.get("/v1/status")["conflicts"]])  # fmt: skip
    lab.switch.run(["nft", "add rule bridge filter forward iifname veth1 udp sport 67 drop"])
    client = lab.add_client(memory=256)
    client.power_on()
    took = "took the offer of another DHCP server, 10.77.0.2"
    shown = until(server, client, lambda shown: took in shown["why"])
    assert "which offers boot file pxelinux.0 from 10.77.0.3; remove the boot" in shown["why"]
    assert not [e for e in events_of(server, client) if e["kind"].startswith("aoe")]
    server.stop()


def test_no_address_is_left(lab: Lab, tmp_path: Path) -> None:
    """The range has one address, and another seat has it."""
    one = '[dhcp]\nrange = "10.77.0.50-10.77.0.50"\nmode = "pxe-only"\n'
    server = LabServer(lab, make_state(tmp_path), one)
    server.start()
    first, second = lab.add_client(memory=256), lab.add_client(memory=256)
    first.power_on()
    until(server, first, lambda shown: shown["ip"] == "10.77.0.50")
    second.power_on()
    left = "no address is left in 10.77.0.50-10.77.0.50; widen [dhcp] range"
    until(server, second, lambda shown: left in shown["why"])
    server.stop()


def test_a_port_that_does_not_forward_at_first(lab: Lab, tmp_path: Path) -> None:
    """iPXE takes the link down and up, and spanning tree begins again: a note says so."""
    server = LabServer(lab, make_state(tmp_path), '[class.x86]\nipxe = "own"\n')
    server.start()
    client = lab.add_client(memory=256)

    def has(kind: str) -> Callable[[dict[str, Any]], bool]:
        return lambda _: any(event["kind"] == kind for event in events_of(server, client))

    loading = drop(lab, client, "udp dport 69")
    client.power_on()
    until(server, client, has("ack"))
    asking = drop(lab, client, "udp dport 67 counter")
    # Now that what it will load cannot ask, it may load it: its firmware tries again.
    lab.switch.run(["nft", f"delete rule bridge filter forward handle {loading}"])
    until(server, client, has("tftp-done"))
    until(server, client, lambda _: dropped(lab))
    # It gives up after a quarter of a minute of its own time, which stands still meanwhile.
    client.monitor("stop")
    time.sleep(GAP + 0.5)
    lab.switch.run(["nft", f"delete rule bridge filter forward handle {asking}"])
    client.monitor("cont")
    shown = until(server, client, lambda shown: bool(shown["hints"]))
    assert "from loading iPXE to its first question" in shown["hints"][0]
    assert "portfast" in shown["hints"][0]
    until(server, client, has("aoe-found"))
    server.stop()


def test_a_kernel_that_finds_no_disk(lab: Lab, tmp_path: Path, lab_image: Path) -> None:
    """Kernel and initrd come by HTTP, and the switch has no use for Ethernet type 0x88A2."""
    state = tmp_path / "state"
    shutil.copytree(lab_image, state / "images" / "lab" / "1")
    server = LabServer(lab, state, '[class.x86]\nboot = "kernel"\n')
    # It waits for long, since a kernel may wait for its cable; here for a tenth of that.
    quick = "from pxed import why; why.NO_KERNEL = 7.5; from pxed.cli import main; main()"
    server.command[1:3] = ["-c", quick]
    server.start()
    client = lab.add_client()
    drop(lab, client, "ether type 0x88a2")
    client.power_on()
    loaded = "it loaded /image/lab@1/initrd and its kernel has not found its disks"
    shown = until(server, client, lambda shown: loaded in shown["why"])
    assert "0x88A2" in shown["why"]
    server.stop()
