"""Builds a Debian image: packages, our boot support, a compressed root and a boot disk."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pxed.client.account import check_hash
from pxed.client.bootdisk import build_bootdisk
from pxed.client.debroot import Recipe, fetch_packages, finish, packages_in, unpack
from pxed.client.imagedir import PRIVATE, TFM, Manifest, day_of, epoch_now, image_directory, squash
from pxed.client.kernel import Kernel, cache_dir
from pxed.client.tfm import System, build_tfm, maintenance_words
from pxed.errors import HostError, UsageError

MIRROR = "http://deb.debian.org/debian"
SECURITY = "http://security.debian.org/debian-security"
KERNEL = "linux-image-amd64"
COMPRESSIONS = {
    "zstd": ("-comp", "zstd", "-Xcompression-level", "15"),
    "lz4": ("-comp", "lz4", "-Xhc"),
}
INITRAMFS = {"initramfs-tools": (), "dracut": ("dracut-core",)}
"""What makes the initramfs, and the packages for it that are not in every image."""

CMDLINE = (
    "boot=pxed aoe.aoe_deadsecs=0 pxed.shelf={shelf} console=tty0 console=ttyS0 quiet loglevel=3 "
    "random.trust_cpu=on cryptomgr.notests"
)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_:=~*?/-]*")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LOCALE = re.compile(r"[A-Za-z_]+(\.[A-Za-z0-9-]+)?(@[a-z]+)?")
_KEYBOARD = re.compile(r"[a-z]{2,16}(:[A-Za-z0-9_-]{1,32})?")


def build_debian(
    destination: Path,
    *,
    name: str,
    version: str,
    release: str = "bookworm",
    packages: Sequence[str] = (),
    script: bytes = b"",
    user: str = "",
    password: str = "",
    locale: str = "C.UTF-8",
    keyboard: str = "",
    kernel: str = KERNEL,
    mirror: str | None = None,
    shelf: int = 16,
    cmdline: str = "",
    compression: str = "zstd",
    initramfs: str = "initramfs-tools",
    maintenance: bool = False,
    refresh: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the image into the directory ``destination``, which must not be there or be empty.

    ``script`` runs in the root when all packages are there; ``user`` is an account with sudo;
    ``password`` its hash (crypt(5)), and without one it is locked. ``keyboard`` is the layout of
    the console and of X, LAYOUT or LAYOUT:VARIANT; empty: the kernel's, which is American.
    Packages of one day are fetched once, unless ``refresh``. With the same arguments and the same
    SOURCE_DATE_EPOCH (default: today, 0:00 UTC) the same bytes come out, as far as ``mirror`` still
    offers the same.
    ``maintenance``: with a disk for maintenance mode, from which it is installed. Appears whole or
    not at all. UsageError for an argument that cannot be, HostError if something is missing or
    fails: it then names the log.
    """
    _check(release, packages, user, locale, kernel, mirror)
    if keyboard and not _KEYBOARD.fullmatch(keyboard):
        raise UsageError(f"{keyboard!r} is no keyboard: write it like de or de:nodeadkeys")
    if password and not user:
        raise UsageError("a password is an account's: --user NAME --password-file FILE")
    if password:
        check_hash(password)
    if compression not in COMPRESSIONS:
        raise UsageError(f"{compression!r}: compression is one of {', '.join(COMPRESSIONS)}")
    if initramfs not in INITRAMFS:
        raise UsageError(f"{initramfs!r}: initramfs is one of {', '.join(INITRAMFS)}")
    if os.geteuid() != 0:
        raise HostError("a Debian image is built as root: sudo pxed image build debian")
    if shutil.which("mmdebstrap") is None:
        raise HostError("mmdebstrap is missing: apt install mmdebstrap")
    words = f"{CMDLINE.format(shelf=shelf)} {cmdline}".strip()
    epoch = epoch_now()
    released = day_of(epoch)
    manifest = Manifest(
        name, version, "x86", words, released=released,
        maintenance=maintenance_words(shelf) if maintenance else "",
    )  # fmt: skip
    if maintenance:
        manifest.devices.update(TFM)
    more = [kernel, *INITRAMFS[initramfs]]
    more += ["sudo"] if user else []
    more += ["locales"] if locale not in ("C", "C.UTF-8", "POSIX") else []
    more += ["keyboard-configuration", "console-setup"] if keyboard else []
    # In one order, so that the same set is fetched once, however it was asked for.
    recipe = Recipe(release, tuple(sorted({*more, *packages})), sources(release, mirror), epoch)
    with image_directory(destination, manifest) as work:
        log = new_log("debian", f"{name}@{version}")
        progress(f"the log is {log}")
        archive = fetch_packages(recipe, log, refresh=refresh, progress=progress)
        progress("unpacking")
        root = work.parent / "root"
        unpack(archive, root, log)
        progress("making it a network client")
        finish(
            root,
            log,
            image=f"{name}@{version}",
            initramfs=initramfs,
            account=user,
            locale=locale,
            keyboard=keyboard,
            own=script,
            epoch=epoch,
            maintenance=maintenance,
            password=password,
        )
        said = packages_in(root)
        (work / "packages").write_text(said)
        manifest.origin.update(
            source=re.sub("//[^/]*@", "//", mirror or MIRROR), kind=f"Debian {release}",
            packages=hashlib.sha256(said.encode()).hexdigest(),
        )  # fmt: skip
        progress("making the boot disk")
        for file in ("vmlinuz", "initrd", *(["initrd.own"] if maintenance else [])):
            shutil.copyfile(root / "boot" / file, work / file)
            os.utime(work / file, (epoch, epoch))
            (root / "boot" / file).unlink()
        build_bootdisk(
            work / "boot.img",
            vmlinuz=work / "vmlinuz",
            initrd=work / "initrd",
            cmdline=words,
            epoch=epoch,
        )
        progress("compressing the root file system")
        options = COMPRESSIONS[compression]
        squash(root, work / "root.squashfs", *options, epoch=epoch, timeout=3600)
        if password:
            (work / "root.squashfs").chmod(PRIVATE)
        if maintenance:
            progress("making the maintenance disk")
            own = work / "initrd.own"
            parts = System(
                name, version, released, work / "vmlinuz", own, work / "root.squashfs", words
            )
            (modules,) = (root / "lib/modules").iterdir()
            kernel_files = Kernel(root, modules.name)
            build_tfm(work / "tfm.img", parts, kernel_files, shelf=shelf, epoch=epoch)
            own.unlink()
        shutil.copyfile(log, work / "build.log")
    progress(f"built {name}@{version}")
    return manifest


