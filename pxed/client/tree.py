"""The root of a system that may have come from anywhere, looked at from outside.

No link in it leads out of it: what is read here is the system's own, and none of its programs run.
"""

import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from pxed.errors import UsageError
from pxed.images import natural

_LINKS = 40  # as the kernel's own limit
MACHINES = {3: "i386", 8: "MIPS", 20: "PowerPC", 21: "ppc64", 22: "s390x", 40: "arm",
            62: "x86-64", 183: "arm64", 243: "RISC-V", 258: "LoongArch"}  # fmt: skip
"""ELF's e_machine, by the names that people know."""
KERNEL = "install one in it (Debian: linux-image-amd64)"
NO_VMLINUZ = f"in /boot: {KERNEL}"
"""The end of an error where all of a kernel is there but itself."""


def plain(text: str) -> str:
    """``text`` on one line, without what a terminal would obey, or what is no UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in text)


class Tree:
    """The directory ``root`` as / of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, path: str) -> Path | None:
        """Where ``path`` lies here, links followed inside the root; None if it is not there."""
        waiting = [part for part in path.split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                done = done[:-1]
                continue
            here = self.root.joinpath(*done, part)
            try:
                if not stat.S_ISLNK(here.lstat().st_mode):
                    done.append(part)
                    continue
                target = os.readlink(here)
            except OSError:
                return None
            links += 1
            if links > _LINKS:
                return None
            if target.startswith("/"):
                done = []
            waiting += [each for each in target.split("/") if each not in ("", ".")][::-1]
        return self.root.joinpath(*done)

    def file(self, path: str) -> Path | None:
        """The regular file ``path``, or None."""
        found = self.find(path)
        return found if found is not None and found.is_file() else None

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """The beginning of a file; empty if there is none."""
        found = self.file(path)
        if found is None:
            return b""
        with found.open("rb") as file:
            return file.read(limit)

    def text(self, path: str) -> str:
        return self.read(path).decode(errors="replace")

    def names(self, path: str) -> list[str]:
        """What the directory ``path`` holds; nothing if there is none."""
        found = self.find(path)
        try:
            return sorted(os.listdir(found)) if found is not None else []
        except OSError:
            return []

    def is_system(self) -> bool:
        """Whether this looks like the root of an installed system; its /usr may be elsewhere."""
        if self.find("etc") is None:
            return False  # a /usr has an sbin/init too
        there = ("sbin/init", "usr/lib/os-release", "etc/os-release")
        if any(self.find(path) for path in there):
            return True
        lines = (line.split() for line in self.text("etc/fstab").splitlines())
        return any(line[1:2] == ["/usr"] and line[0][0] != "#" for line in lines)

    def title(self) -> str:
        """What the system calls itself."""
        for path in ("etc/os-release", "usr/lib/os-release"):
            if found := re.search(r'^PRETTY_NAME="?([^"\n]*)', self.text(path), re.MULTILINE):
                return plain(found[1])[:100]
        return "a system without a name"


def check_root(tree: Tree, where: str) -> None:
    """UsageError if the system in ``tree`` cannot be a PC seat's; ``where``: what it is called."""
    if tree.file("sbin/init") is None:
        raise UsageError(f"{where}: has no /sbin/init: install systemd-sysv and a kernel in it")
    for path in ("sbin/init", "bin/sh"):
        head = tree.read(path, 64)
        if head[:4] != b"\x7fELF":
            continue  # a script
        (machine,) = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)
        if machine not in (3, 62):
            name = MACHINES.get(machine, f"machine {machine}")
            raise UsageError(f"{where}: is a system for {name}, and seats of class x86 are x86-64")
        return


def kernel_in(trees: Sequence[Tree], where: str, wanted: str = "") -> tuple[str, Path]:
    """Release and bzImage of the kernel that seats boot: ``wanted``, else the newest with AoE.

    The first of ``trees`` is the root, the others its /boot and its EFI partition. UsageError with
    what is missing.
    """
    root = trees[0]
    releases = [
        name for name in root.names("lib/modules")
        if root.file(f"lib/modules/{name}/modules.dep") and (not wanted or name == wanted)
    ]  # fmt: skip
    if not releases:
        there = ", ".join(root.names("lib/modules"))
        if wanted and there:
            raise UsageError(f"{where}: has no kernel {wanted}; there is {there}")
        raise UsageError(f"{where}: has no kernel with modules: {KERNEL}")
    because = ""
    for release in sorted(releases, key=natural, reverse=True):
        known = root.text(f"lib/modules/{release}/modules.builtin")
        known += root.read(f"lib/modules/{release}/modules.dep", 16 << 20).decode(errors="replace")
        if "/aoe.ko" not in known:
            because = because or (
                f"kernel {release} has no AoE driver (aoe.ko): Debian has it in linux-image-amd64, "
                f"Ubuntu in linux-modules-extra-{release}"
            )
            continue
        vmlinuz = next(_images(trees, release), None)
        if vmlinuz is None:
            because = because or f"no vmlinuz of kernel {release} {NO_VMLINUZ}"
            continue
        _check_kernel(vmlinuz, f"{where}: kernel {release}")
        return release, vmlinuz
    raise UsageError(f"{where}: {because}")


def _images(trees: Sequence[Tree], release: str) -> Iterator[Path]:
    """Where distributions put the kernel image of a release."""
    flavour = release.rpartition("-")[2]
    for number, tree in enumerate(trees):
        below = "boot/" if number == 0 else ""
        places = [f"{below}vmlinuz-{release}", f"lib/modules/{release}/vmlinuz"]
        # The Boot Loader Specification: MACHINE-ID/RELEASE/linux.
        places += [f"{below}{name}/{release}/linux" for name in tree.names(below)]
        places.append(f"{below}vmlinuz-{flavour}")
        for place in places:
            if (found := tree.file(place)) is not None:
                yield found


def _check_kernel(path: Path, what: str) -> None:
    """The x86 boot protocol (Documentation/arch/x86/boot.rst): a bzImage that can do 64 bit."""
    with path.open("rb") as file:
        head = file.read(1024)
    if head[0x202:0x206] != b"HdrS":
        arm = head[0x38:0x3C] == b"ARM\x64"
        raise UsageError(f"{what} is {'for arm64' if arm else 'no bzImage'}: seats are x86-64")
    if not struct.unpack_from("<H", head, 0x236)[0] & 1:
        raise UsageError(f"{what} is a 32-bit kernel: seats are x86-64: {KERNEL}")
