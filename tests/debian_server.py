"""A Debian machine with systemd for tests: Debian's packages and this checkout, in QEMU.

pxed is there as a package would put it: programs in /usr/bin, modules where Debian's Python looks.
Units and configuration are not installed: /src/systemd has them, and the test follows the guide.
"""

import importlib.metadata
import json
import re
import shutil
import time
from pathlib import Path

from pxed.client.debian import sources
from pxed.client.debroot import Recipe, fetch_packages, run_alone
from pxed.client.imagedir import squash
from pxed.client.kernel import fetch_kernel
from tests.conftest import from_mirror
from tests.guest import System, build_initrd

ROOT = Path(__file__).parents[1]
PACKAGES = ("python3", "ipxe", "libcap2-bin")
WORDS = "net.ifnames=0 systemd.show_status=false"
_MODULES = Path("usr/lib/python3/dist-packages")
_UNUSED = shutil.ignore_patterns("__pycache__", "*.c", "*.pyx", "tests")


def build_machine(folder: Path) -> System:
    """Its kernel, initrd and disk in ``folder``; root's password is empty. A minute or two."""
    kernel = fetch_kernel()
    build_initrd(kernel, folder / "initrd", "/sbin/init", "virtio_net")
    today = int(time.time()) // 86400 * 86400
    log = folder / "log"
    recipe = Recipe("bookworm", PACKAGES, sources("bookworm", None), today)
    with from_mirror():
        archive = fetch_packages(recipe, log, refresh=False, progress=lambda _text: None)
    root = folder / "root"
    root.mkdir()
    run_alone(["tar", "-C", str(root), "--zstd", "--numeric-owner", "-xpf", str(archive)], log,
              timeout=600)  # fmt: skip
    _install(root)
    # As a package's postinst does; the service itself may not write there, and would compile all of
    # it anew at each start. Without times, which the image need not keep.
    run_alone(
        ["chroot", str(root), "python3", "-m", "compileall", "-q", "-x", "/tests/",
         "--invalidation-mode", "unchecked-hash", f"/{_MODULES}"], log, timeout=600,
    )  # fmt: skip
    squash(root, folder / "disk", "-comp", "lz4", timeout=600)
    shutil.rmtree(root)
    return System(kernel.vmlinuz, folder / "initrd", folder / "disk")


def _install(root: Path) -> None:
    site = root / _MODULES
    for name in sorted(_needed("pxed")):
        _copy_distribution(name, site)
    for package in ("pxed", "aoe_fast"):
        shutil.copytree(ROOT / package, site / package, ignore=_UNUSED)
    for program, module in (("pxed", "pxed.cli"), ("aoe-fast", "aoe_fast.cli")):
        path = root / "usr/bin" / program
        path.write_text(f"#!/usr/bin/python3\nfrom {module} import main\nmain()\n")
        path.chmod(0o755)
    shutil.copytree(ROOT / "systemd", root / "src/systemd")
    image = root / "var/lib/pxed/images/lab/1"
    image.mkdir(parents=True)
    for name in ("boot", "root"):
        (image / f"{name}.img").write_bytes(name.encode() * 2048)
    manifest = {"name": "lab", "version": "1", "class": "x86",
                "devices": {"boot": "boot.img", "root": "root.img"}}  # fmt: skip
    (image / "manifest.json").write_text(json.dumps(manifest))
    shadow = root / "etc/shadow"
    shadow.write_text(re.sub(r"^root:[^:]*:", "root::", shadow.read_text(), flags=re.MULTILINE))
    (root / "etc/hostname").write_text("bootserver\n")


def _needed(name: str) -> set[str]:
    """The distributions that ``name`` depends on here, without itself and without extras."""
    found: set[str] = set()
    left = [name]
    while left:
        for line in importlib.metadata.requires(left.pop()) or ():
            word = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-")
            if "extra ==" in line or word in found or word == name:
                continue
            try:
                importlib.metadata.distribution(word)
            except importlib.metadata.PackageNotFoundError:
                continue  # for another Python or system
            found.add(word)
            left.append(word)
    return found


def _copy_distribution(name: str, site: Path) -> None:
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(distribution.locate_file(file)), target)
