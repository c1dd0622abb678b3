"""Programs of this machine for an initramfs, with the libraries that they need."""

import re
import shutil
import subprocess
from pathlib import Path

from pxed.client.archive import Cpio
from pxed.errors import HostError

_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)")


def add_programs(archive: Cpio, programs: dict[str, str]) -> None:
    """Put programs and their libraries into ``archive``; ``programs`` maps name to Debian package.

    Programs go to /sbin; libraries where the program looks for them. HostError if one is missing.
    """
    libraries: dict[str, None] = {}
    for name, package in programs.items():
        path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if path is None:
            raise HostError(f"{name} is missing: apt install {package}")
        archive.file(f"sbin/{name}", Path(path).read_bytes(), 0o755)
        said = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=60)
        libraries.update(dict.fromkeys(_LIBRARY.findall(said.stdout)))
    for library in sorted(libraries):
        archive.file(library, Path(library).read_bytes(), 0o755)
