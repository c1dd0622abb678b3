"""Debian's iPXE of another release than this machine's: fetched, checked and put in its place."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from pxed.client.debian import MIRROR, SECURITY
from pxed.client.debroot import cause_in
from pxed.client.debs import Apt, unpack
from pxed.client.imagedir import host_errors, workplace
from pxed.client.kernel import cache_dir
from pxed.errors import HostError, UsageError
from pxed.ipxe import MANIFEST, digest, waits_for_key

RELEASE = "trixie"
"""Whose iPXE asks for a script instead of waiting for a key, on UEFI."""

_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FOLDER = "usr/lib/ipxe"
_NEEDED, _MORE = ("snponly.efi", "undionly.kpxe"), ("ipxe-arm64.efi",)
_WITHOUT_SECURITY = ("sid", "unstable", "testing", "experimental")


def fetch_ipxe(
    target: Path,
    *,
    release: str = RELEASE,
    mirror: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, object]:
    """Put ``release``'s iPXE into the directory ``target``, with a manifest, which is returned.

    apt fetches the package and checks it against Debian's keys. Files of other names stay, and a
    server that runs goes on: each file is replaced whole, none is missing meanwhile. Nothing
    changes unless the package is whole. UsageError for an argument that cannot be, HostError if
    something is missing or fails.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", release):
        raise UsageError(f"{release!r} is no code name of a Debian release")
    if mirror is not None and not re.fullmatch(r"(https?|file|copy):/\S+", mirror):
        raise UsageError(f"{mirror!r} is no mirror: write a URL like {MIRROR}")
    if not _KEYS.is_file():
        raise HostError(f"{_KEYS} is missing: apt install debian-archive-keyring")
    with host_errors(target), workplace(cache_dir() / "ipxe") as work:
        progress(f"fetching Debian {release}'s ipxe")
        apt = Apt(work / "apt", "amd64", *_sources(release, mirror))
        try:
            apt.run("apt-get", "-qq", "update")
            apt.run("apt-get", "-qq", "download", "ipxe")
        except HostError as error:
            why = cause_in(release, str(error).partition(" failed: ")[2])
            raise HostError(f"ipxe cannot be fetched: {why}") if why else error from None
        (archive,) = (work / "apt").glob("*.deb")
        files = unpack(archive, work / "files") / _FOLDER
        lacks = [name for name in _NEEDED if not (files / name).is_file()]
        if lacks:
            raise HostError(f"{archive.name} has no {' and no '.join(lacks)}: take another release")
        names = [*_NEEDED, *(name for name in _MORE if (files / name).is_file())]
        said = {
            "package": "ipxe", "version": archive.name.split("_")[1].replace("%3a", ":"),
            "release": release, "mirror": re.sub("//[^/]*@", "//", mirror or MIRROR),
            "waits_for_key": waits_for_key((files / "snponly.efi").read_bytes()),
            "files": {name: _about(files / name) for name in names},
        }  # fmt: skip
        progress(f"putting {said['version']} into {target}")
        (files / MANIFEST).write_text(json.dumps(said, indent=1) + "\n")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name in (*names, MANIFEST):
                _replace(files / name, target / name)
        except OSError as error:
            raise HostError(f"{error.filename or target}: {error.strerror}") from error
    return said


def _sources(release: str, mirror: str | None) -> list[str]:
    signed = f"deb [signed-by={_KEYS}]"
    found = [f"{signed} {mirror or MIRROR} {release} main"]
    if mirror is None and release not in _WITHOUT_SECURITY:
        found.append(f"{signed} {SECURITY} {release}-security main")
    return found


def _about(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"size": len(data), "sha256": digest(data)}


def _replace(source: Path, place: Path) -> None:
    """A copy of ``source`` in its place: there whole, or as it was."""
    fresh = place.with_name(f".{place.name}.new")
    try:
        with source.open("rb") as data, fresh.open("wb") as out:
            shutil.copyfileobj(data, out)
            out.flush()
            os.fsync(out.fileno())
        fresh.chmod(0o644)
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)