def sources(release: str, mirror: str | None) -> tuple[str, ...]:
    """Lines for sources.list: one mirror as it is, or Debian's own with updates and fixes."""
    parts = "main non-free-firmware" if release not in ("bullseye", "buster") else "main"
    if mirror is not None:
        return (f"deb {mirror} {release} {parts}",)
    lines = [f"deb {MIRROR} {release} {parts}"]
    if release not in ("sid", "unstable", "testing"):
        lines.append(f"deb {MIRROR} {release}-updates {parts}")
        lines.append(f"deb {SECURITY} {release}-security {parts}")
    return tuple(lines)


def _check(
    release: str,
    packages: Sequence[str],
    user: str,
    locale: str,
    kernel: str,
    mirror: str | None,
) -> None:
    for word in (release, kernel, *packages):
        if not _PLAIN.fullmatch(word):
            raise UsageError(f"{word!r} is no name of a Debian release or package")
    if user and not _ACCOUNT.fullmatch(user):
        raise UsageError(f"{user!r} is no name of an account: lower-case letters, digits, - and _")
    if not _LOCALE.fullmatch(locale):
        raise UsageError(f"{locale!r} is no locale: write it like de_DE.UTF-8")
    if mirror is not None and not re.fullmatch(r"(https?|file|copy):/\S+", mirror):
        raise UsageError(f"{mirror!r} is no mirror: write a URL like {MIRROR}")


def new_log(folder: str, image: str) -> Path:
    """An empty log for the making of ``image``, in the cache; HostError if it cannot be there."""
    log = cache_dir() / folder / f"{image}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
    except OSError as error:
        raise HostError(f"{log} cannot be written: {error.strerror}: set PXED_CACHE") from None
    return log
