"""What a machine is to boot, and which step of the chain comes next. Pure.

The application says what there is (``BootPlan``); ``choose`` says what this firmware gets of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pxed.dhcp.classify import Feature, Firmware, arch_name

BOOT_FILES: Mapping[int, str] = {
    0: "undionly.kpxe",  # x86 BIOS
    6: "ipxe-i386.efi",  # EFI IA32
    7: "snponly.efi",  # EFI x64: the number that firmware sends (RFC 4578 erratum)
    9: "snponly.efi",  # EFI x64 too: "EFI BC"
    10: "snponly-arm32.efi",
    11: "snponly-arm64.efi",
}
"""iPXE's file for each architecture number; a missing file is TFTP's to report."""

HTTP_FILES: Mapping[int, str] = {
    15: "ipxe-i386.efi",  # x86 UEFI by HTTP
    16: "snponly.efi",  # x64 UEFI by HTTP
    18: "snponly-arm32.efi",
    19: "snponly-arm64.efi",
    20: "undionly.kpxe",  # BIOS by HTTP
}
"""The same for the architecture numbers of UEFI HTTP boot."""


@dataclass(frozen=True, slots=True)
class BootPlan:
    """What one machine may boot; the application's answer to "who is this MAC?".

    ``boot_file``: name of our iPXE for this architecture, by TFTP. ``root_path``: AoE address that
    iPXE boots from, such as ``aoe:e16.0``. ``script``: URL or TFTP name of an iPXE script; used
    where there is no root path, and always in proxy mode. ``http_url``: for UEFI HTTP boot.
    ``own_ipxe``: load ours even where the card's own iPXE could go on. ``why``: there is nothing
    for this machine, for this reason.
    """

    boot_file: str | None = None
    root_path: str | None = None
    script: str | None = None
    http_url: str | None = None
    own_ipxe: bool = False
    why: str = ""


class Step(StrEnum):
    """The answer's kind."""

    CHAIN = "chain"  # load our iPXE
    SAN = "san"  # root path, empty file name
    SCRIPT = "script"  # file name is a script
    HTTP = "http"  # file name is a URL, vendor class HTTPClient
    RPI = "rpi"  # the Pi's own recipe: it asks TFTP for what it wants
    REFUSE = "refuse"  # no answer


@dataclass(frozen=True, slots=True)
class Choice:
    """The next step; ``file`` and ``root_path`` as they go into the reply, ``why`` of a refusal."""

    step: Step
    file: str = ""
    root_path: str = ""
    why: str = ""


def choose(
    plan: BootPlan,
    firmware: Firmware,
    arch: int | None,
    features: frozenset[int],
    *,
    chained: bool = False,
    proxy: bool = False,
) -> Choice:
    """The next step for a machine; ``chained``: it was told to load our iPXE moments ago.

    An iPXE that can do what the plan needs goes straight on. One that cannot loads ours once; if it
    then still cannot, it is refused, because a second time would be a loop.
    """
    if plan.why:
        return _refuse(plan.why)
    if firmware is Firmware.RPI:
        return Choice(Step.RPI)  # it ignores a file name, and asks TFTP for its own
    if firmware is Firmware.UEFI_HTTP:
        if plan.http_url:
            return Choice(Step.HTTP, file=plan.http_url)
        return _refuse(f"no boot file by HTTP for {arch_name(arch)}: set the firmware to PXE boot")
    if firmware is Firmware.PXE:
        return _chain(plan, arch)
    if firmware is not Firmware.IPXE:
        return _refuse("not network-boot firmware")
    lacks = _lacks(plan, features)
    if lacks and chained:
        return _refuse(f"the iPXE that it loaded has no {lacks} support: serve one that has")
    if lacks or (plan.own_ipxe and plan.boot_file and not chained):
        return _chain(plan, arch)
    if plan.script and (proxy or not plan.root_path):
        return Choice(Step.SCRIPT, file=plan.script)
    if proxy:  # a root path in a proxy's offer is not booted (docs/netboot.md)
        return _refuse("proxy mode needs a script for iPXE, and none is set")
    if plan.root_path:
        return Choice(Step.SAN, root_path=plan.root_path)
    return _refuse("no root path and no script is set for iPXE")


def _lacks(plan: BootPlan, features: frozenset[int]) -> str:
    """Name of the feature that the plan needs and this iPXE has not; empty if it has all."""
    if plan.root_path and Feature.AOE not in features:
        return "AoE"
    if plan.script and plan.script.startswith("http:") and Feature.HTTP not in features:
        return "HTTP"
    return ""


def _chain(plan: BootPlan, arch: int | None) -> Choice:
    if plan.boot_file:
        return Choice(Step.CHAIN, file=plan.boot_file)
    return _refuse(f"no boot file for {arch_name(arch)}")


def _refuse(why: str) -> Choice:
    return Choice(Step.REFUSE, why=why)
