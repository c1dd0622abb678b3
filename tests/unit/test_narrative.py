"""A boot in words."""

from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.narrative import Line, tell, who, words

MAC = Mac("52:54:00:00:00:01")


def event(kind: Kind, time: float = 1.0, **detail: object) -> Event:
    return Event(kind, MAC, time, detail)


def test_a_story() -> None:
    trace = [
        event(Kind.DISCOVER, 1.0, firmware="pxe", arch=7),
        event(Kind.OFFER, 1.1, ip="10.77.0.50", boot_file="snponly.efi", root_path=""),
        event(Kind.REQUEST, 1.2, firmware="pxe", arch=7, ip="10.77.0.50"),  # the ACK tells it
        event(Kind.ACK, 1.2, ip="10.77.0.50", boot_file="snponly.efi", root_path=""),
        event(Kind.TFTP_PROBE, 1.3, file="snponly.efi"),
        event(Kind.TFTP_PROBE, 1.4, file="snponly.efi"),
    ]
    assert tell(trace) == [
        Line(1.0, "asks for an address and what to boot (PXE, architecture 7 (x64 UEFI))"),
        Line(1.1, "is offered 10.77.0.50, snponly.efi"),
        Line(1.2, "took 10.77.0.50, snponly.efi"),
        Line(1.3, "asks for the size of snponly.efi (normal before it is read)", 2),
    ]


def test_beside_another_server() -> None:
    said = words(event(Kind.REQUEST, ip="10.77.0.100", server="10.77.0.2", firmware="pxe", arch=0))
    assert said == "takes 10.77.0.100 from the DHCP server 10.77.0.2"
    assert words(event(Kind.OFFER, ip="", boot_file="", root_path="")) == "is offered what to boot"


def test_every_kind_can_be_told() -> None:
    for kind in Kind:
        assert isinstance(words(event(kind)), str)


def test_who() -> None:
    assert who("ipxe", 0) == "iPXE, architecture 0 (BIOS PC)"
    assert who("rpi", None) == "Raspberry Pi"
    assert who("", None) == ""
