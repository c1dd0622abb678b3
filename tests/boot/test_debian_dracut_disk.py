"""Debian with dracut on a machine's own disk; its installer comes by HTTP. Long."""

from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from tests.boot.conftest import Room
from tests.boot.debian import loaded, log_in, shut_down

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.ci, pytest.mark.timeout(1500)]


def test_dracuts_image_is_installed_and_starts_from_the_disk(dracut_image: Path) -> None:
    with Lab() as lab:
        room = Room(lab, dracut_image, '[class.x86]\nboot = "kernel"\n[class.x86.provision]\n')
        disk = lab.directory / "disk"
        with disk.open("wb") as out:
            out.truncate(4 << 30)
        seat = lab.add_client(
            memory=1024,
            extra=(
                "-drive", f"file={disk},format=raw,if=none,id=disk0",
                "-device", "virtio-blk-pci,drive=disk0,bootindex=2",
            ),
        )  # fmt: skip
        body = {"select": [seat.mac], "order": "provision", "once": True}
        room.server.control.post("/v1/clients/boot", body)
        seat.power_on()
        seat.wait_for(r"(?s)restarting.*from vda, system [ab].*login: ", 500)
        log_in(seat)
        assert loaded(room, seat) == [
            "/tfm/lab@1.ipxe", "/tfm/lab@1/vmlinuz", "/tfm/lab@1/initrd",
        ]  # fmt: skip
        mounts = seat.shell("cat /proc/mounts", 60)
        assert "upperdir=/config/layers/local/upper" in mounts
        assert "etherd" not in mounts
        assert seat.shell("cat /etc/hostname /etc/pxed-image") == "seat-52-54-00-00-00-01\nlab@1\n"
        assert "degraded" not in seat.shell("ls /run/pxed")
        seat.shell("systemctl is-system-running --wait", 300, check=False)
        assert seat.shell("systemctl is-active pxed-good", 60) == "active\n"
        shut_down(seat)
