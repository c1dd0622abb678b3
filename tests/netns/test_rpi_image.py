"""An image that `pxed image build raspios-like` made, loaded by Pis in the order of their ROMs.

Every file is compared with the image's, and what is not in it must be a plain "not found".
"""

import json
import shutil
import time
from pathlib import Path

import pytest

from pxed.client.kernel import fetch_kernel
from pxed.client.raspios import build_raspios
from tests import piroot
from tests.conftest import Cable, from_mirror, requires
from tests.netns.conftest import Serve
from tests.netns.test_mode import running
from tests.netns.test_rpi import (
    DISCOVER_3,
    DISCOVER_4,
    FILES_3,
    FILES_4,
    MAC_3,
    MAC_4,
    RPI,
    SERIAL_3,
    SERIAL_4,
    discover,
    fetch,
)

pytestmark = pytest.mark.netns

RELEASE = "6.6.31+rpt-rpi-v8"
PROGRAMS = ("mksquashfs", "mcopy", "mkfs.fat", "sfdisk", "readelf", "xz", "depmod", "mkfs.ext4")
MISSING_3 = {"bootsig.bin", "autoboot.txt", "recovery.elf", "dt-blob.bin", "bootcfg.txt",
             "recovery8.img", "recovery7.img", "armstub8-32.bin"}  # fmt: skip
MISSING_4 = {"vl805.sig", "pieeprom.sig", "pieeprom.upd", "recover4.elf", "recovery.elf",
             "dt-blob.bin", "bootcfg.txt", "recovery8.img", "armstub8-gic.bin"}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires(*PROGRAMS)
    with from_mirror():
        kernel = fetch_kernel()
    work = tmp_path_factory.mktemp("pi")
    piroot.put_boot(work / "root/boot", piroot.kernel_image(RELEASE))
    piroot.put_modules(work / "root", kernel, RELEASE)
    piroot.put_system(work / "root", {"bin/busybox": piroot.program()})
    build_raspios(work / "1", work / "root", name="pi", version="1")
    return work / "1"


@pytest.fixture
def serve(cable: Cable, built: Path, tmp_path: Path) -> Serve:
    state = tmp_path / "state"
    shutil.copytree(built, state / "images/pi/1")
    return Serve(cable, state)


@pytest.mark.parametrize(
    ("packet", "mac", "prefix", "files", "missing", "blksize"),
    [
        (DISCOVER_3, MAC_3, SERIAL_3, FILES_3, MISSING_3, 512),
        (DISCOVER_3, MAC_3, SERIAL_3, FILES_3, MISSING_3, 1024),
        (DISCOVER_4, MAC_4, SERIAL_4, FILES_4, MISSING_4, 1468),
        (DISCOVER_4, MAC_4, MAC_4.replace(":", "-"), FILES_4, MISSING_4, 1468),
        (DISCOVER_4, MAC_4, "room-7", FILES_4, MISSING_4, 1024),
    ],
    ids=["3B+, 512", "3B+, 1024", "4B", "4B by MAC", "4B by text"],
)
def test_every_file_that_its_loader_asks_for(
    serve: Serve,
    packet: str,
    mac: str,
    prefix: str,
    files: list[str],
    missing: set[str],
    blksize: int,
) -> None:
    host = serve.cable.cli
    host.ip("link set eth0 down", f"link set eth0 address {mac}", "link set eth0 up")
    serve.cable.settle()
    tree = serve.state / "images/pi/1/firmware"
    with running(serve, RPI) as control:
        begun = time.monotonic()
        offer = discover(host, packet)
        # A 3B+'s ROM can lock up on an answer that comes sooner.
        assert mac != MAC_3 or time.monotonic() - begun >= 2.0
        host.ip(f"addr add {offer.yiaddr}/24 dev eth0")
        got = {}
        for name in files:
            bare = name.removeprefix("S/")
            got[bare] = fetch(host, name.replace("S/", f"{prefix}/"), blksize)
            wanted = None if bare in missing else (tree / bare).read_bytes()
            assert got[bare] == wanted, name
        shown = control.get(f"/v1/clients/{mac}")
    assert {name for name, data in got.items() if data is None} == missing
    assert (shown["class"], shown["image"]) == ("rpi", "pi@1")
    words = (got["cmdline.txt"] or b"").decode().split()
    assert "pxed.shelf=17" in words
    assert not [word for word in words if word.startswith("root=")]
    assert b"\ninitramfs initramfs followkernel\n" in (got["config.txt"] or b"")


def test_the_doctor_looks_at_the_tree(serve: Serve) -> None:
    tree = serve.state / "images/pi/1/firmware"

    def findings() -> list[tuple[str, str]]:
        command = [*serve.command(RPI)[:3], "doctor", "-c", str(serve.config), "--json"]
        done = serve.cable.srv.run(command, check=False, timeout=120)
        found = json.loads(done.stdout)
        return [(f["grade"], f["text"]) for f in found if f["about"] == "Raspberry Pi"]

    assert findings() == [("ok", "pi@1 has what a 3B+ and a 4B asks for")]
    (tree / "start4.elf").unlink()
    assert findings() == [
        ("warn", "pi@1: 4B: start4.elf is missing"),
        ("ok", "pi@1 has what a 3B+ asks for"),
    ]
    (tree / "cmdline.txt").write_text("root=/dev/mmcblk0p2 rootwait\n")
    assert ("BROKEN", "pi@1: cmdline.txt names no root over AoE") in findings()
