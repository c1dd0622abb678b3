"""A diskless arm64 machine: QEMU's ``virt`` board; its firmware is UEFI, or somebody plays it."""

import shutil
from pathlib import Path

from pxed.errors import HostError
from pxed.lab.qemu import Client

QEMU = "qemu-system-aarch64"
_AAVMF = Path("/usr/share/AAVMF")


class ArmClient(Client):
    """As ``Client``, for arm64, in software. ``firmware`` uefi: AAVMF looks for a network boot.

    Otherwise it starts what ``load`` was given, as a Raspberry Pi's firmware starts what it has
    loaded. HostError if QEMU or its firmware is missing.
    """

    _loaded: tuple[str, ...] = ()

    def load(self, kernel: bytes, initramfs: bytes, cmdline: str) -> None:
        """What its firmware has loaded: it starts that at each ``power_on`` and ``reset``."""
        (self.directory / "kernel").write_bytes(kernel)
        (self.directory / "initramfs").write_bytes(initramfs)
        self._loaded = (
            "-kernel", str(self.directory / "kernel"),
            "-initrd", str(self.directory / "initramfs"), "-append", cmdline,
        )  # fmt: skip

    def _argv(self) -> list[str]:
        if shutil.which(QEMU) is None:
            raise HostError(f"{QEMU} is missing: apt install qemu-system-arm")
        folder = self.directory
        argv = [
            QEMU, "-name", self.name, "-no-user-config", "-nodefaults", "-display", "none",
            "-machine", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi,tb-size=256",
            "-smp", str(self.cpus), "-m", str(self.memory),
            "-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial",
            "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off",
            "-netdev", f"tap,id=nic0,ifname={self.tap},script=no,downscript=no",
            # The firmware's own driver, and not iPXE's for another processor.
            "-device", f"virtio-net-pci,netdev=nic0,mac={self.mac},bootindex=1,romfile=",
        ]  # fmt: skip
        if self.firmware == "uefi":
            argv += self._uefi()
        return [*argv, *self._loaded, *self.extra]

    def _uefi(self) -> list[str]:
        own = self.directory / "vars.fd"
        try:
            if not own.exists():
                shutil.copyfile(_AAVMF / "AAVMF_VARS.fd", own)
        except FileNotFoundError:
            raise HostError(f"{_AAVMF} has no firmware: apt install qemu-efi-aarch64") from None
        return [
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_AAVMF}/AAVMF_CODE.fd",
            "-drive", f"if=pflash,format=raw,unit=1,file={own}",
        ]  # fmt: skip
