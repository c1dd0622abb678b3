"""The Debian builder without a build: what it refuses, where packages come from, what it leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import resources
from pathlib import Path

import pytest

from pxed.client.debian import build_debian, sources
from pxed.client.debroot import BASE, FILES, Recipe, cause_in, finish, packages_in, run_alone
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
        ({"keyboard": "de; rm"}, "no keyboard: write it like de or de:nodeadkeys"),
        ({"keyboard": "de:"}, "no keyboard"),
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


STATUS = """Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13.dfsg-1
Description: compression library
 Package: of a description

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: adduser
Status: install ok installed
Architecture: all
Version: 3.134
"""


def test_what_is_installed_is_listed_in_one_order(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    assert packages_in(tmp_path) == "adduser 3.134 all\nzlib1g 1:1.2.13.dfsg-1 amd64\n"


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


def test_the_first_cause_is_quoted_where_a_program_names_one(tmp_path: Path) -> None:
    requires("unshare", "setpriv")
    log = tmp_path / "log"
    said = "echo I: on; echo E: Unable to locate package vimm; echo E: mmdebstrap failed to run"
    with pytest.raises(HostError, match=r"fetching failed \(bookworm has no package vimm\): see"):
        run_alone(
            ["sh", "-c", f"{said}; exit 25"], log, timeout=120, what="fetching",
            cause=partial(cause_in, "bookworm"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("E: Unable to locate package vimm", "trixie has no package vimm"),
        ("E: Package 'vimm' has no installation candidate", "trixie has no package vimm"),
        (
            "E: The repository 'http://m/debian trixie Release' does not have a Release file.",
            "http://m/debian has no release trixie",
        ),
        (
            "E: Failed to fetch http://m/InRelease  Temporary failure resolving 'm'",
            "http://m/InRelease: Temporary failure resolving 'm'",
        ),
        (
            "dpkg: error processing package vim (--configure):",
            "package vim cannot be installed",
        ),
        ("tar: ./usr: Cannot write: No space left on device", "No space left on device"),
        ("E: Unable to correct problems, you have held broken packages.",
         "Unable to correct problems, you have held broken packages."),
        # What only says that something before it failed, and what is no failure.
        ("E: mmdebstrap failed to run", ""),
        ("E: setup failed: E: apt-get -o Dir::Bin::dpkg=env --yes install vimm failed", ""),
        ("I: running apt-get update...", ""),
        ("W: Download is performed unsandboxed as root", ""),
        ("Err:1 http://m/debian trixie InRelease", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_why_packages_could_not_be_had(line: str, words: str) -> None:
    assert cause_in("trixie", line) == words


def small_root(place: Path) -> Path:
    """A root with just what finish.sh calls first, all of it busybox; one locale is known."""
    for name in ("bin", "usr/sbin", "usr/share/i18n", "dev", "proc", "sys", "run", "tmp", "etc"):
        (place / name).mkdir(parents=True)
    (place / "etc/default").mkdir()
    shutil.copyfile(busybox(), place / "bin/busybox")
    (place / "bin/busybox").chmod(0o755)
    for name in ("sh", "mkdir", "grep", "chmod", "sed"):
        (place / "bin" / name).symlink_to("busybox")
    for name in ("systemctl", "locale-gen", "setupcon"):
        (place / "bin" / name).write_text("#!/bin/sh\n")
        (place / "bin" / name).chmod(0o755)
    (place / "usr/share/i18n/SUPPORTED").write_text("de_DE.UTF-8 UTF-8\nde_DE ISO-8859-1\n")
    rules = place / "usr/share/X11/xkb/rules"
    rules.mkdir(parents=True)
    (rules / "base.lst").write_text(
        "! model\n  pc105    Generic\n\n! layout\n  de       German\n  ch       Swiss\n\n"
        "! variant\n  nodeadkeys  de: German (no dead keys)\n  fr       ch: French\n\n"
        "! option\n  grp      Switching\n"
    )
    return place


@pytest.mark.parametrize(
    ("locale", "generated"),
    [("de_DE.UTF-8", "de_DE.UTF-8 UTF-8\n"), ("de_DE", "de_DE ISO-8859-1\n"), ("C.UTF-8", None)],
)
def test_a_script_that_fails_is_called_the_operators(
    tmp_path: Path, locale: str, generated: str | None
) -> None:
    requires("unshare", "setpriv")
    root = small_root(tmp_path / "root")
    with pytest.raises(HostError, match=r"the operator's script failed \(no such printer\): see"):
        finish(
            root, tmp_path / "log", image="lab@1", initramfs="dracut", account="", locale=locale,
            own=b"#!/bin/sh\necho no such printer\nexit 3\n", epoch=0,
        )  # fmt: skip
    said = root / "etc/locale.gen"
    assert (said.read_text() if said.exists() else None) == generated
    assert (root / "etc/default/locale").read_text() == f"LANG={locale}\n"


@pytest.mark.parametrize("locale", ["xx_YY.UTF-8", "de_DE.ISO-8859-1", "E.UTF-8"])
def test_a_locale_that_debian_does_not_have_is_refused(tmp_path: Path, locale: str) -> None:
    requires("unshare", "setpriv")
    with pytest.raises(HostError, match=rf"making the locale failed \(Debian has no {locale}: "):
        finish(
            small_root(tmp_path / "root"), tmp_path / "log", image="lab@1", initramfs="dracut",
            account="", locale=locale, own=b"", epoch=0,
        )  # fmt: skip


def finish_with_keyboard(root: Path, log: Path, keyboard: str) -> None:
    finish(
        root, log, image="lab@1", initramfs="dracut", account="", locale="C.UTF-8",
        keyboard=keyboard, own=b"#!/bin/sh\necho so far\nexit 3\n", epoch=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keyboard", "layout", "variant"),
    [("de", "de", ""), ("de:nodeadkeys", "de", "nodeadkeys"), ("ch:fr", "ch", "fr")],
)
def test_the_keyboard_is_told_to_the_console_and_to_x(
    tmp_path: Path, keyboard: str, layout: str, variant: str
) -> None:
    requires("unshare", "setpriv")
    root = small_root(tmp_path / "root")
    with pytest.raises(HostError, match=r"the operator's script failed \(so far\)"):
        finish_with_keyboard(root, tmp_path / "log", keyboard)
    said = (root / "etc/default/keyboard").read_text()
    assert f'XKBLAYOUT="{layout}"\nXKBVARIANT="{variant}"\n' in said


def test_without_a_keyboard_nothing_is_said_of_one(tmp_path: Path) -> None:
    requires("unshare", "setpriv")
    root = small_root(tmp_path / "root")
    with pytest.raises(HostError, match="so far"):
        finish_with_keyboard(root, tmp_path / "log", "")
    assert not (root / "etc/default/keyboard").exists()


@pytest.mark.parametrize(
    ("keyboard", "why"),
    [
        ("xx", "there is no keyboard layout xx: "),
        ("pc", "there is no keyboard layout pc: "),
        ("nodeadkeys", "there is no keyboard layout nodeadkeys: "),
        ("grp", "there is no keyboard layout grp: "),
        ("de:dvorak", "layout de has no variant dvorak: "),
        ("de:fr", "layout de has no variant fr: "),
    ],
)
def test_a_keyboard_that_is_not_known_is_refused(tmp_path: Path, keyboard: str, why: str) -> None:
    requires("unshare", "setpriv")
    root = small_root(tmp_path / "root")
    with pytest.raises(HostError, match=rf"setting the keyboard failed \({why}"):
        finish_with_keyboard(root, tmp_path / "log", keyboard)
    assert not (root / "etc/default/keyboard").exists()
