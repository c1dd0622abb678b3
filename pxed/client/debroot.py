"""A Debian root file system from packages: fetched once into the cache, then made ours in a copy.

Everything that mounts runs in mount and process namespaces of its own which end with this program,
however it ends.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO

from pxed.client.imagedir import workplace
from pxed.client.initramfs import script
from pxed.client.kernel import cache_dir
from pxed.errors import HostError

_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
_ALONE = (
    *_WITH_US, "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--",
)  # fmt: skip
_KEPT = 4  # package sets in the cache
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BASE = (
    "systemd-sysv", "systemd-resolved", "libnss-myhostname", "udev", "kmod", "dbus",
    "initramfs-tools", "busybox", "zstd", "e2fsprogs", "iproute2", "ca-certificates",
)  # fmt: skip

# What of ours goes into the root: file of this package, place, mode.
FILES = (
    ("initramfs-tools/hook", "usr/share/initramfs-tools/hooks/pxed", 0o755),
    ("initramfs-tools/boot-script", "usr/share/initramfs-tools/scripts/pxed", 0o644),
    ("initramfs-tools/conf-hook", "usr/share/initramfs-tools/conf-hooks.d/pxed", 0o644),
    ("dracut/module-setup.sh", "usr/lib/dracut/modules.d/90pxed/module-setup.sh", 0o755),
    ("dracut/parse.sh", "usr/lib/dracut/modules.d/90pxed/parse.sh", 0o755),
    ("dracut/mount.sh", "usr/lib/dracut/modules.d/90pxed/mount.sh", 0o755),
    ("dracut/gpt-auto.sh", "usr/lib/dracut/modules.d/90pxed/gpt-auto.sh", 0o755),
    ("dracut/few-events.sh", "usr/lib/dracut/modules.d/90pxed/few-events.sh", 0o755),
    ("functions.sh", "usr/share/pxed/functions.sh", 0o644),
    ("layers.sh", "usr/share/pxed/layers.sh", 0o644),
    ("keep.sh", "usr/share/pxed/keep.sh", 0o644),
    ("installer/state.sh", "usr/share/pxed/state.sh", 0o644),
    ("local.sh", "usr/share/pxed/local.sh", 0o644),
    ("wake.sh", "usr/share/pxed/wake.sh", 0o644),
    ("modules", "usr/share/pxed/modules", 0o644),
    ("adopt.sh", "usr/share/pxed/adopt.sh", 0o644),
    ("initrd.sh", "usr/share/pxed/initrd.sh", 0o644),
    ("disks", "usr/share/pxed/disks", 0o644),
    ("good.sh", "usr/sbin/pxed-good", 0o755),
    ("system/pxed-good.service", "usr/lib/systemd/system/pxed-good.service", 0o644),
    ("report.sh", "usr/sbin/pxed-report", 0o755),
    ("system/pxed-running.service", "usr/lib/systemd/system/pxed-running.service", 0o644),
    ("system/ssh.conf", "usr/lib/systemd/system/ssh.service.d/pxed.conf", 0o644),
)  # fmt: skip

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What decides which packages there are. ``epoch`` is the date, in seconds since 1970."""

    release: str
    packages: tuple[str, ...]
    sources: tuple[str, ...]
    epoch: int

    def digest(self) -> str:
        """The same for the same packages of the same day."""
        said = {**asdict(self), "epoch": self.epoch // 86400, "base": BASE}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]


def fetch_packages(recipe: Recipe, log: Path, *, refresh: bool, progress: Progress) -> Path:
    """The tar archive of a root with the packages: from the cache, or made with mmdebstrap into it.

    HostError if mmdebstrap fails: with the first thing that did, and ``log`` has the rest.
    """
    cache = cache_dir() / "debian"
    kept = cache / f"{recipe.digest()}.tar.zst"
    if kept.is_file() and not refresh:
        progress("packages: from the cache")
        kept.touch()
        return kept
    with workplace(cache) as work:
        fresh = work / kept.name
        argv = [
            "mmdebstrap", "--mode=root", "--variant=minbase",
            f"--include={','.join((*BASE, *recipe.packages))}",
            recipe.release, str(fresh), *recipe.sources,
        ]  # fmt: skip
        # The initramfs is made once, at the end.
        env = {"INITRD": "No", "TMPDIR": str(work), "SOURCE_DATE_EPOCH": str(recipe.epoch)}
        run_alone(
            argv, log, env=env, progress=_steps(progress), timeout=3600, what="fetching packages",
            cause=partial(cause_in, recipe.release),
        )  # fmt: skip
        fresh.replace(kept)
    for old in sorted(cache.glob("*.tar.zst"), key=lambda p: p.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return kept


def unpack(archive: Path, root: Path, log: Path) -> None:
    """The archive's content in the new directory ``root``, and our own files."""
    root.mkdir()
    argv = [
        "tar",
        "-C",
        str(root),
        "--zstd",
        "--xattrs",
        "--xattrs-include=*",
        "-xpf",
        str(archive),
    ]
    run_alone([*argv, "--numeric-owner"], log, timeout=600)
    put_files(root)


def packages_in(root: Path) -> str:
    """What is installed in ``root``: NAME VERSION ARCHITECTURE, a line each, in one order."""
    found = []
    for about in (root / "var/lib/dpkg/status").read_text(errors="replace").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in about.splitlines() if ": " in line[:30])
        if fields.get("Status", "").endswith(" installed"):
            found.append(" ".join(fields[key] for key in ("Package", "Version", "Architecture")))
    return "".join(f"{line}\n" for line in sorted(found))


def put_files(root: Path, files: Sequence[tuple[str, str, int]] = FILES) -> None:
    """Our own files, where they belong in ``root``: file of this package, place, mode."""
    for name, place, mode in files:
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(script(name))
        target.chmod(mode)


def finish(
    root: Path,
    log: Path,
    *,
    image: str,
    initramfs: str,
    account: str,
    locale: str,
    own: bytes,
    epoch: int,
    maintenance: bool = False,
    password: str = "",
    keyboard: str = "",
) -> None:
    """Run finish.sh in ``root`` with the host's network, and ``own`` from within it."""
    inside = root.parent / "inside"
    inside.mkdir()
    (inside / "finish").write_bytes(script("finish.sh"))
    (inside / "script").write_bytes(own)
    enter = (
        'mount --bind /dev "$1/dev" && mount -t proc proc "$1/proc" && '
        'mount -t sysfs sysfs "$1/sys" && mount -t tmpfs run "$1/run" && '
        'mount --bind "$2" "$1/tmp" && mkdir -p "$1/run/systemd/resolve" && '
        'cp /etc/resolv.conf "$1/run/systemd/resolve/stub-resolv.conf" && '
        'exec chroot "$1" /bin/sh /tmp/finish'
    )
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    env = {
        "IMAGE": image, "INITRAMFS": initramfs, "ACCOUNT": account, "LOCALE": locale,
        "MAINTENANCE": "yes" if maintenance else "", "PASSWORD": password, "KEYBOARD": keyboard,
        "SOURCE_DATE_EPOCH": str(epoch), "INITRD": "No", "HOME": "/root",
    }  # fmt: skip
    step = inside / "step"  # finish.sh says there what it is at
    argv = ["sh", "-c", enter, "enter", str(root), str(inside)]
    run_alone(
        argv, log, env=env, timeout=3600,
        what=lambda: step.read_text().strip() if step.is_file() else "entering the new root",
    )  # fmt: skip
    shutil.rmtree(inside)


def run_alone(
    argv: Sequence[str],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    progress: Progress = lambda _: None,
    timeout: float,
    what: str | Callable[[], str] = "",
    cause: Callable[[str], str] = lambda _: "",
) -> None:
    """Run a program in namespaces of its own; what it says goes to ``log`` and ``progress``.

    HostError if it fails or is missing, with the first line for which ``cause`` has words, else
    with its last ones; ``what``: what to call it then.
    """
    if shutil.which(argv[0]) is None:
        raise HostError(f"{argv[0]} is missing: apt install {argv[0]}")
    base = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    passed = {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    last = why = ""
    with (
        log.open("ab") as out,
        subprocess.Popen(
            [*_WITH_US, "timeout", "--kill-after=10", str(timeout), *_ALONE, *argv],
            env={**base, **passed, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=0o022,  # what is made in a root must not depend on the caller's
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for raw in _lines(process.stdout):
                if raw.endswith(b"\n"):  # the rest was only for the moment
                    out.write(raw)
                    out.flush()
                line = raw.decode(errors="replace").strip()
                last = line or last
                why = why or cause(line)
                progress(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        text = (why or last)[:200] or process.returncode
        called = what() if callable(what) else what
        raise HostError(f"{called or argv[0]} failed ({text}): see {log}")


_CAUSES = (
    (r"E: (?:Unable to locate package|Couldn't find any package by \w+) '?([^'\s]+)'?.*",
     r"{release} has no package \1"),
    (r"E: Package '(\S+)' has no installation candidate", r"{release} has no package \1"),
    (r"E: The repository '(\S+) .*' (?:does not have a|no longer has a) Release file.*",
     r"\1 has no release {release}"),
    (r"E: Failed to fetch (\S+)\s+(.*)", r"\1: \2"),
    (r"dpkg: error processing (?:package|archive) (\S+) .*", r"package \1 cannot be installed"),
    (r".*: ([Nn]o space left on device).*", r"\1"),
    # Not its own, which only say that it failed; what the programs below it said comes before.
    (r"E: (?!mmdebstrap |setup failed|run_chroot failed)(.*)", r"\1"),
)  # fmt: skip


def cause_in(release: str, line: str) -> str:
    """What a line of mmdebstrap's says about why it fails, in a few words; empty: nothing."""
    for pattern, words in _CAUSES:
        if (found := re.fullmatch(pattern, line)) is not None:
            return found.expand(words).replace("{release}", release)
    return ""


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines as they come; one that ends in a carriage return shows progress."""
    rest = b""
    while data := os.read(stream.fileno(), 65536):
        *whole, rest = re.split(rb"(?<=[\r\n])", rest + data)
        yield from whole
    if rest:
        yield rest + b"\n"


_OWN = re.compile(r"signed-by|received signal|removing tempdir")  # of interest to nobody


def _steps(progress: Progress) -> Progress:
    """mmdebstrap's own announcements, of all that it says."""

    def show(line: str) -> None:
        if line.startswith("I: ") and line.endswith("...") and not _OWN.search(line):
            progress(f"packages: {line[3:-3]}")

    return show
