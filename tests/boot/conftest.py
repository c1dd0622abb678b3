"""One lab image for all boot tests, and labs with our server in them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxed.client.ipxe import fetch_ipxe
from pxed.client.minimal import build_minimal
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware
from pxed.lab.server import LabServer
from tests.conftest import from_mirror, requires

PROGRAMS = ("ip", "qemu-system-x86_64", "mksquashfs", "mcopy", "syslinux", "mkfs.ext4")


@pytest.fixture(scope="session")
def lab_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image directory, built once; tests copy it into their state directory."""
    requires(*PROGRAMS)
    directory = tmp_path_factory.mktemp("image") / "1"
    build_minimal(directory, name="lab", version="1")
    return directory


@pytest.fixture(scope="session")
def debian_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian with an initramfs of initramfs-tools, diskless and installable; for tests to read."""
    from tests.boot.debian import build  # which needs this module

    return build(tmp_path_factory.mktemp("debian") / "1")


@pytest.fixture(scope="session")
def debian_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next version of ``debian_image``, of the same packages."""
    from tests.boot.debian import build

    return build(tmp_path_factory.mktemp("debian-next") / "2", "2")


@pytest.fixture(scope="session")
def dracut_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with dracut."""
    from tests.boot.debian import build

    return build(tmp_path_factory.mktemp("dracut") / "1", initramfs="dracut")


@pytest.fixture(scope="session")
def newer_ipxe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pxed ipxe fetch` brings, fetched once; tests copy it into their state directory."""
    requires("apt-get", "dpkg-deb")
    directory = tmp_path_factory.mktemp("newer") / "ipxe"
    with from_mirror():
        fetch_ipxe(directory)
    return directory


class Room:
    """A lab with our server, its state directory and its clients."""

    def __init__(
        self, lab: Lab, image: Path, more: str = "", version: str = "1", ipxe: Path | None = None
    ) -> None:
        self.lab = lab
        self.state = lab.directory / "state"
        if ipxe is not None:
            shutil.copytree(ipxe, self.state / "ipxe")
        shutil.copytree(image, self.state / "images" / "lab" / version)
        self.server = LabServer(lab, self.state, more)
        self.server.start()

    def add(self, image: Path) -> None:
        """One more version of the image, in the directory that is called after it."""
        shutil.copytree(image, self.state / "images" / "lab" / image.name, dirs_exist_ok=True)

    def seat(self, firmware: Firmware = "bios") -> Client:
        """A client that was powered on and has come to its shell, and the server knows."""
        client = self.lab.add_client(firmware=firmware)
        client.power_on()
        self.server.wait_running(client, 200)
        return client

    def stages(self, client: Client) -> list[str]:
        """The stages of the client's current boot as the server saw them."""
        return self.server.stages(client.mac)


RoomMaker = Callable[..., Room]


@pytest.fixture(scope="module")
def make_room(lab_image: Path) -> Iterator[RoomMaker]:
    """Makes labs with a server; they end with the module's tests, or when the next one is made."""
    labs: list[Lab] = []

    def make(
        more: str = "", image: Path = lab_image, version: str = "1", ipxe: Path | None = None
    ) -> Room:
        while labs:
            labs.pop().close()
        labs.append(Lab())
        return Room(labs[0], image, more, version, ipxe)

    yield make
    for lab in labs:
        lab.close()
