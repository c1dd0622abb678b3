"""A Raspberry Pi's names: prefixes of every kind, files of its own, and who is no Pi."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.mac import Mac
from pxed.net.neighbours import parse
from pxed.tftp.codec import TftpError
from pxed.tftp.files import Files
from pxed.tftp.trees import Trees

PI, PC = Mac("dc:a6:32:01:02:03"), Mac("52:54:00:00:00:01")


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    root, tree = tmp_path / "root", tmp_path / "tree"
    (tree / "overlays").mkdir(parents=True)
    (tree / "12345678").mkdir()
    root.mkdir()
    (root / "undionly.kpxe").write_bytes(b"ipxe")
    for name in ("bootcode.bin", "start4.elf", "config.txt", "overlays/a.dtbo"):
        (tree / name).write_bytes(name.encode())
    (tree / "12345678/config.txt").write_bytes(b"its own")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "image").mkdir()
    (tmp_path / "image/pxed.efi").write_bytes(b"kernel and all")
    made = Trees(
        Files(root),
        {"10.0.0.1": PI, "10.0.0.2": PC}.get,
        lambda mac: tree if mac == PI else None,
        lambda: tree,
        program_of={"pi@1": tmp_path / "image/pxed.efi"}.get,
        kernel_of={"image/lab@1/vmlinuz": tmp_path / "image/pxed.efi"}.get,
        grub=lambda mac: f"for {mac}".encode() if mac != PI else None,
    )
    made.learn("deadbeef", PI)
    made.learn("0badcafe", PC)
    yield made
    made.close()
    made.close()


def read(trees: Trees, name: str, client: str) -> bytes:
    file = trees.open(name, client)
    try:
        return file.read(0, 100)
    finally:
        file.close()


@pytest.mark.parametrize(
    ("name", "client", "body"),
    [
        ("bootcode.bin", "10.0.0.1", b"bootcode.bin"),
        ("deadbeef/start4.elf", "10.0.0.1", b"start4.elf"),
        ("deadbeef/start4.elf", "10.9.9.9", b"start4.elf"),
        ("99999999/start4.elf", "10.9.9.9", b"start4.elf"),
        ("dc-a6-32-01-02-03/start4.elf", "10.9.9.9", b"start4.elf"),
        ("room7/start4.elf", "10.0.0.1", b"start4.elf"),
        ("overlays/a.dtbo", "10.0.0.1", b"overlays/a.dtbo"),
        ("deadbeef/overlays/a.dtbo", "10.0.0.1", b"overlays/a.dtbo"),
        ("12345678/config.txt", "10.0.0.1", b"its own"),
        ("undionly.kpxe", "10.0.0.2", b"ipxe"),
        ("undionly.kpxe", "10.9.9.9", b"ipxe"),
        ("pi@1.efi", "10.0.0.2", b"kernel and all"),
        ("/pi@1.efi", "10.9.9.9", b"kernel and all"),
    ],
)
def test_what_is_found(trees: Trees, name: str, client: str, body: bytes) -> None:
    assert read(trees, name, client) == body


@pytest.mark.parametrize(
    ("name", "client"),
    [
        ("start4.elf", "10.0.0.2"),
        ("pi@1.efi", "10.0.0.1"),
        ("pi@2.efi", "10.0.0.2"),
        ("pi.efi", "10.0.0.2"),
        ("x/pi@1.efi", "10.0.0.2"),
        ("../pi@1.efi", "10.0.0.2"),
        ("start4.elf", "10.9.9.9"),
        ("0badcafe/start4.elf", "10.9.9.9"),
        ("undionly.kpxe", "10.0.0.1"),
        ("deadbeef/nothing", "10.0.0.1"),
        ("deadbeef/../../secret", "10.0.0.1"),
        ("../secret", "10.0.0.1"),
        ("deadbeef", "10.0.0.1"),
        ("overlays", "10.0.0.1"),
        ("52-54-00-00-00-01/start4.elf", "10.9.9.9"),
    ],
)
def test_what_is_not(trees: Trees, name: str, client: str) -> None:
    with pytest.raises(TftpError):
        trees.open(name, client)


ARP = """\
IP address       HW type     Flags       HW address            Mask     Device
10.77.0.50       0x1         0x2         dc:a6:32:01:02:03     *        eth0
10.77.0.51       0x1         0x0         00:00:00:00:00:00     *        eth0
10.77.0.52       0x1         0x2         52:54:00:00:00:01     *        eth1
rubbish
"""


def test_the_neighbour_table() -> None:
    assert parse(ARP, "eth0") == {"10.77.0.50": PI}


def test_grub_gets_a_configuration_for_its_machine(trees: Trees) -> None:
    assert read(trees, "/grub/x86_64-efi/grub.cfg", "10.0.0.2") == b"for 52:54:00:00:00:01"
    assert read(trees, "grub/grub.cfg", "10.0.0.9") == b"for None"
    with pytest.raises(TftpError):
        trees.open("grub/grub.cfg", "10.0.0.1")


def test_grub_gets_what_its_configuration_names(trees: Trees) -> None:
    assert read(trees, "/image/lab@1/vmlinuz", "10.0.0.2") == b"kernel and all"
    for name in ("image/lab@1/other", "image/lab@2/vmlinuz", "image/lab@1/../secret"):
        with pytest.raises(TftpError):
            trees.open(name, "10.0.0.2")
