"""Which step of the chain comes next."""

import pytest

from pxed.dhcp.bootplan import BOOT_FILES, HTTP_FILES, BootPlan, Choice, Step, choose
from pxed.dhcp.classify import Feature, Firmware

SAN = BootPlan("undionly.kpxe", root_path="aoe:e16.0")
BOTH = BootPlan("undionly.kpxe", root_path="aoe:e16.0", script="boot.ipxe")
KERNEL = BootPlan("undionly.kpxe", script="http://10.0.0.1/boot.ipxe")
AOE, HTTP, NONE = frozenset({Feature.AOE}), frozenset({Feature.HTTP}), frozenset[int]()


def ipxe(
    plan: BootPlan, features: frozenset[int], *, chained: bool = False, proxy: bool = False
) -> Choice:
    return choose(plan, Firmware.IPXE, 0, features, chained=chained, proxy=proxy)


def test_plain_pxe_loads_ours() -> None:
    assert choose(SAN, Firmware.PXE, 0, NONE) == Choice(Step.CHAIN, file="undionly.kpxe")


def test_plain_pxe_loads_ours_again_after_a_reset() -> None:
    assert choose(SAN, Firmware.PXE, 0, NONE, chained=True).step is Step.CHAIN


def test_ipxe_with_aoe_boots() -> None:
    assert ipxe(SAN, AOE) == Choice(Step.SAN, root_path="aoe:e16.0")


def test_ipxe_without_aoe_loads_ours_once() -> None:
    assert ipxe(SAN, NONE).step is Step.CHAIN
    refused = ipxe(SAN, NONE, chained=True)
    assert refused.step is Step.REFUSE
    assert "no AoE support" in refused.why


def test_our_own_ipxe_can_be_wanted_even_where_the_cards_would_do() -> None:
    own = BootPlan("undionly.kpxe", root_path="aoe:e16.0", own_ipxe=True)
    assert ipxe(own, AOE) == Choice(Step.CHAIN, file="undionly.kpxe")
    assert ipxe(own, AOE, chained=True) == Choice(Step.SAN, root_path="aoe:e16.0")


def test_root_path_or_script_never_both() -> None:
    assert ipxe(BOTH, AOE) == Choice(Step.SAN, root_path="aoe:e16.0")
    assert ipxe(BOTH, AOE, proxy=True) == Choice(Step.SCRIPT, file="boot.ipxe")


def test_proxy_needs_a_script() -> None:
    assert ipxe(SAN, AOE, proxy=True).step is Step.REFUSE


def test_script_needs_http_not_aoe() -> None:
    assert ipxe(KERNEL, HTTP).step is Step.SCRIPT
    assert ipxe(KERNEL, AOE).step is Step.CHAIN


def test_uefi_http_needs_a_url() -> None:
    plan = BootPlan(http_url="http://10.0.0.1/ipxe.efi")
    assert choose(plan, Firmware.UEFI_HTTP, 16, NONE).file == "http://10.0.0.1/ipxe.efi"
    assert choose(SAN, Firmware.UEFI_HTTP, 16, NONE).step is Step.REFUSE


def test_unknown_architecture_is_named() -> None:
    refused = choose(BootPlan(root_path="aoe:e16.0"), Firmware.PXE, 37, NONE)
    assert (refused.step, refused.why) == (
        Step.REFUSE,
        "no boot file for architecture 37 (32-bit LoongArch UEFI)",
    )


def test_pi_gets_its_own_recipe() -> None:
    assert choose(SAN, Firmware.RPI, 0, NONE).step is Step.RPI


@pytest.mark.parametrize("arch", [7, 9])
def test_both_numbers_of_x64(arch: int) -> None:
    assert BOOT_FILES[arch] == "snponly.efi"


def test_every_architecture_has_its_file() -> None:
    assert BOOT_FILES == {
        0: "undionly.kpxe", 6: "ipxe-i386.efi", 7: "snponly.efi", 9: "snponly.efi",
        10: "snponly-arm32.efi", 11: "snponly-arm64.efi",
    }  # fmt: skip
    assert HTTP_FILES == {
        15: "ipxe-i386.efi", 16: "snponly.efi", 18: "snponly-arm32.efi",
        19: "snponly-arm64.efi", 20: "undionly.kpxe",
    }  # fmt: skip


def test_a_plan_with_nothing_for_a_machine_says_why() -> None:
    refused = choose(BootPlan(why="it has no kernel"), Firmware.PXE, 11, NONE)
    assert (refused.step, refused.why) == (Step.REFUSE, "it has no kernel")
