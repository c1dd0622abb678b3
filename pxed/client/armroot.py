"""A root file system for another processor, looked at without running any of it.

Paths in it are followed as a system that has it as its root would: no symbolic link leads out.
"""

import gzip
import os
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pxed.client.kernel import Kernel, unpacked
from pxed.errors import HostError, UsageError

_LINKS = 40  # symbolic links on the way to one file, as in Linux
_LIBRARIES = ("usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib", "lib")
_AARCH64 = 183  # ELF's e_machine
_MACHINES = {3: "32-bit x86", 40: "32-bit ARM", 62: "x86-64", 243: "RISC-V"}
_VERSION = re.compile(rb"Linux version ([0-9A-Za-z.+~_-]+) ")
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
_LOADER = re.compile(r"program interpreter: (\S+)\]")
_IMAGE = (0x38, b"ARM\x64")  # the magic number of arm64's Image, and where it is
_LARGEST = 256 << 20


@dataclass(frozen=True, slots=True)
class ArmRoot:
    """The root in ``top``, a directory."""

    top: Path

    def find(self, name: str) -> Path | None:
        """Where ``name`` really is, None if it is not there; never outside of ``top``."""
        todo = [part for part in reversed(name.split("/")) if part not in ("", ".")]
        here: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del here[-1:]
                continue
            path = self.top.joinpath(*here, part)
            try:
                target = os.readlink(path)
            except OSError:
                here.append(part)
                continue
            links += 1
            if links > _LINKS:
                return None
            if target.startswith("/"):
                here = []
            todo += [each for each in reversed(target.split("/")) if each not in ("", ".")]
        path = self.top.joinpath(*here)
        return path if path.exists() else None

    def boot_directory(self) -> Path:
        """Where the Pi's firmware files are; UsageError if there are none."""
        for name in ("boot/firmware", "boot"):
            path = self.find(name)
            if path is not None and any(path.glob("start*.elf")):
                return path
        raise UsageError(
            f"{self.top}: neither /boot/firmware nor /boot has a Pi's start*.elf: mount the boot "
            "partition there, or name its directory: --boot DIR"
        )

    def check(self) -> None:
        """UsageError unless this is a whole system for arm64."""
        for name in ("etc", "usr", "lib/modules", "sbin/init"):
            if self.find(name) is None:
                raise UsageError(f"{self.top}: no installed system: no /{name}")
        init = self.find("sbin/init")
        assert init is not None
        machine = elf_machine(init)
        if machine is None:  # a script: its shell tells
            shell = self.find("bin/sh")
            machine = elf_machine(shell) if shell is not None else None
        if machine != _AARCH64:
            what = "no ELF program" if machine is None else _MACHINES.get(machine, str(machine))
            raise UsageError(
                f"{self.top}: its /sbin/init is for {what}, and a root for arm64 is wanted: take "
                "the 64-bit Raspberry Pi OS"
            )

    def kernel(self, image: Path) -> Kernel:
        """The kernel in ``image`` with its modules in this root; UsageError if they differ."""
        release = kernel_release(image)
        have = self.find("lib/modules")
        assert have is not None
        kernel = Kernel(have.parent.parent, release)
        if not (kernel.modules / "modules.dep").is_file():
            there = ", ".join(sorted(p.name for p in have.iterdir())) or "nothing"
            raise UsageError(
                f"{image.name} is Linux {release}, and /lib/modules has {there}: the boot "
                "directory and the root must be of one system"
            )
        for name, why in (("aoe", "its disks"), ("overlay", "its own layer"),
                          ("squashfs", "its root")):  # fmt: skip
            if not kernel.closure([name]) and not kernel.has_built_in(name):
                raise UsageError(
                    f"Linux {release} has no {name} driver, which a seat needs for {why}"
                )
        return kernel

    def kernel_options(self, release: str) -> frozenset[str]:
        """What this kernel was built with (y or m), by its own list; empty if there is none."""
        kept = self.find(f"boot/config-{release}")
        text = ""
        if kept is not None:
            text = kept.read_text(errors="replace")
        else:
            modules = self.find(f"lib/modules/{release}/kernel/kernel")
            for path in sorted(modules.glob("configs.ko*")) if modules is not None else []:
                text = _kept_config(unpacked(path))
        return frozenset(re.findall(r"^CONFIG_(\w+)=[ym]$", text, re.MULTILINE))

    def busybox(self) -> dict[str, bytes] | None:
        """Its busybox and what that needs, by their places in an initramfs; None if it has none."""
        for name in ("usr/bin/busybox", "bin/busybox"):
            path = self.find(name)
            if path is not None and elf_machine(path) == _AARCH64:
                return {"bin/busybox": path.read_bytes()} | dict(self._libraries(path, set()))
        return None

    def _libraries(self, program: Path, seen: set[str]) -> Iterator[tuple[str, bytes]]:
        said = _readelf(program)
        if (loader := _LOADER.search(said)) is not None:
            yield from self._library(loader[1], loader[1], seen)
        for name in _NEEDED.findall(said):
            for folder in _LIBRARIES:
                if self.find(f"{folder}/{name}") is not None:
                    yield from self._library(f"{folder}/{name}", f"lib/{name}", seen)
                    break
            else:
                raise UsageError(f"{self.top}: {program.name} needs {name}, which is not there")

    def _library(self, name: str, place: str, seen: set[str]) -> Iterator[tuple[str, bytes]]:
        place = place.strip("/")
        path = self.find(name)
        if path is None:
            raise UsageError(f"{self.top}: busybox needs {name}, which is not there")
        if Path(name).name in seen:  # the loader is also what libraries name
            return
        seen.add(Path(name).name)
        yield place, path.read_bytes()
        yield from self._libraries(path, seen)


def elf_machine(path: Path) -> int | None:
    """The processor that a program is for; None if it is no ELF file."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return None
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    return int(struct.unpack_from("<H", head, 18)[0])


def kernel_release(image: Path) -> str:
    """The release that an arm64 kernel image says it is; gzip'ed ones too, as Pis take them."""
    data = plain_kernel(image)
    found = _VERSION.search(data)
    if found is None:
        raise UsageError(f"{image}: says no Linux version: is it a kernel?")
    return found[1].decode()


def plain_kernel(image: Path) -> bytes:
    """The Image itself; UsageError if this is no 64-bit ARM kernel."""
    try:
        data = image.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{image}: cannot be read: {error}") from None
    at, magic = _IMAGE
    if data[at : at + 4] != magic:
        raise UsageError(f"{image}: is no 64-bit ARM kernel (an Image, or one packed by gzip)")
    return data


def _kept_config(module: bytes) -> str:
    """The configuration in configs.ko: gzip'ed between two marks (kernel/configs.c)."""
    begin, end = module.find(b"IKCFG_ST"), module.find(b"IKCFG_ED")
    if begin < 0 or end < begin:
        return ""
    try:
        return gzip.decompress(module[begin + 8 : end]).decode(errors="replace")
    except (OSError, EOFError, zlib.error):
        return ""


def _readelf(program: Path) -> str:
    try:
        return subprocess.run(
            ["readelf", "-d", "-l", "--wide", str(program)],
            capture_output=True, text=True, timeout=30, env={**os.environ, "LC_ALL": "C"},
        ).stdout  # fmt: skip
    except FileNotFoundError:
        raise HostError("readelf is missing: apt install binutils") from None
