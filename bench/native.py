"""The C programs of the bench, compiled when first used."""

import hashlib
import os
import subprocess
from pathlib import Path

from pxed.errors import HostError

SOURCES = Path(__file__).parent / "native"
BUILT = Path(__file__).parent / "build"
FLAGS = ["-O3", "-march=native", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]


def program(name: str) -> Path:
    """The path of ``native/NAME.c`` as a program; HostError if it cannot be compiled."""
    source = SOURCES / f"{name}.c"
    known = hashlib.sha256(source.read_bytes())
    for header in sorted(SOURCES.glob("*.h")):
        known.update(header.read_bytes())
    path = BUILT / f"{name}-{known.hexdigest()[:16]}"
    if path.exists():
        return path
    BUILT.mkdir(exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run(
            ["gcc", *FLAGS, "-o", str(fresh), str(source)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise HostError("no gcc: the bench compiles its load generator; install gcc") from None
    except subprocess.CalledProcessError as error:
        raise HostError(f"{source}: does not compile: {error.stderr.strip()}") from None
    fresh.rename(path)
    return path
