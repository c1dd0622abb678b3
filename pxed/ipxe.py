"""iPXE's programs: the directory that they come from, and what is served beside them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pxed import scripts
from pxed.config import Config
from pxed.errors import UsageError

DEBIANS = Path("/usr/lib/ipxe")
"""Where this machine's own package has them."""

MANIFEST = "manifest.json"
"""What ``pxed ipxe fetch`` says of the files beside it."""

_STAND_INS: Mapping[str, str] = {"snponly-arm64.efi": "ipxe-arm64.efi"}
"""What Debian has of a kind, where that goes by another name."""


def own_directory(state_dir: Path) -> Path:
    """Where ``pxed ipxe fetch`` puts them unless it is told otherwise."""
    return state_dir / "ipxe"


def directory(config: Config) -> Path:
    """The one that is served: the configuration's, else what was fetched, else the package's."""
    if config.tftp.root is not None:
        return config.tftp.root
    own = own_directory(config.state_dir)
    return own if (own / MANIFEST).is_file() else DEBIANS


def program(root: Path, name: str) -> Path:
    """Where the program is that is asked for as ``name``, or should be."""
    own, other = root / name, root / _STAND_INS.get(name, name)
    return other if other.is_file() and not own.exists() else own


def stand_ins(root: Path) -> dict[str, Path]:
    """The names that are served with what goes by another name in ``root``."""
    return {name: path for name in _STAND_INS if (path := program(root, name)) != root / name}


def script(root: Path) -> bytes | None:
    """What iPXE gets for ``scripts.AUTOEXEC``; None where ``root`` has one itself."""
    return None if (root / scripts.AUTOEXEC).exists() else scripts.autoexec()


def waits_for_key(data: bytes) -> bool:
    """Whether this EFI program is an iPXE that does: it can, and asks for no script before."""
    return b"Press Ctrl-B" in data and scripts.AUTOEXEC.encode() not in data


def manifest(root: Path) -> dict[str, str]:
    """``version`` of what was fetched into ``root``, and each file's SHA-256; empty: nothing was.

    UsageError for one that cannot be read.
    """
    path = root / MANIFEST
    try:
        said = json.loads(path.read_text())
        files = {str(name): str(about["sha256"]) for name, about in said["files"].items()}
        return {**files, "version": str(said["version"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read ({error!r}): pxed ipxe fetch") from None


def digest(data: bytes) -> str:
    """As the manifest has it."""
    return hashlib.sha256(data).hexdigest()
