"""A Raspberry Pi's boot directory: what its config.txt says, and what each model lacks in it.

Sources: Raspberry Pi's documentation of config.txt (conditional filters, boot options), and the
files that their loaders ask for.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MODELS = ("3B+", "4B")
"""Those that can boot from a network."""
KERNEL = "kernel8.img"
INITRAMFS = "initramfs"

# A model, the sections of config.txt that are its own, its first files, and its device tree under
# the names that Raspberry Pi's kernel and Linux's own have for it.
_SECTIONS = {"3B+": {"all", "pi3", "pi3+"}, "4B": {"all", "pi4"}}
_FIRST = {"3B+": ("bootcode.bin", "start.elf", "fixup.dat"), "4B": ("start4.elf", "fixup4.dat")}
_TREES = {
    "3B+": ("bcm2710-rpi-3-b-plus.dtb", "bcm2837-rpi-3-b-plus.dtb"),
    "4B": ("bcm2711-rpi-4-b.dtb",),
}
_FIRMWARE = "copy it from the boot partition of Raspberry Pi OS, or from Debian's raspi-firmware"
_AGAIN = "build the image again: pxed image build raspios-like"


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that keeps ``models`` from booting out of a directory, and what to do about it."""

    models: tuple[str, ...]
    text: str
    todo: str

    @property
    def all_models(self) -> bool:
        return self.models == MODELS

    def __str__(self) -> str:
        return self.text if self.all_models else f"{', '.join(self.models)}: {self.text}"


def settings(text: str, model: str) -> dict[str, str]:
    """What config.txt sets for a model: the last word for each name; ``initramfs`` is a name too.

    Sections for single boards, screens or pins count as none of its: nobody here knows about them.
    """
    found: dict[str, str] = {}
    ours = True
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            # Unlike another model's, a filter of another kind narrows what stands before it.
            name = line[1:-1].strip().lower()
            ours = name in _SECTIONS[model]
        elif not ours or not line or line.startswith("#"):
            continue
        elif line.startswith("initramfs "):
            found["initramfs"] = line.removeprefix("initramfs ").strip()
        elif "=" in line:
            name, _, value = line.partition("=")
            found[name.strip()] = value.strip()
    return found


def lacks(tree: Path, shelf: int | None = None) -> list[Lack]:
    """What is missing in a boot directory, the same for several models once.

    ``shelf``: the one that its class has; None: any will do.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for model in MODELS:
        for text, todo in _lacks(tree, model, shelf):
            found.setdefault((text, todo), []).append(model)
    return [Lack(tuple(models), text, todo) for (text, todo), models in found.items()]


def _lacks(tree: Path, model: str, shelf: int | None) -> Iterator[tuple[str, str]]:
    for name in _FIRST[model]:
        if not _there(tree, name):
            yield f"{name} is missing", _FIRMWARE
    if not any(_there(tree, name) for name in _TREES[model]):
        yield f"{_TREES[model][0]} is missing", _FIRMWARE
    config = _text(tree / "config.txt")
    if config is None:
        yield "config.txt is missing, so no initramfs is loaded", _AGAIN
        return
    said = settings(config, model)
    if prefix := said.get("os_prefix"):
        yield f"config.txt looks for the kernel below os_prefix={prefix}", f"drop that, or {_AGAIN}"
    kernel = said.get("kernel", KERNEL)
    if not _there(tree, kernel):
        todo = "put the 64-bit kernel there under that name"
        yield f"the kernel {kernel} is missing", todo
    if said.get("arm_64bit") == "0":
        yield "config.txt has arm_64bit=0, and the kernel is a 64-bit one", "set arm_64bit=1"
    yield from _initramfs(tree, said)
    name = said.get("cmdline", "cmdline.txt")
    yield from _cmdline(name, _text(tree / name), shelf)


def _initramfs(tree: Path, said: dict[str, str]) -> Iterator[tuple[str, str]]:
    name = said.get("initramfs", "").split(" ")[0]
    if not name and said.get("auto_initramfs") == "1":
        name = f"{INITRAMFS}8"
    if not name:
        todo = f"add the line: initramfs {INITRAMFS} followkernel"
        yield "config.txt has no initramfs line, so the root is never looked for", todo
    elif not _there(tree, name):
        yield f"the initramfs {name} is missing", _AGAIN


def _cmdline(name: str, text: str | None, shelf: int | None) -> Iterator[tuple[str, str]]:
    if text is None:
        yield f"{name} is missing, so no root is named", _AGAIN
        return
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        yield f"{name} has {len(lines)} lines, and only the first counts", "make it one line"
    words = lines[0].split() if lines else []
    if not _over_aoe(words):
        shelf = 17 if shelf is None else shelf
        todo = f"add pxed.shelf={shelf} aoe.aoe_deadsecs=0 and drop root="
        yield f"{name} names no root over AoE", todo
        return
    # The last word for a name counts, as in functions.sh.
    said = dict(word.split("=", 1) for word in words if "=" in word)
    has = said.get("pxed.shelf", "16")
    if shelf is not None and "pxed.root" not in said and has != str(shelf) and _ours(words):
        yield (
            f"{name} says pxed.shelf={has}, and its class has shelf {shelf}",
            (f"build the image for that shelf, or set shelf = {has}"),
        )


def _ours(words: Sequence[str]) -> bool:
    return any(word.startswith(("pxed.shelf=", "pxed.root=")) for word in words)


def _over_aoe(words: Sequence[str]) -> bool:
    """Ours, or what others write: root=/dev/etherd/e17.1, root=live:AOEINTERFACE=e17.1."""
    roots = [word for word in words if word.startswith("root=")]
    return _ours(words) or any("/etherd/" in word or "AOEINTERFACE" in word for word in roots)


def _there(tree: Path, name: str) -> bool:
    with contextlib.suppress(OSError):
        return (tree / name).is_file()
    return False


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
