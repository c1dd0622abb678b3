"""HTTP of ``bench boot``: the kernel and initrd of a room, beside nginx and busybox's httpd.

curl loads by plain HTTP into memory, and every file is compared afterwards.
"""

import filecmp
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pxed.lab.netns import Namespace

SERVERS = ("pxed", "nginx", "busybox httpd")
_URL = "image/lab@1"


@dataclass(frozen=True)
class HttpLoad:
    """``clients`` that load ``file`` of ``size`` bytes each at once."""

    name: str
    clients: int
    file: str
    size: int


LOADS = (
    HttpLoad("1 client, 512 MiB", 1, "initrd", 512 << 20),
    HttpLoad("50 clients, 16 MiB", 50, "vmlinuz", 16 << 20),
)


def argv(name: str, folder: Path, files: Path) -> list[str]:
    """A peer's command line; it serves ``files`` under the paths that pxed has."""
    top = folder / "www"
    (top / _URL).parent.mkdir(parents=True, exist_ok=True)
    if not (top / _URL).exists():
        (top / _URL).symlink_to(files)
    if name == "busybox httpd":
        return ["busybox", "httpd", "-f", "-p", "80", "-h", str(top)]
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {folder};\n"
        f"proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};\n"
        f"scgi_temp_path {folder}; server {{ listen 80; root {top}; }} }}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)]


def load(
    what: HttpLoad, host: Namespace, server: str, addresses: list[str], files: Path, room: Path,
    before: tuple[str, ...],
) -> float:  # fmt: skip
    """MB/s of all clients together, each from an address of its own, its copy in ``room``.

    SystemExit if a file did not come whole.
    """
    copies = [room / f"copy.{number}" for number in range(what.clients)]
    began = time.monotonic()
    running = [
        host.popen(
            [*before, "curl", "-sf", "--interface", ip, "-o", str(copy),
             f"http://{server}/{_URL}/{what.file}"],
        )
        for ip, copy in zip(addresses, copies, strict=False)
    ]  # fmt: skip
    for process in running:
        process.wait(timeout=120)
    took = time.monotonic() - began
    try:
        for process, copy in zip(running, copies, strict=True):
            whole = process.returncode == 0 and copy.stat().st_size == what.size
            if not whole or not filecmp.cmp(files / what.file, copy, shallow=False):
                raise SystemExit(f"HTTP, {what.name}: a client did not get its file")
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)
    return what.clients * what.size / took / 1e6


def answers(host: Namespace, server: str) -> bool:
    """Whether it serves already."""
    asked = ["curl", "-sfI", "-m", "1", "-o", "/dev/null", f"http://{server}/{_URL}/vmlinuz"]
    return subprocess.run(host.command(asked), check=False).returncode == 0
