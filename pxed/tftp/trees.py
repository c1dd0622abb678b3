"""Boot directories of Raspberry Pis in the TFTP name space (M7).

A Pi asks below a prefix of its own (serial number, MAC with dashes, or a text from its EEPROM), and
without one where that fails; a 3B+ asks for its first files without one. All of them mean the boot
directory of the image that this Pi boots. A directory of that name inside the boot directory wins,
so one machine can have files of its own.
"""

import re
from collections.abc import Callable
from pathlib import Path

from pxed.mac import Mac, parse_mac
from pxed.signed import CONFIGURATIONS
from pxed.tftp.codec import Code, TftpError
from pxed.tftp.files import Files, clean
from pxed.tftp.serials import Serials
from pxed.tftp.session import Bytes, File

_SERIAL = re.compile(r"[0-9a-f]{8}", re.ASCII)
_PROGRAM = re.compile(r"([^/]+@[^/]+)\.efi")
_MAC = re.compile(r"[0-9a-f]{2}(-[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)


class Trees:
    """``Files`` with the Pis' directories before it.

    ``mac_of`` gives the machine behind an address; ``tree_of`` a Pi's boot directory, None for any
    other machine; ``common`` that of a Pi that nothing is known of, None without a class for them.
    ``known``: whether a machine is more than an address that somebody sent once. ``program_of``:
    the EFI program of an image, NAME@VERSION, under whose name UEFI on ARM asks for it. ``grub``:
    the configuration of GRUB for a machine, None where there is no signed chain; ``kernel_of``: the
    files that it names.
    """

    def __init__(
        self,
        files: Files,
        mac_of: Callable[[str], Mac | None],
        tree_of: Callable[[Mac], Path | None],
        common: Callable[[], Path | None],
        known: Callable[[Mac], bool] = lambda _: False,
        program_of: Callable[[str], Path | None] = lambda _: None,
        grub: Callable[[Mac | None], bytes | None] = lambda _: None,
        kernel_of: Callable[[str], Path | None] = lambda _: None,
    ) -> None:
        self._files = files
        self._mac_of = mac_of
        self._tree_of = tree_of
        self._common = common
        self._serials = Serials(known)
        self._program_of = program_of
        self._grub = grub
        self._kernel_of = kernel_of
        self._open: dict[Path, Files] = {}

    def learn(self, serial: str, mac: Mac) -> None:
        """This machine's serial number, which its DISCOVER says before it asks for a file."""
        self._serials.learn(serial, mac)

    def open(self, name: str, client: str = "") -> File:
        """The file; TftpError as ``Files.open``."""
        path = clean(name)
        first, slash, rest = path.partition("/")
        if path in CONFIGURATIONS:
            words = self._grub(self._mac_of(client) if client else None)
            if words is not None:
                return Bytes(words)
        if "@" in path and (kernel := self._kernel_of(path)) is not None:
            return self._below(kernel.parent).open(kernel.name)
        tree = self._tree(first if slash else "", client)
        if tree is None:
            program = _PROGRAM.fullmatch(path)
            if program is not None and (its := self._program_of(program[1])) is not None:
                return self._below(its.parent).open(its.name)
            return self._files.open(name, client)
        below = self._below(tree)
        try:
            return below.open(path)
        except TftpError as error:
            if error.code != Code.NOT_FOUND or not slash:
                raise
        return below.open(rest)

    def _below(self, directory: Path) -> Files:
        found = self._open.get(directory)
        if found is None:
            found = self._open[directory] = Files(directory)
        return found

    def _tree(self, prefix: str, client: str) -> Path | None:
        mac = self._mac_of(client) if client else None
        if mac is None and _SERIAL.fullmatch(prefix):
            mac = self._serials.get(prefix)
        if mac is None and _MAC.fullmatch(prefix):
            mac = parse_mac(prefix.replace("-", ":"))
        if mac is not None:
            return self._tree_of(mac)
        return self._common() if _SERIAL.fullmatch(prefix) else None

    def close(self) -> None:
        """Give the directories up; closing twice is fine."""
        for files in self._open.values():
            files.close()
        self._open.clear()
        self._files.close()
