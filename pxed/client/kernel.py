"""A Debian kernel for clients: fetched as a package into a cache, never installed on the host."""

import atexit
import gzip
import lzma
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pxed.errors import HostError

DEFAULT_PACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: ``root`` holds boot/ and lib/modules/, as the package does."""

    root: Path
    release: str

    @property
    def vmlinuz(self) -> Path:
        """The bzImage."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The directory with modules.dep and kernel/."""
        return self.root / "lib" / "modules" / self.release

    def closure(self, names: Iterable[str]) -> list[Path]:
        """Files of the named modules and of all that they need, each after what it needs.

        Paths are relative to ``modules``. Names that this kernel has built in, or does not know,
        are left out: a list may name drivers that only other kernels have.
        """
        needs: dict[str, tuple[Path, list[Path]]] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            file, _, rest = line.partition(":")
            needs[_name(file)] = (Path(file), [Path(word) for word in rest.split()])
        ordered: dict[Path, None] = {}
        for name in names:
            if (found := needs.get(name.replace("-", "_"))) is not None:
                file_path, below = found
                # modules.dep lists the nearest dependency first.
                ordered.update(dict.fromkeys([*reversed(below), file_path]))
        return list(ordered)

    def has_built_in(self, name: str) -> bool:
        """Whether this module's code is in the kernel itself."""
        try:
            lines = (self.modules / "modules.builtin").read_text().splitlines()
        except OSError:
            return False
        return name.replace("-", "_") in {_name(line) for line in lines}


def unpacked(module: Path) -> bytes:
    """A module file's content; it may be packed by xz, gzip or zstd. HostError without zstd."""
    data = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(data)
    if module.suffix == ".gz":
        return gzip.decompress(data)
    if module.suffix != ".zst":
        return data
    try:
        return subprocess.run(
            ["zstd", "-qdc"], input=data, check=True, capture_output=True, timeout=60
        ).stdout
    except FileNotFoundError:
        raise HostError("zstd is missing: apt install zstd") from None


def cache_dir() -> Path:
    """Where downloads are kept: $PXED_CACHE, $XDG_CACHE_HOME/pxed, or what is usual."""
    if chosen := os.environ.get("PXED_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "pxed"
    return Path("/var/cache/pxed") if os.geteuid() == 0 else Path.home() / ".cache" / "pxed"


def fetch_kernel(
    package: str = DEFAULT_PACKAGE,
    *,
    refresh: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Kernel:
    """The kernel that ``package`` stands for: from the cache, or downloaded with apt into it.

    ``refresh`` asks apt even when the cache has one. A cache that cannot be written costs a
    download each time, no more. HostError if apt cannot give the package.
    """
    kept = cache_dir() / "kernel" / package
    if not refresh and (kernel := _unpacked(kept)) is not None:
        return kernel
    fresh = _workplace(kept.parent)
    try:
        progress(f"downloading {package}")
        _download(package, fresh)
        kernel = _unpacked(fresh)
        if kernel is None:
            raise HostError(f"package {package} holds no kernel: name another one")
        if not os.access(kept.parent, os.W_OK) or fresh.parent != kept.parent:
            _forget_at_exit(fresh)
            return kernel
        old = _swap(fresh, kept)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        return Kernel(kept, kernel.release)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _download(package: str, into: Path) -> None:
    real = _resolve(package)
    box = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    _tool(["apt-get", "-qq", *box, "download", real], cwd=into, timeout=600)
    archive = next(into.glob("*.deb"), None)
    if archive is None:
        raise HostError(f"apt-get download {real} gave no file: run apt-get update")
    _tool(["dpkg-deb", "-x", archive.name, "."], cwd=into, timeout=120)
    archive.unlink()
    shutil.rmtree(into / "usr", ignore_errors=True)
    for release in (into / "lib" / "modules").iterdir():
        _tool(["depmod", "-b", str(into), release.name], cwd=into, timeout=60)


def _resolve(package: str) -> str:
    """The package with the files that a meta-package like linux-image-cloud-amd64 depends on."""
    said = _tool(["apt-cache", "depends", "--important", package], cwd=Path("/"), timeout=60)
    for line in said.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    return package


def _name(file: str) -> str:
    """A module's name from its file's: virtio-rng.ko is virtio_rng."""
    return Path(file).name.partition(".")[0].replace("-", "_")


def _unpacked(root: Path) -> Kernel | None:
    for release in sorted(root.glob("lib/modules/*/modules.dep"), reverse=True):
        kernel = Kernel(root, release.parent.name)
        if kernel.vmlinuz.is_file():
            return kernel
    return None


def _workplace(beside: Path) -> Path:
    """A new directory beside the cache entry, or in the temporary directory if that is no use."""
    try:
        beside.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".new-", dir=beside))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="pxed-kernel-"))


def _swap(fresh: Path, kept: Path) -> Path | None:
    """Put ``fresh`` in place of ``kept`` by renames; the old one's new place, if there was one."""
    fresh.chmod(0o755)
    old = Path(tempfile.mkdtemp(prefix=".old-", dir=kept.parent)) if kept.exists() else None
    if old is not None:
        kept.rename(old / "entry")
    try:
        fresh.rename(kept)
    except OSError:
        if _unpacked(kept) is None:  # unless another program was quicker and put the same there
            raise
        shutil.rmtree(fresh, ignore_errors=True)
    return old


def _forget_at_exit(path: Path) -> None:
    atexit.register(shutil.rmtree, path, ignore_errors=True)


def _tool(argv: Sequence[str], *, cwd: Path, timeout: float) -> str:
    try:
        done = subprocess.run(
            argv, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is missing: clients' kernels come from Debian's apt") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]} took longer than {timeout:.0f} s: is the network up?") from None
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip() or error.stdout.strip() or "no reason given").splitlines()[-1]
        raise HostError(f"{' '.join(argv[:2])} failed ({why}): try apt-get update") from None
    return done.stdout
