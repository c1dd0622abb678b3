"""Roots of the kind that Raspberry Pi OS has: what its boot partition holds, and a small system.

Firmware files are stand-ins (no processor here runs them); kernel, modules and programs are what
the caller gives, so a root may be one that a QEMU machine really boots.
"""

import shutil
import struct
import subprocess
from pathlib import Path

from pxed.client.kernel import Kernel, unpacked

BOOT = (
    "bootcode.bin", "start.elf", "start4.elf", "fixup.dat", "fixup4.dat",
    "bcm2710-rpi-3-b-plus.dtb", "bcm2711-rpi-4-b.dtb", "overlays/overlay_map.dtb",
    "overlays/vc4-kms-v3d.dtbo", "kernel7l.img",
    "initramfs8", "userconf.txt", "wpa_supplicant.conf", "LICENCE.broadcom",
)  # fmt: skip
CONFIG = """\
# For more options and information see the documentation
dtparam=audio=on
camera_auto_detect=1
auto_initramfs=1
dtoverlay=vc4-kms-v3d
arm_64bit=1
[cm4]
otg_mode=1
[pi4]
arm_boost=1
[all]
"""
CMDLINE = (
    "console=serial0,115200 console=tty1 root=PARTUUID=4e639091-02 rootfstype=ext4 "
    "fsck.repair=yes rootwait quiet init=/usr/lib/raspberrypi-sys-mods/firstboot "
    "cfg80211.ieee80211_regdom=DE\n"
)
MODULES = ("aoe", "overlay", "squashfs", "ext4", "crc32c_generic", "virtio_net", "virtio_pci",
           "virtio_mmio")  # fmt: skip


def kernel_image(release: str, *, efi: bool = True) -> bytes:
    """What every arm64 kernel has: its marks, and its version in plain text."""
    head = (b"MZ" if efi else bytes(2)) + bytes(0x36) + b"ARMd" + bytes(4)
    return head + f"Linux version {release} (somebody@somewhere)".encode() + bytes(4096)


def program(machine: int = 183) -> bytes:
    """The head of an ELF program for a processor, arm64 by default; it cannot run."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, machine, 1) + bytes(40)


def put_boot(boot: Path, kernel: bytes) -> None:
    """The boot partition of such a system, in the directory ``boot``."""
    for name in BOOT:
        (boot / name).parent.mkdir(parents=True, exist_ok=True)
        (boot / name).write_bytes(f"{name} ".encode() * 300)
    (boot / "config.txt").write_text(CONFIG)
    (boot / "cmdline.txt").write_text(CMDLINE)
    (boot / "kernel8.img").write_bytes(kernel)


def put_modules(root: Path, kernel: Kernel, release: str, *, packed: bool = True) -> None:
    """``kernel``'s modules as those of ``release``; packed by xz, as Raspberry Pi OS has them."""
    modules = root / "lib/modules" / release
    for file in kernel.closure(MODULES):
        place = modules / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(unpacked(kernel.modules / file))
        if packed:
            subprocess.run(["xz", "-0", "--check=crc32", str(place)], check=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copyfile(kernel.modules / name, modules / name)
    subprocess.run(["depmod", "-b", str(root), release], check=True, capture_output=True)


def put_system(root: Path, busybox: dict[str, bytes], *, init: str = "../bin/busybox") -> None:
    """A system of busybox: it says that it runs, and has a shell on every console."""
    for folder in ("dev", "proc", "sys", "run", "etc", "root", "sbin", "bin", "usr/sbin", "tmp",
                   "var/log", "home"):  # fmt: skip
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, data in busybox.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        (root / name).chmod(0o755)
    (root / "bin/sh").symlink_to("busybox")
    (root / "sbin/init").symlink_to(init)
    (root / "etc/inittab").write_text("::sysinit:/etc/rc\nttyAMA0::respawn:-/bin/sh\n")
    (root / "etc/fstab").write_text("proc /proc proc x 0 0\nPARTUUID=4e639091-02 / ext4 x 0 1\n")
    (root / "etc/hostname").write_text("raspberrypi\n")
    (root / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    (root / "etc/profile").write_text("export PATH=/bin:/sbin:/usr/sbin HOME=/root\ncd /root\n")
    (root / "var/log/boot.log").write_text("of one card\n")
    rc = root / "etc/rc"
    rc.write_text(
        "#!/bin/sh\n/bin/busybox --install -s /bin\nexport PATH=/bin:/sbin:/usr/sbin\n"
        "read -r seconds rest < /proc/uptime\n"
        'pxed-report running "$(cat /etc/pxed-image)"\n'
        'echo "pxed: $seconds running $(cat /etc/pxed-image)" > /dev/console\n'
    )
    rc.chmod(0o755)
