"""What the clients of a storm load by HTTP: files made up for a trace, and nginx to serve them.

A trace says ``/boot/NAME@VERSION.ipxe``, ``/image/NAME@VERSION/FILE`` and ``/ipxe/PROGRAM``, as
pxed's own URLs are (with %40 for @ where iPXE asked). The same bytes lie below the clients'
directory, to compare with, and in the image that pxed serves; nginx serves that directory.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from bench import pattern
from bench.trace import IMAGE_FILES, Kind, Trace
from pxed import scripts
from pxed.bootable import Kernel
from pxed.errors import UsageError

_IMAGE = re.compile(r"/image/([^/]+@[^/]+)/(vmlinuz|initrd)")
_SCRIPT = re.compile(r"/boot/([^/]+@[^/]+)\.ipxe")
_PROGRAM = re.compile(r"/ipxe/([a-z0-9.-]+)")
_EXPORT = 60010  # of the pattern: no client's, no disk's
CMDLINE = "root=/dev/etherd/e16.1"


@dataclass
class Web:
    """What of a trace goes by HTTP; false if nothing does. ``spec``: the image, NAME@VERSION."""

    spec: str = ""
    paths: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.paths)


def web_of(trace: Trace) -> Web:
    """The files of a trace; UsageError for one that no server of a storm would have."""
    found = Web()
    for op in trace.ops:
        if op.kind is not Kind.HTTP:
            continue
        path = unquote(op.blob.decode(errors="replace"))
        image = _IMAGE.fullmatch(path) or _SCRIPT.fullmatch(path)
        if image is None and _PROGRAM.fullmatch(path) is None:
            raise UsageError(f"the trace loads {path} by HTTP, which is no URL of pxed's")
        if image is not None:
            if found.spec and found.spec != image[1]:
                raise UsageError(f"the trace loads of two images, {found.spec} and {image[1]}")
            found.spec = image[1]
        if path not in found.paths:
            found.paths.append(path)
        if path.startswith(IMAGE_FILES.decode()):
            found.sizes[path] = max(found.sizes.get(path, 0), op.lba + op.count)
    if found:  # pxed's image has both
        for name in ("vmlinuz", "initrd"):
            found.sizes.setdefault(f"/image/{found.spec}/{name}", 1)
    return found


def make(web: Web, files: Path, programs: Path, server: str, shelf: int) -> None:
    """Below ``files``, everything that is loaded, under its path."""
    for number, (path, size) in enumerate(sorted(web.sizes.items())):
        file = files / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        pattern.make(file, -(-size // pattern.SECTOR) * pattern.SECTOR, _EXPORT + number)
        with file.open("r+b") as out:
            out.truncate(size)
    for path in web.paths:
        if path in web.sizes:
            continue
        file = files / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        if (asked := _PROGRAM.fullmatch(path)) is not None:
            shutil.copyfile(programs / asked[1], file)
        else:
            kernel = Kernel(Path(), Path(), CMDLINE)
            file.write_bytes(scripts.kernel(f"http://{server}/image/{web.spec}", kernel, shelf))


def manifest(web: Web) -> str:
    """The manifest of an image with boot.img, root.img and, if it is loaded by HTTP, a kernel."""
    name, _, version = (web.spec or "lab@1").partition("@")
    said = {"name": name, "version": version, "class": "x86",
            "devices": {"boot": "boot.img", "root": "root.img"}}  # fmt: skip
    if web:
        said["kernel"] = {"vmlinuz": "vmlinuz", "initrd": "initrd", "cmdline": CMDLINE}
    return json.dumps(said)


def nginx(server: str, files: Path, home: Path) -> list[str]:
    """The command that serves ``files``, as an admin would beside dnsmasq: Debian's, with sendfile.

    One worker, since it has one CPU; its log of requests off.
    """
    config = home / "nginx.conf"
    scratch = " ".join(
        f"{kind}_temp_path {home};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; user root; worker_processes 1; pid {home}/nginx.pid;\n"
        "worker_rlimit_nofile 20000;\n"
        "events { worker_connections 9000; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; {scratch}\n"
        "  default_type application/octet-stream;\n"
        f"  server {{ listen {server}:80 backlog=4096; root {files}; }} }}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(home), "-c", str(config)]
