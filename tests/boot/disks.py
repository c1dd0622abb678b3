"""Disks that vblade serves to a seat which is started without our server, and what ails them."""

import subprocess
from pathlib import Path

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.conftest import requires
from tests.netns.site import vblade

# What the kernel says of a disk without a file system would come into the middle of a line.
WORDS = "console=ttyS0 quiet loglevel=3 nowatchdog cryptomgr.notests pxed.shelf=16"


class Disks:
    """Files that vblade serves in a lab: which slot has what; ``path[slot]`` is the file."""

    def __init__(self, lab: Lab, image: Path) -> None:
        requires("vblade", "mkfs.ext4")
        self._lab = lab
        self._image = image
        self.path: dict[int, Path] = {}

    def serve(self, slot: int, path: Path, *options: str) -> None:
        self.path[slot] = path
        vblade(self._lab.server, 16, slot, path, *options)

    def root(self) -> None:
        self.serve(1, self._image / "root.squashfs")

    def blank(self, slot: int, size: int) -> Path:
        path = self._lab.directory / f"disk{slot}"
        with path.open("wb") as out:
            out.truncate(size)
        return path

    def config(self) -> None:
        path = self.blank(3, 16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)
        self.serve(3, path)

    def used_config(self, *others: str) -> Path:
        """A file system with this image's layer, in which there is /root/mine; not served yet.

        ``others``: images of which there are layers too.
        """
        path = self.blank(3, 16 << 20)
        folder = self._lab.directory / "used"
        (folder / "layers/lab@1/upper/root").mkdir(parents=True)
        (folder / "layers/lab@1/work/work").mkdir(parents=True)
        (folder / "layers/lab@1/upper/root/mine").write_text("mine\n")
        for name in others:
            (folder / f"layers/{name}/upper/home").mkdir(parents=True)
            (folder / f"layers/{name}/work/work").mkdir(parents=True)
        make = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-N", "64", "-d", str(folder)]
        subprocess.run([*make, str(path)], check=True)
        return path

    def report(self, words: bytes = b"") -> None:
        """``words`` of the server to this seat follow the lines."""
        path = self.blank(4, 16384)
        path.write_bytes((bytes(24 * 512) + words).ljust(16384, b"\0"))
        self.serve(4, path)

    def lines(self) -> list[str]:
        """The steps on the report device, without their times."""
        raw = self.path[4].read_bytes()[: 24 * 512]
        sectors = [raw[at : at + 512].rstrip(b"\0\n").decode() for at in range(0, len(raw), 512)]
        assert all(len(line.split()) >= 2 for line in sectors if line)
        return [" ".join([line.split()[0], *line.split()[2:]]) for line in sectors if line]


def is_in_memory(client: Client, disks: Disks) -> str:
    """Why the seat that has just come up is degraded: the same everywhere, and its root is not."""
    (why,) = client.shell("cat /run/pxed/degraded").splitlines()
    assert f"degraded changes will be lost, {why}" in disks.lines()
    assert f"DEGRADED, changes will be lost: {why}" in client.console()
    client.shell("echo new > /root/new")
    assert "upperdir=/run/pxed/ram/upper" in client.shell("grep '^root / overlay rw' /proc/mounts")
    return why


def fill(config: Path, folder: str) -> None:
    """Use up the inodes of ``config`` with empty files in that folder."""
    shown = subprocess.run(["dumpe2fs", "-h", config], capture_output=True, text=True, check=True)
    (free,) = (line for line in shown.stdout.splitlines() if line.startswith("Free inodes:"))
    words = "".join(f"write /dev/null more{n}\n" for n in range(int(free.split()[-1])))
    subprocess.run(
        ["debugfs", "-w", config], input=f"cd {folder}\n{words}", text=True, check=True,
        capture_output=True,
    )  # fmt: skip


def fill_blocks(config: Path) -> None:
    """Use up the blocks of ``config`` with one file."""
    shown = subprocess.run(["dumpe2fs", "-h", config], capture_output=True, text=True, check=True)
    (free,) = (line for line in shown.stdout.splitlines() if line.startswith("Free blocks:"))
    large = config.with_name("large")
    large.write_bytes(b"\xa5" * 4096 * (int(free.split()[-1]) - 1))  # one may be its extents'
    wrote = ["debugfs", "-w", "-R", f"write {large} large", str(config)]
    subprocess.run(wrote, check=True, capture_output=True)


def damage(config: Path) -> None:
    """Overwrite the first directory of the layer."""
    where = ["debugfs", "-R", "bmap layers/lab@1/upper 0", str(config)]
    block = int(subprocess.run(where, check=True, capture_output=True, text=True).stdout)
    with config.open("r+b") as disk:
        disk.seek(block * 4096)
        disk.write(b"\xa5" * 4096)
