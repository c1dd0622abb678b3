"""Systems with initramfses of others: Debian's packages alone, nothing of ours."""

import subprocess
from pathlib import Path

from pxed.client.debroot import run_alone
from tests.boot.debian import installed


def root_of(place: Path, name: str, packages: tuple[str, ...], modules: tuple[str, ...]) -> Path:
    """The root of a machine called ``name``, in ``place``.

    ``modules`` are packages of modules for dracut. They ask for all of dracut, which cannot be
    beside initramfs-tools: only their files are taken.
    """
    root = installed(place, packages)
    (root / "etc/hostname").write_text(f"{name}\n")
    (root / "etc/fstab").write_text("")
    get = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *modules]
    subprocess.run(get, cwd=place, check=True, capture_output=True, timeout=300)
    for package in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    return root


def initramfs(root: Path, target: Path, *words: str) -> None:
    """Make one inside the root: ``words`` is the command, but for the file to write."""
    enter = 'for d in dev proc sys; do mount --rbind "/$d" "$1/$d"; done; shift; exec "$@"'
    inside = root / "initrd"
    run_alone(
        ["sh", "-c", enter, "sh", str(root), "chroot", str(root), *words, "/initrd"],
        root.parent / "log", timeout=600,
    )  # fmt: skip
    inside.rename(target)
    target.chmod(0o644)


def by_dracut(root: Path, target: Path, module: str) -> None:
    """The same by dracut, with this module."""
    words = ("--quiet", "--force", "--no-hostonly", "--kver", release(root), "--add", module)
    initramfs(root, target, "dracut", *words)


def release(root: Path) -> str:
    (found,) = (root / "lib/modules").iterdir()
    return found.name


def kernel(root: Path, target: Path) -> None:
    target.write_bytes((root / f"boot/vmlinuz-{release(root)}").read_bytes())


def squash(source: Path, target: Path) -> None:
    subprocess.run(
        ["mksquashfs", str(source), str(target), "-comp", "lz4", "-noappend", "-quiet",
         "-no-progress"], check=True, capture_output=True,
    )  # fmt: skip
