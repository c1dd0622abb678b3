"""The Debian builder without a build: what it refuses, where packages come from, what it leaves."""

import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest

from pxed.client.debian import build_debian, sources
from pxed.client.debroot import BASE, FILES, Recipe, run_alone
from pxed.client.imagedir import workplace
from pxed.client.initramfs import busybox
from pxed.errors import HostError, UsageError
from tests.conftest import requires

CLIENT = Path(str(resources.files("pxed.client")))
SHELL_FILES = [
    *sorted(CLIENT.glob("*.sh")),
    *sorted(CLIENT.glob("dracut/*.sh")),
    *sorted(CLIENT.glob("installer/*.sh")),
    CLIENT / "initramfs-tools/hook",
    CLIENT / "initramfs-tools/boot-script",
]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"release": "book worm"}, "no name of a Debian release or package"),
        ({"packages": ["--evil"]}, "no name of a Debian release or package"),
        ({"kernel": ""}, "no name of a Debian release or package"),
        ({"user": "Root User"}, "no name of an account"),
        ({"password": "$y$j9T$abc$def"}, "--user"),
        ({"user": "me", "password": "secret"}, "mkpasswd"),
        ({"user": "me", "password": "$y$a\nroot:$y$b"}, "mkpasswd"),
        ({"locale": "de_DE; rm"}, "no locale"),
        ({"mirror": "ftp.debian.org"}, "no mirror"),
        ({"compression": "gzip"}, "zstd, lz4"),
        ({"initramfs": "mkinitcpio"}, "initramfs-tools, dracut"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    wrong: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        build_debian(tmp_path / "1", name="a", version="1", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_date_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requires("mmdebstrap")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH=yesterday"):
        build_debian(tmp_path / "1", name="a", version="1")


def test_a_stable_release_gets_its_fixes_and_a_mirror_is_taken_as_it_is() -> None:
    assert [line.split()[2] for line in sources("bookworm", None)] == [
        "bookworm",
        "bookworm-updates",
        "bookworm-security",
    ]
    assert len(sources("sid", None)) == 1
    assert sources("bookworm", "http://m/debian") == (
        "deb http://m/debian bookworm main non-free-firmware",
    )


def test_packages_are_the_same_for_a_day() -> None:
    morning, evening, tomorrow = (
        Recipe("bookworm", ("vim",), sources("bookworm", None), epoch)
        for epoch in (86400 * 20000, 86400 * 20001 - 1, 86400 * 20001)
    )
    assert morning.digest() == evening.digest() != tomorrow.digest()
    other = Recipe("bookworm", ("emacs",), sources("bookworm", None), 86400 * 20000)
    assert other.digest() != morning.digest()


def test_every_file_of_ours_is_in_the_package() -> None:
    assert "initramfs-tools" in BASE
    for name, place, _ in FILES:
        assert (CLIENT / name).is_file()
        assert not place.startswith("/")


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda p: p.name)
def test_every_shell_understands_the_scripts(path: Path) -> None:
    for shell in (["sh"], [str(busybox()), "sh"]):
        done = subprocess.run([*shell, "-n", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_killed_build_leaves_no_process_and_no_mount_and_the_next_takes_its_directory(
    tmp_path: Path,
) -> None:
    requires("unshare", "setpriv")
    program = f"""
import pathlib
from pxed.client.debroot import run_alone
from pxed.client.imagedir import workplace
with workplace(pathlib.Path({str(tmp_path)!r})) as work:
    (work / "m").mkdir()
    run_alone(["sh", "-c", f"mount -t tmpfs t {{work}}/m && echo $$ > {{work}}/m/up &&"
               f"touch {{work}}/up && exec sleep {os.getpid()}7777"], work / "log", timeout=600)
"""
    child = subprocess.Popen([sys.executable, "-c", program])
    until = time.monotonic() + 120
    while not list(tmp_path.glob(".new-*/up")):
        assert time.monotonic() < until
        time.sleep(0.05)
    (left,) = tmp_path.glob(".new-*")
    with workplace(tmp_path):
        assert left.is_dir()  # somebody works there
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert str(left) not in Path("/proc/self/mounts").read_text()
    until = time.monotonic() + 60
    while any(f"{os.getpid()}7777".encode() in line for line in command_lines()):
        assert time.monotonic() < until
        time.sleep(0.05)
    with workplace(tmp_path):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def command_lines() -> list[bytes]:
    lines = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                lines.append(Path(f"/proc/{name}/cmdline").read_bytes())
            except OSError:
                continue
    return [line for line in lines if line.startswith(b"sleep")]


def test_a_program_that_fails_is_quoted_and_its_log_named(tmp_path: Path) -> None:
    requires("unshare", "setpriv")
    log = tmp_path / "log"
    with pytest.raises(HostError, match=rf"sh failed \(no such thing\): see {log}"):
        run_alone(["sh", "-c", "echo first; echo no such thing >&2; exit 3"], log, timeout=120)
    assert log.read_text() == "first\nno such thing\n"
    with pytest.raises(HostError, match="nowhere is missing"):
        run_alone(["nowhere"], log, timeout=120)


UDEV = """#!/bin/sh -e
systemd-udevd --daemon
udevadm trigger --type=subsystems --action=add
udevadm trigger --type=devices --action=add
udevadm settle || true
"""


@pytest.mark.parametrize("disks", ["", "1"])
def test_the_initramfs_asks_for_few_events(tmp_path: Path, disks: str) -> None:
    """That part of the hook alone, on what Debian's udev package brings; not where disks matter."""
    script = tmp_path / "scripts/init-top/udev"
    script.parent.mkdir(parents=True)
    script.write_text(UDEV)
    hook = (CLIENT / "initramfs-tools/hook").read_text()
    part = hook[hook.index("\nudev=") : hook.index("\nfi\n") + 4]
    subprocess.run(
        ["sh", "-ec", part],
        env={"DESTDIR": str(tmp_path), "PXED_DISKS": disks, "PATH": os.environ["PATH"]},
        check=True,
    )
    if disks:
        assert script.read_text() == UDEV
        return
    first, second, third, fourth, last = script.read_text().splitlines()
    assert (first, second, last) == (
        "#!/bin/sh -e",
        "systemd-udevd --daemon",
        "udevadm settle || true",
    )
    assert "--subsystem-nomatch=acpi" in third
    assert "--subsystem-nomatch=net" not in third
    assert "--sysname-match=VMB*" in fourth
    assert "nomatch" not in fourth
