"""Whether an interface is wireless: ATA over Ethernet does not work there (M16)."""

from pathlib import Path

from pxed.errors import UsageError
from pxed.net.link import Link, names

_SYS = Path("/sys/class/net")


def refuse_wireless(link: Link, sys: Path = _SYS) -> str:
    """UsageError if ``link`` is wireless, or stands on nothing but wireless ones.

    A word of warning for a bridge that has a wireless port beside others; empty if all is well.
    """
    below = _below(link.name, sys)
    if not _is_this(link, sys):  # the system shows another namespace's interfaces: nothing is known
        return ""
    wireless = [name for name in below if _wireless(name, sys)]
    if _wireless(link.name, sys) or (wireless and len(wireless) == len(below)):
        on = "" if _wireless(link.name, sys) else f", on {', '.join(wireless)}"
        wired = [name for name in names() if name != link.name and not _wireless(name, sys)]
        raise UsageError(
            f"{link.name} is wireless{on}: ATA over Ethernet needs a wire, Wi-Fi is not supported: "
            f"serve a wired interface ({', '.join(wired) or 'this machine has none'})"
        )
    if wireless:
        return (
            f"{', '.join(wireless)}, a port of {link.name}, is wireless: "
            "seats behind it cannot boot, Wi-Fi is not supported"
        )
    return ""


def _is_this(link: Link, sys: Path) -> bool:
    try:
        return int((sys / link.name / "ifindex").read_text()) == link.index
    except (OSError, ValueError):
        return False


def _wireless(name: str, sys: Path) -> bool:
    path = sys / name
    if (path / "phy80211").exists() or (path / "wireless").exists():
        return True
    try:
        return "DEVTYPE=wlan" in (path / "uevent").read_text().split()
    except OSError:
        return False


def _below(name: str, sys: Path) -> list[str]:
    """What it stands on: a bridge's ports, a VLAN's or a bond's interfaces."""
    try:
        return sorted(p.name.removeprefix("lower_") for p in (sys / name).glob("lower_*"))
    except OSError:
        return []
