"""The installer's rule and its state, in the very shell that runs them: busybox."""

import random
import subprocess
from pathlib import Path

import pytest

from pxed.client.bootloader import archive, empty_state
from pxed.client.initramfs import busybox
from tests.conftest import requires

INSTALLER = Path(__file__).parents[2] / "pxed/client/installer"


def shell(script: str, stdin: str = "", files: tuple[str, ...] = ("rule", "state")) -> str:
    requires("busybox", root=False)
    read = "".join(f". {INSTALLER}/{name}.sh\n" for name in files)
    done = subprocess.run(
        [str(busybox()), "sh", "-c", read + script],
        input=stdin, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def later(pairs: list[tuple[str, str]]) -> list[bool]:
    said = shell(
        "while read -r a b; do later $a $b && echo 1 || echo 0; done",
        "".join(f"{a} {b}\n" for a, b in pairs),
    )
    return [word == "1" for word in said.split()]


ORDER = [
    "1.0~rc1", "1.0", "1.0a", "1.0+fix", "1.0-2", "1.0.1", "1.1", "1.2", "1.10", "1.10.9", "2",
    "10", "2026.9", "2026.09.1", "2026.11", "2026.11.25", "99999999999999999998",
    "99999999999999999999",
]  # fmt: skip


def test_versions_are_ordered_as_people_expect() -> None:
    pairs = [(a, b) for a in ORDER for b in ORDER]
    expected = [ORDER.index(a) > ORDER.index(b) for a, b in pairs]
    wrong = [pair for pair, x, y in zip(pairs, later(pairs), expected, strict=True) if x != y]
    assert wrong == []


def test_leading_zeros_do_not_count() -> None:
    assert later([("1.01", "1.1"), ("1.1", "1.01"), ("01.0", "1.0")]) == [False] * 3


def test_the_order_is_dpkgs() -> None:
    requires("dpkg", root=False)
    chance = random.Random(26)
    letters = "0019ab~+.Z"
    pairs = [
        tuple("1" + "".join(chance.choices(letters, k=chance.randint(0, 6))) for _ in "ab")
        for _ in range(120)
    ]
    expected = [
        subprocess.run(["dpkg", "--compare-versions", a, "gt", b]).returncode == 0 for a, b in pairs
    ]
    assert later([(a, b) for a, b in pairs]) == expected


@pytest.mark.parametrize(
    ("released", "until", "good"),
    [
        ("2026-11-25", "", True),
        ("", "", True),
        ("2026-11-25", "2026-11-25", True),
        ("2026-11-25", "2026-11-24", False),
        ("2026-11-25", "2027-01-01", True),
        ("2026-11-25", "2025-12-31", False),
        ("", "2027-01-01", False),
        ("today", "2027-01-01", False),
        ("2026-11-25", "never", False),
    ],
)
def test_support(released: str, until: str, good: bool) -> None:
    said = shell(f"supported '{released}' '{until}' && echo yes || echo no")
    assert (said == "yes\n") is good


RULE = [
    # kind, have, version, released, ends, wipe: verdict
    ("empty", "", "1.0", "2026-11-25", "", "no", "install"),
    ("empty", "", "1.0", "2026-11-25", "2020-01-01", "no", "install"),
    ("unfinished", "", "1.0", "2026-11-25", "", "no", "install"),
    ("foreign", "", "1.0", "2026-11-25", "", "no", "refuse"),
    ("foreign", "", "1.0", "2026-11-25", "", "yes", "install"),
    ("ours", "lab@1.0", "1.1", "2026-11-25", "", "no", "upgrade"),
    ("ours", "lab@1.0", "1.1", "2026-11-25", "2026-12-31", "no", "upgrade"),
    ("ours", "lab@1.0", "1.1", "2026-11-25", "2026-11-24", "no", "keep"),
    ("ours", "lab@1.0", "1.1", "2026-11-25", "2026-11-24", "yes", "keep"),
    ("ours", "lab@1.1", "1.1", "2026-11-25", "", "no", "keep"),
    ("ours", "lab@1.1", "1.1", "2026-11-25", "", "yes", "keep"),
    ("ours", "lab@1.1", "1.0", "2026-11-25", "", "no", "keep"),
    ("ours", "lab@1.9", "1.10", "2026-11-25", "", "no", "upgrade"),
    ("ours", "office@1.0", "1.1", "2026-11-25", "", "no", "refuse"),
    ("ours", "office@1.0", "1.1", "2026-11-25", "", "yes", "install"),
]


@pytest.mark.parametrize("case", RULE)
def test_the_verdict(case: tuple[str, ...]) -> None:
    kind, have, version, released, ends, wipe, verdict = case
    name, _, number = have.partition("@")
    said = shell(
        f"kind={kind} have_name='{name}' have_version='{number}' name=lab version={version} "
        f"released={released} ends='{ends}' wipe={wipe} content='2 partitions'\n"
        'decide; echo "$verdict: $because"'
    )
    assert said.startswith(f"{verdict}: ")
    assert len(said) > len(verdict) + 4  # it says why


def test_what_was_written_to_the_state_is_read(tmp_path: Path) -> None:
    disk = tmp_path / "state"
    disk.write_bytes(empty_state())
    said = shell(
        f"slot=b try=a id=0123 ends=2027-01-31; state_write {disk} || exit 1\n"
        f'slot= try= id= ends=; state_read {disk} && echo "$slot $try $id $ends"'
    )
    assert said == "b a 0123 2027-01-31\n"
    raw = disk.read_bytes()
    assert len(raw) == len(empty_state())
    # One sector changed, and what GRUB reads is still one block of its environment.
    assert raw[:512] == empty_state()[:512]
    assert raw[1024:] == empty_state()[1024:]
    assert raw[512:1536].startswith(b"# GRUB Environment Block\nslot=b\ntry=a\n")
    assert raw[512:1536].rstrip(b"#").endswith(b"\nuntil=2027-01-31\n")


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, empty_state(), b"\xff" * 4096])
def test_there_is_no_state_where_none_was_written(tmp_path: Path, content: bytes) -> None:
    disk = tmp_path / "state"
    disk.write_bytes(content)
    assert shell(f"state_read {disk} && echo state || echo none") == "none\n"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("name=lab\nversion=1.0\nreleased=\nroot_size=4096\nboot_size=8192\n", True),
        ("name=lab\nversion=1.0\nroot_size=4096\nboot_size=8192\n", True),
        ("name=lab\nversion=1.0 or so\nroot_size=4096\nboot_size=8192\n", False),
        ("name=lab\nversion=$(reboot)\nroot_size=4096\nboot_size=8192\n", False),
        ("name=lab\nversion=1.0\nroot_size=4096\nboot_size=many\n", False),
        ("name=lab\nversion=1.0\n", False),
        ("", False),
    ],
)  # fmt: skip
def test_a_release(tmp_path: Path, text: str, good: bool) -> None:
    disk = tmp_path / "boot"
    disk.write_bytes(archive({"release": text.encode(), "vmlinuz": b"x" * 5000}))
    said = shell(f'release_read {disk} && echo "$name $version $boot_size" || echo none')
    assert said == ("lab 1.0 8192\n" if good else "none\n")
