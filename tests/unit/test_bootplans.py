"""What a machine's DHCP answer names, by its processor and by what its image has."""

from dataclasses import replace
from pathlib import Path

import pytest

from pxed import config
from pxed.bootable import Kernel
from pxed.bootplans import BootPlans
from pxed.choice import Choice
from pxed.dhcp.bootplan import BootPlan
from pxed.dhcp.classify import Firmware
from pxed.dhcp.replies import Mode
from pxed.images import Image
from pxed.mac import Mac
from pxed.seat import Stage, State, Step

MAC = Mac("52:54:00:00:00:01")
KERNEL = Kernel(Path("/vmlinuz"), Path("/initrd"), "quiet")


def plan(
    firmware: Firmware, arch: int, classes: str = "[class.x86]\n[class.rpi]", *, kernel: bool = True
) -> BootPlan | None:
    return plans(classes, kernel=kernel).plan(MAC, firmware, arch, frozenset())


def plans(classes: str, *, kernel: bool = True) -> BootPlans:
    choice = Choice(config.parse(f'interface = "eth0"\n{classes}'))
    choice.images = {
        name: Image(name, "1", name, Path("/"), {}, KERNEL if kernel else None, Path("/"))
        for name in ("x86", "rpi")
    }
    return BootPlans(choice, lambda: "http://10.0.0.1", lambda: Mode.PXE_ONLY)


def test_a_pc_boots_its_disk() -> None:
    got = plan(Firmware.PXE, 7)
    assert got == BootPlan("snponly.efi", "aoe:e16.0")


@pytest.mark.parametrize("firmware", [Firmware.PXE, Firmware.IPXE])
def test_uefi_on_arm64_loads_the_kernel_of_the_pis_image_by_http(firmware: Firmware) -> None:
    got = plan(firmware, 11)
    assert got is not None
    assert (got.boot_file, got.root_path) == ("snponly-arm64.efi", None)
    assert got.script == "http://10.0.0.1/boot/rpi@1.ipxe"


def test_uefi_http_boot_on_arm64() -> None:
    got = plan(Firmware.UEFI_HTTP, 19)
    assert got is not None
    assert got.http_url == "http://10.0.0.1/ipxe/snponly-arm64.efi"


@pytest.mark.parametrize(
    ("firmware", "arch"), [(Firmware.PXE, 11), (Firmware.UEFI_HTTP, 19), (Firmware.RPI, 0)]
)
def test_without_a_class_for_them_arm_machines_get_nothing(firmware: Firmware, arch: int) -> None:
    assert plan(firmware, arch, "[class.x86]") is None
    assert plan(Firmware.PXE, 0, "[class.rpi]") is None


def test_an_image_without_a_kernel_for_ipxe_is_refused_by_name() -> None:
    got = plan(Firmware.PXE, 11, kernel=False)
    assert got is not None
    assert got.why == (
        "image rpi@1 has no kernel in its manifest, which architecture 11 (64-bit ARM UEFI) needs"
    )
    pi = plan(Firmware.RPI, 0, kernel=False)
    assert pi is not None
    assert not pi.why


SECURE = '[class.x86]\nboot = "kernel"\nsecure_boot = true\n'


@pytest.mark.parametrize(
    ("firmware", "arch", "file"),
    [(Firmware.PXE, 7, "shimx64.efi"), (Firmware.PXE, 9, "shimx64.efi"),
     (Firmware.PXE, 0, "undionly.kpxe"), (Firmware.IPXE, 7, "snponly.efi")],
)  # fmt: skip
def test_secure_boot_loads_shim(firmware: Firmware, arch: int, file: str) -> None:
    """UEFI's PXE of x64 alone; whoever runs iPXE was not kept from it."""
    got = plan(firmware, arch, SECURE)
    assert got is not None
    assert got.boot_file == file
    assert got.script == (None if file == "shimx64.efi" else "http://10.0.0.1/boot/x86@1.ipxe")


def test_secure_boot_by_http_loads_a_disk() -> None:
    """By HTTP too only x64 has a chain; without Secure Boot it is iPXE as ever."""
    base = "http://10.0.0.1"
    got = plan(Firmware.UEFI_HTTP, 16, SECURE)
    assert got == BootPlan(http_url=f"{base}/secure/52-54-00-00-00-01/x86@1.img")
    for arch, classes in ((16, SECURE.replace("true", "false")), (15, SECURE)):
        got = plan(Firmware.UEFI_HTTP, arch, classes)
        assert got is not None
        assert (got.http_url or "").startswith(f"{base}/ipxe/")


def test_a_disk_of_maintenance_mode_needs_its_kernel() -> None:
    made = plans(SECURE)
    made._choice.clients.add(MAC).order = "provision"
    got = made.plan(MAC, Firmware.UEFI_HTTP, 16, frozenset())
    assert got is not None
    assert "names no maintenance kernel" in got.why
    made._choice.images["x86"] = replace(made._choice.images["x86"], maintenance=KERNEL)
    got = made.plan(MAC, Firmware.UEFI_HTTP, 16, frozenset())
    assert got is not None
    assert got.http_url == "http://10.0.0.1/secure-tfm/52-54-00-00-00-01/x86@1.img"


def test_secure_boot_leaves_the_way_to_the_disk_to_the_firmware() -> None:
    made = plans(SECURE)
    made._choice.clients.add(MAC).order = "local"
    assert made.plan(MAC, Firmware.PXE, 7, frozenset()) is None
    assert made.plan(MAC, Firmware.UEFI_HTTP, 16, frozenset()) is None
    assert made.plan(MAC, Firmware.PXE, 0, frozenset()) is not None


def test_grub_is_told_by_machine() -> None:
    said = (plans(SECURE).grub(MAC) or b"").decode()
    assert "linux (tftp,10.0.0.1)/image/x86@1/vmlinuz 'quiet' 'pxed.shelf=16' " in said
    assert "'BOOTIF=01-52-54-00-00-00-01'\n" in said
    assert "initrd (tftp,10.0.0.1)/image/x86@1/initrd\n" in said
    assert b"linux" not in (plans(SECURE).grub(None) or b"linux")


def test_grub_is_told_nothing_without_a_signed_chain() -> None:
    assert plans("[class.x86]").grub(MAC) is None
    assert plans("[class.rpi]").grub(MAC) is None


@pytest.mark.parametrize(
    ("state", "file", "told"),
    [(State.BOOTING, "shimx64.efi", True), (State.BOOTING, "grubx64.efi", True),
     (State.BOOTING, "snponly.efi", False), (State.RUNNING, "grubx64.efi", False)],
)  # fmt: skip
def test_a_boot_that_began_with_the_chain_ends_with_it(state: State, file: str, told: bool) -> None:
    """A reload that switches it off is for the boots that begin later."""
    made = plans(SECURE.replace("true", "false"))
    client = made._choice.clients.add(MAC)
    client.state = state
    client.timeline = [Step(Stage.DISCOVER, 1.0), Step(Stage.BOOT_FILE, 2.0, file)]
    said = made.grub(MAC)
    assert (said is not None and b"linux" in said) is told


def test_a_machine_that_may_not_boot_gets_no_kernel_from_grub() -> None:
    said = plans(f'{SECURE}[clients]\nadmit = "approve"\n').grub(MAC)
    assert said is not None
    assert b"linux" not in said
