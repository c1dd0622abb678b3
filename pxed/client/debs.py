"""Debian packages for another processor: fetched and unpacked into the cache, never installed.

apt works in directories of its own here: this machine's list of architectures stays what it is.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pxed.client.kernel import cache_dir
from pxed.errors import HostError

MIRROR = "http://deb.debian.org/debian"
_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def fetch_package(
    package: str,
    arch: str,
    *,
    release: str = "bookworm",
    mirror: str = MIRROR,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """A directory with the package's files: from the cache, or fetched into it.

    A meta-package such as linux-image-arm64 stands for the one that it depends on. HostError.
    """
    kept = cache_dir() / "foreign" / arch / package
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=kept.parent) as name:
        work = Path(name)
        work.chmod(0o755)
        apt = Apt(work / "apt", arch, f"deb [signed-by={_KEYS}] {mirror} {release} main")
        progress(f"fetching {package}:{arch}")
        apt.run("apt-get", "-qq", "update")
        real = _real(apt.run("apt-cache", "depends", "--important", package), package)
        apt.run("apt-get", "-qq", "download", real)
        (archive,) = work.glob("apt/*.deb")
        fresh = unpack(archive, work / "files")
        for modules in (fresh / "lib/modules").glob("*"):
            _run(["depmod", "-b", str(fresh), modules.name], os.environ, work)
        try:
            fresh.rename(kept)
        except OSError:
            if not kept.is_dir():  # unless another program was quicker
                raise
    return kept


def _real(said: str, package: str) -> str:
    for line in said.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and package.startswith("linux-image-") and name.startswith("linux-"):
            return name
    return package


def unpack(archive: Path, into: Path) -> Path:
    """The new directory ``into`` with the files of a package; HostError."""
    into.mkdir()
    _run(["dpkg-deb", "-x", str(archive), str(into)], os.environ, into)
    return into


class Apt:
    """apt for one processor's packages, with lists, status and cache below ``place``.

    ``sources`` are the lines of its sources.list; this machine's own are not looked at.
    """

    def __init__(self, place: Path, arch: str, *sources: str) -> None:
        for folder in ("lists/partial", "cache/archives/partial", "parts"):
            (place / folder).mkdir(parents=True)
        (place / "status").touch()
        (place / "sources.list").write_text("".join(f"{line}\n" for line in sources))
        config = place / "apt.conf"
        config.write_text(
            f'APT::Architecture "{arch}";\nAPT::Architectures {{ "{arch}"; }};\n'
            f'Dir::State "{place}";\nDir::State::status "{place}/status";\n'
            f'Dir::State::Lists "{place}/lists";\nDir::Cache "{place}/cache";\n'
            f'Dir::Etc::sourcelist "{place}/sources.list";\n'
            f'Dir::Etc::sourceparts "{place}/parts";\n'
            f'Dir::Etc::preferencesparts "{place}/parts";\nDir::Etc::preferences "/dev/null";\n'
            'APT::Sandbox::User "root";\n'
            # Not what could be had, without a word of the rest.
            'Acquire::Languages "none";\nAPT::Update::Error-Mode "any";\n'
        )
        self._place = place
        self._env = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}

    def run(self, *argv: str) -> str:
        return _run(argv, self._env, self._place)


def _run(argv: Sequence[str], env: "os._Environ[str] | dict[str, str]", cwd: Path) -> str:
    if shutil.which(argv[0]) is None:
        raise HostError(f"{argv[0]} is missing: packages for other processors come by Debian's apt")
    try:
        done = subprocess.run(
            [*_WITH_US, *argv],
            env=env,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=True,
            timeout=900,
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]} took longer than 900 s: is the network up?") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip() or "no reason given").splitlines()
        why = next((line for line in lines if line.startswith("E: ")), lines[-1])
        raise HostError(f"{' '.join(argv[:3])} failed: {why}") from None
    return done.stdout
