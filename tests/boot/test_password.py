"""An account with a password in a Debian image: it logs in, and nothing tells of it. Long."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.client.kernel import cache_dir
from pxed.lab.lab import Lab
from tests.boot.conftest import PROGRAMS, Room
from tests.boot.debian import KERNEL, LOGIN_LIMIT, PACKAGES
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.ci, pytest.mark.timeout(900)]

WORDS = "learn it"
# What the operator's own program sees of it.
SCRIPT = "#!/bin/sh\nenv; cat /proc/[0-9]*/cmdline | tr '\\0' ' '\n"


# Before a command: every command line that it or a child of its has goes whole into a file. Who
# looks at /proc now and then misses what is over in milliseconds, as chpasswd is.
WATCHED = (
    "strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=execve", "-e", "signal=none",
    "-s", "65536", "-o",
)  # fmt: skip


@pytest.fixture(scope="module")
def hashed() -> str:
    requires(*PROGRAMS, "openssl", "mmdebstrap", "unshare", "unsquashfs", "strace")
    argv = ["openssl", "passwd", "-6", "-salt", "saltsalt", WORDS]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def state(hashed: str, debian_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with the image; ``said`` and ``seen`` are what its making showed."""
    assert debian_image.is_dir()  # so its packages are in the cache
    place = tmp_path_factory.mktemp("password")
    (place / "hash").write_text(f"{hashed}\n")
    (place / "hash").chmod(0o600)
    (place / "script").write_text(SCRIPT)
    packages = [word for name in PACKAGES for word in ("--package", name)]
    argv = [
        *WATCHED, str(place / "seen"), "--",
        sys.executable, "-m", "pxed", "image", "build", "debian", "--name", "lab",
        "--version", "1", "--kernel", KERNEL, *packages, "--user", "student",
        "--password-file", str(place / "hash"), "--script", str(place / "script"),
        "--compression", "lz4", "--no-maintenance", "--state-dir", str(place / "state"),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (place / "said").write_text(done.stdout + done.stderr)
    return place


def told(state: Path) -> Iterator[Path]:
    """All that anybody can read of it but the root itself, which only its owner may."""
    image = state / "state/images/lab/1"
    yield from (path for path in image.iterdir() if path.name != "root.squashfs")
    yield from (state / "said", state / "seen")
    yield cache_dir() / "debian/lab@1.log"


def test_no_log_no_manifest_and_no_command_line_has_it(state: Path, hashed: str) -> None:
    for path in told(state):
        data = path.read_bytes()
        assert hashed.encode() not in data, path
        assert hashed.encode()[-20:] not in data, path
        assert WORDS.encode() not in data, path
    assert b'/chpasswd", [' in (state / "seen").read_bytes()  # so it was looked at
    assert b"ACCOUNT=student" in (state / "state/images/lab/1/build.log").read_bytes()


def test_the_root_is_for_the_server_alone(state: Path, hashed: str) -> None:
    root = state / "state/images/lab/1/root.squashfs"
    assert root.stat().st_mode & 0o007 == 0
    argv = ["unsquashfs", "-cat", str(root), "etc/shadow"]
    shadow = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in shadow.splitlines() if line.startswith("student:")]
    assert line.split(":")[1] == hashed
    listed = subprocess.run(
        ["unsquashfs", "-lln", str(root), "etc/shadow"], check=True, capture_output=True, text=True
    ).stdout
    assert "-rw-r-----" in listed


def test_it_is_the_password_of_a_seat(state: Path) -> None:
    with Lab() as lab:
        room = Room(lab, state / "state/images/lab/1")
        seat = room.lab.add_client(memory=1024)
        seat.power_on()
        seat.wait_for("login: ", LOGIN_LIMIT)
        seat.send("student\n")
        seat.wait_for("Password: ", 200)
        seat.send("guess\n")
        seat.wait_for(r"Login incorrect[\s\S]*login: ", 200)
        seat.send("student\n")
        seat.wait_for(r"Login incorrect[\s\S]*Password: ", 200)
        seat.send(f"{WORDS}\n")
        seat.wait_for(r"student@[^\n]*\$ ", 200)
        assert "student" in seat.shell("id -un", 200)
