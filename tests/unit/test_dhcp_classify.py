"""Who is asking: one message for each firmware, as it looks on the wire."""

import pytest

from pxed.dhcp.classify import Feature, Firmware, Identity, arch_name, class_of, identify
from pxed.dhcp.codec import Message, Op, Opt
from pxed.mac import Mac

PC, PI3, PI4 = Mac("52:54:00:12:34:56"), Mac("b8:27:eb:11:22:33"), Mac("dc:a6:32:11:22:33")
PI_CLASS = b"PXEClient:Arch:00000:UNDI:002001"
# What Debian's undionly.kpxe puts into option 175: AoE, HTTP and bzImage among others.
IPXE_175 = bytes.fromhex(
    "b105011af41000 eb03010000 170101 220101 130101 140101 110101 190101 120101 180101 1b0101"
    "150101 100101".replace(" ", "")
)


def who(mac: Mac = PC, **options: bytes) -> Identity:
    named: dict[int, bytes] = {Opt[name.upper()]: value for name, value in options.items()}
    return identify(Message(op=Op.REQUEST, xid=1, chaddr=mac, options=named))


def test_bios_rom() -> None:
    got = who(vendor_class=PI_CLASS, arch=b"\0\0", ndi=b"\1\2\1", uuid=b"\0" + bytes(range(16)))
    assert got == Identity(Firmware.PXE, 0)


def test_ovmf_pxe() -> None:
    got = who(vendor_class=b"PXEClient:Arch:00007:UNDI:003016", arch=b"\0\7", ndi=b"\1\3\x10")
    assert got == Identity(Firmware.PXE, 7)


def test_ovmf_http() -> None:
    got = who(vendor_class=b"HTTPClient:Arch:00016:UNDI:003016", arch=b"\0\x10")
    assert got == Identity(Firmware.UEFI_HTTP, 16)


@pytest.mark.parametrize("user_class", [b"iPXE", b"\4iPXE", b"\3lab\4iPXE"])
def test_ipxe_by_user_class(user_class: bytes) -> None:
    got = who(user_class=user_class, vendor_class=PI_CLASS, arch=b"\0\0", ipxe=IPXE_175)
    assert got.firmware is Firmware.IPXE
    assert {Feature.AOE, Feature.HTTP, Feature.BZIMAGE, Feature.VERSION} <= got.features
    assert Feature.EFI not in got.features


def test_ipxe_by_option_175_alone() -> None:
    assert who(ipxe=b"\x24\1\1").features == {Feature.EFI}


def test_a_feature_of_value_0_is_missing() -> None:
    assert who(ipxe=b"\x12\1\0\x13\1\1").features == {Feature.HTTP}


def test_pi3() -> None:
    got = who(PI3, vendor_class=PI_CLASS, arch=b"\0\0", uuid=b"\0" + b"\x44\x33\x22\x11" * 4)
    assert got == Identity(Firmware.RPI, 0, serial="11223344", rpi3=True)


OUIS = ["b8:27:eb", "dc:a6:32", "e4:5f:01", "d8:3a:dd", "28:cd:c1", "2c:cf:67", "88:a2:9e"]


@pytest.mark.parametrize("oui", OUIS)
def test_every_makers_address_of_a_pi(oui: str) -> None:
    """With what its ROM says of itself; a PC's ROM says the same, and its address is no Pi's."""
    assert who(Mac(f"{oui}:11:22:33"), vendor_class=PI_CLASS).firmware is Firmware.RPI
    assert who(PC, vendor_class=PI_CLASS).firmware is Firmware.PXE


@pytest.mark.parametrize("name", [b"RPi4", b"4iPR"])
def test_pi4(name: bytes) -> None:
    uuid = b"\0" + name + bytes(8) + b"\xef\xcd\xab\x10"
    got = who(PI4, vendor_class=PI_CLASS, arch=b"\0\0", uuid=uuid)
    assert got == Identity(Firmware.RPI, 0, serial="10abcdef")


@pytest.mark.parametrize("name", [b"RPi5", b"5iPR", b"RPi4"])
def test_a_pi_with_an_address_of_its_owners(name: bytes) -> None:
    """Its EEPROM can set any address; the name in option 97 remains."""
    uuid = b"\0" + name + bytes(8) + b"\xef\xcd\xab\x10"
    got = who(PC, vendor_class=PI_CLASS, arch=b"\0\0", uuid=uuid)
    assert got == Identity(Firmware.RPI, 0, serial="10abcdef")


def test_pi5() -> None:
    uuid = b"\0RPi5" + bytes.fromhex("1741d000 11223344 0d0c0b0a")
    got = who(Mac("2c:cf:67:11:22:33"), vendor_class=PI_CLASS, arch=b"\0\0", uuid=uuid)
    assert got == Identity(Firmware.RPI, 0, serial="0a0b0c0d")


def test_the_number_of_rpiboot() -> None:
    assert who(vendor_class=b"PXEClient:Arch:00041:UNDI:002001").firmware is Firmware.RPI


@pytest.mark.parametrize("uuid", [bytes(17), b"\0" + b"\xff" * 16])
def test_a_pc_with_an_empty_uuid_is_no_pi(uuid: bytes) -> None:
    assert who(PC, vendor_class=PI_CLASS, arch=b"\0\0", uuid=uuid).firmware is Firmware.PXE


def test_uefi_on_a_pi_is_uefi() -> None:
    got = who(PI4, vendor_class=b"PXEClient:Arch:00011:UNDI:003016", uuid=b"\0RPi4" + bytes(12))
    assert got == Identity(Firmware.PXE, 11)


def test_pi_without_uuid() -> None:
    got = who(PI4, vendor_class=PI_CLASS)
    assert (got.firmware, got.serial) == (Firmware.RPI, None)


def test_a_running_pi_is_a_system() -> None:
    assert who(PI4, vendor_class=b"dhcpcd-9.4.1").firmware is Firmware.OTHER


def test_ipxe_on_a_pi_is_ipxe() -> None:
    got = who(PI4, vendor_class=b"PXEClient:Arch:00011:UNDI:003010", user_class=b"iPXE")
    assert (got.firmware, got.arch) == (Firmware.IPXE, 11)


def test_arch_from_the_vendor_class() -> None:
    assert who(vendor_class=b"PXEClient:Arch:00009:UNDI:003016").arch == 9


@pytest.mark.parametrize("vendor", [b"", b"udhcp 1.35.0", b"MSFT 5.0", b"pxeclient", b"\xff\xfe"])
def test_systems(vendor: bytes) -> None:
    got = who(vendor_class=vendor)
    assert got.firmware is Firmware.OTHER
    assert not got.boots


def test_architectures_have_names() -> None:
    assert arch_name(39) == "architecture 39 (64-bit LoongArch UEFI)"
    assert arch_name(4711) == "architecture 4711"
    assert arch_name(None) == "an unnamed architecture"


@pytest.mark.parametrize(
    ("firmware", "arch", "wanted"),
    [
        ("rpi", 0, "rpi"), ("rpi", None, "rpi"), ("pxe", 11, "rpi"), ("ipxe", 11, "rpi"),
        ("uefi-http", 19, "rpi"), ("pxe", 10, "rpi"), ("pxe", 22, "rpi"), ("pxe", 0, "x86"),
        ("pxe", None, "x86"), ("pxe", 7, "x86"), ("uefi-http", 16, "x86"), ("pxe", 27, "x86"),
    ],
)  # fmt: skip
def test_the_class_is_the_processors(firmware: str, arch: int | None, wanted: str) -> None:
    assert class_of(firmware, arch) == wanted
