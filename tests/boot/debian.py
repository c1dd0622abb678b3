"""Debian images for boot tests, and a seat's way from off to a shell and back."""

import time
from collections.abc import Callable
from pathlib import Path

from pxed.client.debian import build_debian, sources
from pxed.client.debroot import Recipe, fetch_packages, run_alone
from pxed.lab.qemu import Client
from tests.boot.conftest import PROGRAMS, Room
from tests.conftest import from_mirror, requires

KERNEL = "linux-image-cloud-amd64"
KEYBOARD = "de"
# One set of packages for all, fetched once: whatever would like to manage the card under the root,
# both makers of an initramfs, and a compiler.
PACKAGES = ("ifupdown", "network-manager", "dracut-core", "tcc", "libc6-dev")
# ifupdown and NetworkManager would take the card down, and the root with it.
SCRIPT = b"""#!/bin/sh
set -eu
passwd --quiet --delete root
printf 'auto ens3\\niface ens3 inet static\\n address 10.9.9.9/24\\n' >> /etc/network/interfaces
# Without this it would leave alone what ifupdown knows, whatever we say.
printf '[main]\\nplugins=keyfile\\n' > /etc/NetworkManager/conf.d/10-not-ifupdown.conf
"""
LOGIN_LIMIT = 400.0


def build(directory: Path, version: str = "1", initramfs: str = "initramfs-tools") -> Path:
    """An image ``lab`` that is diskless and can be installed; skips where there is no mirror."""
    requires(*PROGRAMS, "mmdebstrap", "unshare", "grub-mkimage", "sfdisk")
    with from_mirror():
        build_debian(
            directory, name="lab", version=version, kernel=KERNEL, packages=PACKAGES,
            script=SCRIPT, user="student", keyboard=KEYBOARD, initramfs=initramfs,
            compression="lz4", maintenance=True,
        )  # fmt: skip
    return directory


def installed(place: Path, packages: tuple[str, ...]) -> Path:
    """The root of a machine of such packages, in ``place``: nothing of ours, no password for root.

    What is fetched is kept for a day.
    """
    log = place / "log"
    log.touch()
    today = int(time.time()) // 86400 * 86400
    recipe = Recipe("bookworm", packages, sources("bookworm", None), today)
    with from_mirror():
        archive = fetch_packages(recipe, log, refresh=False, progress=lambda _: None)
    root = place / "root"
    root.mkdir()
    untar = ["tar", "-C", str(root), "--zstd", "--xattrs", "--xattrs-include=*", "-xpf"]
    run_alone([*untar, str(archive), "--numeric-owner"], log, timeout=600)
    run_alone(["chroot", str(root), "passwd", "-q", "-d", "root"], log, timeout=60)
    return root


def power_on(client: Client) -> None:
    """From off to root's shell on the serial console."""
    client.power_on()
    client.wait_for("login: ", LOGIN_LIMIT)
    log_in(client)


def log_in(client: Client) -> None:
    """From the login prompt to root's shell."""
    client.send("root\n")
    client.wait_for(r"root@[^\n]*# ", 200)


def shut_down(client: Client) -> None:
    """A clean shutdown, and off."""
    client.send("systemctl poweroff\n")
    assert eventually(lambda: not client.running, 180), client.console()[-1000:]
    client.power_off()


def eventually(true: Callable[[], bool], limit: float = 100) -> bool:
    """Whether it comes true within ``limit`` seconds."""
    until = time.monotonic() + limit
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def boot_by(room: Room, how: str) -> None:
    """From now on the room's seats load by ``how``, san or kernel: the server starts again."""
    text = room.server.config.read_text()
    for each in ("san", "kernel"):
        text = text.replace(f'\n[class.x86]\nboot = "{each}"\n', "\n")
    room.server.stop()
    room.server.config.write_text(f'{text}\n[class.x86]\nboot = "{how}"\n')
    room.server.start()


def loaded(room: Room, client: Client) -> list[str]:
    """What this machine has loaded by HTTP, since the lab began."""
    events = room.server.control.follow("/v1/events")
    return [e["file"] for e in events if e["kind"] == "http-done" and e["mac"] == client.mac]
