"""The iPXE scripts that the server writes itself. Pure."""

from pxed.bootable import Kernel

AUTOEXEC = "autoexec.ipxe"
"""What an iPXE for UEFI that is newer than Debian 12's asks for beside itself as it starts."""

_SORRY = """\
:failed
echo pxed: this machine cannot boot: ${errmsg}
echo pxed: "pxed client show ${netX/mac}" on the server tells more
sleep 10
exit 1
"""


def san(root_path: str) -> bytes:
    """Boot the AoE disk ``root_path``, such as ``aoe:e16.0``."""
    return f"#!ipxe\nsanboot {root_path}\n".encode()


def autoexec() -> bytes:
    """What an iPXE for UEFI runs instead of waiting for a key: all that it does by itself then."""
    return b"#!ipxe\nautoboot\n"


def local() -> bytes:
    """Go on to the machine's own disk."""
    # A disk that we installed has a loader that iPXE can start on UEFI. Otherwise the firmware's
    # next entry is wanted, which may be one more of the network, a minute each; UEFI looks no
    # further after a loader that ended well, so this one says that it failed.
    return b"#!ipxe\niseq ${platform} efi && chain file://PXED/EFI/PXED/NET.EFI ||\nexit 1\n"


def kernel(base: str, kernel: Kernel, shelf: int) -> bytes:
    """Load kernel and initrd from below the URL ``base``; the root comes over AoE.

    ``initrd=`` is for UEFI, where the kernel itself looks for the file that iPXE holds; BOOTIF
    tells a system with several cards which one it booted from. The shelf is the server's, whatever
    the image was built for: of two words the last one counts.
    """
    words = f"{kernel.cmdline} pxed.shelf={shelf} BOOTIF=01-${{netX/mac:hexhyp}}"
    return (
        "#!ipxe\n"
        f"kernel {base}/vmlinuz initrd=initrd {words} || goto failed\n"
        f"initrd {base}/initrd || goto failed\n"
        "boot || goto failed\n"
        f"{_SORRY}"
    ).encode()
