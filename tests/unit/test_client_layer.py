"""What a seat's initramfs takes for a damaged layer, and for one that can go: run by busybox."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import requires

CLIENT = Path(__file__).parents[2] / "pxed/client"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A root directory with busybox, a shared root at /lower and the seat's at /seat."""
    requires("busybox")
    if os.geteuid() != 0:
        pytest.skip("needs root: chroot")
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tmp_path / "busybox")
    for name in ("functions.sh", "layers.sh", "local.sh"):
        shutil.copy(CLIENT / name, tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/null").touch()
    for top in ("lower", "seat"):
        for name in ("etc", "usr/sbin"):
            (tmp_path / top / name).mkdir(parents=True)
        (tmp_path / top / "etc/passwd").touch()
        (tmp_path / top / "sbin").symlink_to("usr/sbin")
    return tmp_path


def entered(world: Path) -> bool:
    words = ["chroot", str(world), "/busybox", "sh", "-euc", ". /layers.sh; entered /seat"]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    return run.returncode == 0


def test_a_directory_that_is_empty_in_the_image_is_no_damage(world: Path) -> None:
    assert entered(world)


def test_a_directory_that_has_lost_its_names_is(world: Path) -> None:
    (world / "lower/usr/sbin/init").touch()
    assert not entered(world)
    (world / "seat/usr/sbin/init").touch()
    assert entered(world)


def test_a_link_that_leads_nowhere_in_the_image_is_no_damage(world: Path) -> None:
    for top in ("lower", "seat"):
        (world / top / "sbin").unlink()
        (world / top / "sbin").symlink_to("run/programs")
    assert entered(world)


@pytest.fixture
def layers(world: Path) -> Path:
    """What is in /config/layers of a seat that starts lab@3."""
    for name in ("lab@1", "lab@2", "lab@3", "exam@1", "6f5902ac237024bdd0c176cb93063dc4"):
        (world / "config/layers" / name / "upper/home/student").mkdir(parents=True)
        (world / "config/layers" / name / "upper/home/student/file").touch()
    (world / "proc/self").mkdir(parents=True)
    (world / "proc/self/exe").symlink_to("/busybox")  # how its shell finds the other commands
    (world / "proc/uptime").write_text("12.34 5.00\n")
    (world / "dev/etherd").mkdir()
    return world / "config/layers"


def reclaim(world: Path, words: str) -> list[str]:
    """What it says after such words of the server."""
    lines = b"root 1.00 e16.1 lab@3\n".ljust(24 * 512, b"\0")
    (world / "dev/etherd/e16.4").write_bytes(lines + words.encode().ljust(4096, b"\0"))
    script = (
        ". /functions.sh; . /layers.sh; discover() { :; }; report_disk=e16.4 generation=lab@3;"
        'reclaim; echo "$others"; echo "$reclaimed"'
    )
    run = subprocess.run(
        ["chroot", str(world), "/busybox", "sh", "-euc", script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stderr == ""
    return [line.strip() for line in run.stdout.splitlines()]


ALL = "6f5902ac237024bdd0c176cb93063dc4 exam@1 lab@1 lab@2"


def test_layers_of_removed_versions_go(world: Path, layers: Path) -> None:
    others, gone = reclaim(world, "pxed-former 1\nlab@1\nexam@1\nexam@2\n")
    assert (others, gone) == ("6f5902ac237024bdd0c176cb93063dc4 lab@2", "exam@1 lab@1")
    assert sorted(os.listdir(layers)) == ["6f5902ac237024bdd0c176cb93063dc4", "lab@2", "lab@3"]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "pxed-orders 1\nlab@1\nlab@2\n",  # to an installer
        "pxed-former 1\nlab@3\n",  # the one that starts, whatever a server says
        "pxed-former 1\nlab@11\nab@1\nlab@\nlab\nl*\n*\n../layers\n.\n",
    ],
)
def test_all_others_stay(world: Path, layers: Path, words: str) -> None:
    assert reclaim(world, words) == [ALL, ""]
    assert len(os.listdir(layers)) == 5


def test_what_was_cut_off_is_ended(world: Path, layers: Path) -> None:
    """Also where the version has come back, and gone again."""
    (layers / "lab@1").rename(layers / ".gone-lab@1")
    (layers / "lab@1/upper").mkdir(parents=True)
    reclaim(world, "pxed-former 1\nlab@1\n")
    assert sorted(os.listdir(layers))[1:] == ["exam@1", "lab@2", "lab@3"]


def test_a_name_that_is_no_version_is_left_alone(world: Path, layers: Path) -> None:
    (layers / "my own; rm -rf $HOME").mkdir()
    assert reclaim(world, "pxed-former 1\nmy\nown;\n") == [ALL, ""]
    assert (layers / "my own; rm -rf $HOME").is_dir()


def test_an_installed_disk_keeps_what_belongs_to_its_two_systems(world: Path, layers: Path) -> None:
    for version in ("1", "2"):
        (layers / f"aside/lab@{version}/usr").mkdir(parents=True)
        (layers / f"aside/lab@{version}/usr/bin").write_text(version)
    (layers / "local/upper/usr").mkdir(parents=True)
    (layers / "local/upper/usr/bin").write_text("3")
    (layers / "local/generation").write_text("lab@3\n")
    script = ". /functions.sh; . /layers.sh; . /local.sh; generation=lab@2; own_layer; own_layer"
    words = ["chroot", str(world), "/busybox", "sh", "-uc", script]
    subprocess.run(words, check=True, capture_output=True)
    assert (layers / "local/upper/usr/bin").read_text() == "2"
    assert (layers / "aside/lab@3/usr/bin").read_text() == "3"
    assert sorted(os.listdir(layers / "aside")) == ["lab@2", "lab@3"]
    assert not [name for name in os.listdir(layers) if name.startswith(".gone")]


def test_a_layer_that_takes_long_to_delete_holds_up_no_start(tmp_path: Path) -> None:
    requires("busybox")
    (tmp_path / ".gone-lab@1").mkdir()
    layers = (CLIENT / "layers.sh").read_text().replace("/config/layers", str(tmp_path))
    (tmp_path / "layers").write_text(layers)
    both = f". {CLIENT}/functions.sh; . {tmp_path}/layers"
    script = f"{both}; rm() {{ sleep 60; }}; empty"
    begun = time.monotonic()
    subprocess.run(["busybox", "sh", "-euc", script], check=True, timeout=50)
    assert time.monotonic() - begun > 4
    assert (tmp_path / ".gone-lab@1").is_dir()
    subprocess.run(["busybox", "sh", "-euc", f"{both}; empty"], check=True)
    assert not (tmp_path / ".gone-lab@1").exists()


@pytest.mark.parametrize(
    ("inodes", "room"),
    [
        ("32768 900 31868", ", 200M of 480M free"),
        ("32768 32768 0", ", 200M of 480M free but 0 files more at most"),
        ("0 0 0", ", 200M of 480M free"),
    ],
)
def test_a_disk_without_room_for_more_files_says_so(world: Path, inodes: str, room: str) -> None:
    heads = "Filesystem Total Used Available Capacity Mounted on /dev/etherd/e16.3"
    df = f"case $2 in -i) echo {heads} {inodes};; *) echo {heads} 491520 0 204800;; esac"
    asked = f'. /layers.sh; df() {{ {df}; }}; room; echo "$room"'
    words = ["chroot", str(world), "/busybox", "sh", "-euc", asked]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == f"{room}\n"


@pytest.mark.parametrize(
    "said",
    [
        "mount: mounting /dev/etherd/e16.3 on /config failed: Input/output error",
        "dd: fsync failed for '/config/.written': Input/output error\n1+0 records in",
        "mount: /config: can't read superblock on /dev/etherd/e16.3.\n       dmesg(1) may have",
    ],
)
def test_a_write_that_failed_is_called_the_same_by_every_program(world: Path, said: str) -> None:
    script = f'. /layers.sh; fails() {{ printf "{said}" >&2; return 1; }}; attempt fails'
    words = ["chroot", str(world), "/busybox", "sh", "-uc", f'{script} || echo "$trouble"']
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert run.stdout == "Input/output error\n"
