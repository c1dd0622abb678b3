"""The HTTP service against curl."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pxed import images
from pxed.errors import HostError
from pxed.events import Event, Kind
from pxed.http.site import Found, Site
from pxed.mac import Mac
from pxed.net import http
from pxed.net.http import HttpServer
from pxed.net.link import Link, look_up
from pxed.net.thread import LoopThread
from tests.aoe_peer import eventually
from tests.conftest import Cable, requires

pytestmark = pytest.mark.netns
MAC = Mac("52:54:00:00:00:01")
BASE = "http://10.77.0.1"
BODY = bytes(range(256)) * 40_000
LONG = 256 << 20  # more than all buffers on the way: tcp_rmem and tcp_wmem go up to 32 MiB


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does, nothing of it ends as an exception in the log."""
    yield
    assert [each.getMessage() for each in caplog.get_records("call") if each.exc_info] == []


@pytest.fixture
def site(tmp_path: Path) -> Site:
    directory = tmp_path / "images" / "lab" / "1"
    directory.mkdir(parents=True)
    for name in ("boot.img", "root.img", "initrd"):
        (directory / name).write_bytes(bytes(512))
    (directory / "vmlinuz").write_bytes(BODY)
    kernel = {"vmlinuz": "vmlinuz", "initrd": "initrd", "cmdline": "quiet"}
    devices = {"boot": "boot.img", "root": "root.img"}
    data = {"name": "lab", "version": "1", "class": "x86", "kernel": kernel, "devices": devices}
    (directory / "manifest.json").write_text(json.dumps(data))
    (tmp_path / "snponly.efi").write_bytes(b"MZ")
    images_dir = tmp_path / "images"
    return Site(
        lambda spec: images.find(images_dir, spec, ""), {"x86": 16}, tmp_path, {"snponly.efi"}
    )


@contextmanager
def serving(
    cable: Cable, site: Site, mac_of: Callable[[str], Mac | None] = lambda ip: None
) -> Iterator[tuple[HttpServer, list[Event]]]:
    requires("curl")
    cable.cli.ip("addr replace 10.77.0.2/24 dev eth0")
    events: list[Event] = []
    with LoopThread(cable.srv.inside()) as thread:

        async def start() -> HttpServer:
            server = HttpServer(
                look_up("eth0"), 80, site, events.append, base=lambda: BASE, mac_of=mac_of
            )
            await server.start()
            return server

        server = thread.call(start())
        try:
            yield server, events
        finally:
            thread.call(server.close())
            thread.call(server.close())


def curl(cable: Cable, path: str, *options: str) -> str:
    argv = ["curl", "-sS", "--path-as-is", "-m", "60", *options, BASE + path]
    return cable.cli.run(argv, check=False).stdout


def code(cable: Cable, path: str, *options: str) -> str:
    return curl(cable, path, "-o", "/dev/null", "-w", "%{http_code}", *options)


def test_a_kernel_comes_whole(cable: Cable, site: Site, tmp_path: Path) -> None:
    with serving(cable, site) as (_, events):
        curl(cable, "/image/lab@1/vmlinuz", "-o", str(tmp_path / "got"))
        assert eventually(lambda: len(events) == 2)  # before the end, which gives it a second
    assert (tmp_path / "got").read_bytes() == BODY
    begun, done = events
    assert (begun.kind, begun.detail["size"]) == (Kind.HTTP_READ, len(BODY))
    assert (done.kind, done.detail["bytes"]) == (Kind.HTTP_DONE, len(BODY))
    assert begun.detail["ip"] == done.detail["ip"] == "10.77.0.2"


def test_a_part_of_it(cable: Cable, site: Site, tmp_path: Path) -> None:
    with serving(cable, site):
        curl(cable, "/image/lab@1/vmlinuz", "-r", "1000000-1000009", "-o", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == BODY[1000000:1000010]


def test_an_etag_spares_the_second_transfer(cable: Cable, site: Site) -> None:
    with serving(cable, site) as (_, events):
        head = curl(cable, "/image/lab@1/vmlinuz", "-I")
        tag = next(line.split()[1] for line in head.splitlines() if line.startswith("Etag"))
        assert code(cable, "/image/lab@1/vmlinuz", "-H", f"If-None-Match: {tag}") == "304"
    assert f"Content-Length: {len(BODY)}" in head
    assert events == []


def test_who_is_taking_a_file(cable: Cable, site: Site, tmp_path: Path) -> None:
    """From the header to the end, be it one of the client's own making."""
    os.truncate(tmp_path / "images/lab/1/vmlinuz", LONG)
    with serving(cable, site, mac_of={"10.77.0.2": MAC}.get) as (server, events):
        assert not server.loads(MAC)
        with cable.cli.inside():
            tcp = socket.create_connection(("10.77.0.1", 80))
        tcp.sendall(b"GET /image/lab@1/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert eventually(lambda: server.loads(MAC))
        assert not server.loads(Mac("52:54:00:00:00:02"))
        tcp.close()
        assert eventually(lambda: Kind.HTTP_FAILED in [event.kind for event in events])
        assert eventually(lambda: not server.loads(MAC))
        assert code(cable, "/ipxe/snponly.efi") == "200"
        assert eventually(lambda: not server.loads(MAC))


def test_the_script(cable: Cable, site: Site) -> None:
    with serving(cable, site) as (_, events):
        said = curl(cable, "/boot/lab@1.ipxe")
        assert eventually(lambda: bool(events))
    assert said.startswith("#!ipxe\nkernel http://10.77.0.1/image/lab@1/vmlinuz ")
    assert [event.kind for event in events] == [Kind.HTTP_DONE]


@pytest.mark.parametrize(
    "path", ["/", "/image/lab@1/manifest.json", "/ipxe/../images/lab/1/root.img",
             "/image/lab@1/%2e%2e/1/vmlinuz", "/ipxe/%2e%2e%2fimages", "/image/lab%401/root.img"],
)  # fmt: skip
def test_what_is_not_named_is_not_there(cable: Cable, site: Site, path: str) -> None:
    with serving(cable, site) as (server, events):
        assert code(cable, path) == "404"
    assert server.counters["missing"] == 1
    assert events[0].kind is Kind.HTTP_MISSING


def test_nothing_can_be_written(cable: Cable, site: Site) -> None:
    with serving(cable, site):
        assert code(cable, "/image/lab@1/vmlinuz", "-X", "PUT", "-d", "x") == "405"
        assert code(cable, "/image/lab@1/vmlinuz", "-X", "DELETE") == "405"


def test_a_client_that_hangs_up_is_noted(cable: Cable, site: Site, tmp_path: Path) -> None:
    os.truncate(tmp_path / "images/lab/1/vmlinuz", LONG)
    with serving(cable, site) as (server, events):
        with cable.cli.inside():
            tcp = socket.create_connection(("10.77.0.1", 80))
        with tcp:
            tcp.sendall(b"GET /image/lab@1/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tcp.recv(100).startswith(b"HTTP/1.1 200")
        assert eventually(lambda: server.counters["failed"] == 1)
        assert code(cable, "/ipxe/snponly.efi") == "200"  # the service goes on
        assert eventually(lambda: len(events) >= 2)
    assert Kind.HTTP_FAILED in [event.kind for event in events]


def test_a_port_in_use_is_one_clear_line(cable: Cable, site: Site) -> None:
    with (
        serving(cable, site),
        pytest.raises(HostError, match=r"port 80/tcp on eth0 is in use .*\[http\] port"),
        serving(cable, site),
    ):
        pass


def test_the_head_alone(cable: Cable, site: Site) -> None:
    with serving(cable, site) as (server, events):
        head = curl(cable, "/ipxe/snponly.efi", "-I")
    assert head.startswith("HTTP/1.1 200")
    assert "Content-Length: 2" in head
    assert "application/efi" in head
    assert "Accept-Ranges: bytes" in head
    assert events == []
    assert server.counters["bytes"] == 0


def test_one_connection_for_all_files(cable: Cable, site: Site) -> None:
    with serving(cable, site):
        argv = ["curl", "-sS", "-m", "60", "-w", "connects=%{num_connects} ",
                f"{BASE}/ipxe/snponly.efi", f"{BASE}/boot/lab@1.ipxe"]  # fmt: skip
        said = cable.cli.run(argv, check=False).stdout
    assert "MZconnects=1 #!ipxe" in said
    assert said.endswith("connects=0 ")


def test_a_range_that_is_not_there(cable: Cable, site: Site) -> None:
    with serving(cable, site):
        assert code(cable, "/image/lab@1/vmlinuz", "-r", f"{len(BODY)}-") == "416"
        got = curl(cable, "/image/lab@1/vmlinuz", "-r", "-5", "-o", "/dev/null", "-w",
                   "%{http_code} %{size_download}")  # fmt: skip
    assert got == "206 5"


def talk(cable: Cable, data: bytes, *, seconds: float = 60) -> bytes:
    """What comes back for raw bytes, until the server hangs up."""
    with cable.cli.inside():
        tcp = socket.create_connection(("10.77.0.1", 80))
    with tcp:
        tcp.settimeout(seconds)
        said = b""
        with contextlib.suppress(ConnectionError):  # it may hang up before all of it is sent
            tcp.sendall(data)
            while more := tcp.recv(65536):
                said += more
        return said


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"\0\1\2rubbish\r\n\r\n",
     b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"],
    ids=["huge header", "rubbish", "huge path", "version", "length"],
)  # fmt: skip
def test_what_is_no_request(cable: Cable, site: Site, data: bytes) -> None:
    with serving(cable, site):
        # The refusal is lost where the server hangs up on what it has not read.
        said = talk(cable, data)
        assert not said or said.startswith(b"HTTP/1.0 400")
        assert code(cable, "/ipxe/snponly.efi") == "200"  # the service goes on


def test_connections_that_say_nothing_are_bounded(
    cable: Cable, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_SILENT", 600.0)
    with serving(cable, site) as (server, _), contextlib.ExitStack() as stack:
        cable.cli.ip("addr add 10.77.0.3/24 dev eth0")
        for number in range(40):
            with cable.cli.inside():
                tcp = stack.enter_context(socket.create_connection(("10.77.0.1", 80)))
            with contextlib.suppress(ConnectionError):  # it may have been shown the door already
                tcp.sendall(b"GET / HT" if number % 2 else b"")
        assert code(cable, "/ipxe/snponly.efi", "--interface", "10.77.0.3") == "200"
        assert eventually(lambda: server.counters["too_many"] == 24)


def test_connections_that_say_nothing_are_sent_away(
    cable: Cable, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_SILENT", 1.0)
    with serving(cable, site):
        for word in (b"GET / HT", b""):
            assert not talk(cable, word)
        assert code(cable, "/ipxe/snponly.efi") == "200"


def test_the_kernel_sends_the_file(
    cable: Cable, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sendfile(2): not a byte of a file passes through Python."""
    sent: list[int] = []
    sendfile = os.sendfile

    def counted(out: int, source: int, offset: int, count: int) -> int:
        size = sendfile(out, source, offset, count)
        sent.append(size)
        return size

    monkeypatch.setattr(os, "sendfile", counted)
    with serving(cable, site):
        curl(cable, "/image/lab@1/vmlinuz", "-o", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == BODY
    assert sum(sent) == len(BODY)


def test_it_has_a_thread_of_its_own_and_tells_the_others(cable: Cable, site: Site) -> None:
    """What is looked up and sent does not hold up the loop of the other protocols."""
    found, told = list[str](), list[str]()
    find = site.find

    def noted(path: str, base: str) -> Found | None:
        found.append(threading.current_thread().name)
        return find(path, base)

    def emit(event: Event) -> None:
        told.append(threading.current_thread().name)

    cable.cli.ip("addr replace 10.77.0.2/24 dev eth0")
    site.find = noted  # type: ignore[method-assign]
    with LoopThread(cable.srv.inside(), name="the others") as thread:
        server = HttpServer(look_up_in(cable), 80, site, emit, base=lambda: BASE)
        thread.call(server.start())
        try:
            assert code(cable, "/image/lab@1/vmlinuz") == "200"
            assert eventually(lambda: len(told) == 2)
        finally:
            thread.call(server.close())
    assert found == ["pxed-http"]
    assert set(told) == {"the others"}
    assert "pxed-http" not in {each.name for each in threading.enumerate()}


def look_up_in(cable: Cable) -> Link:
    with cable.srv.inside():
        return look_up("eth0")


SECURE = "/secure/52-54-00-00-00-01/lab@1.img"


def chain(folder: Path) -> None:
    for name in ("shimx64.efi", "grubx64.efi"):
        (folder / name).write_bytes(name.encode() * 100)


def test_a_disk_is_sent_as_it_is_made(cable: Cable, site: Site, tmp_path: Path) -> None:
    requires("mcopy", "fsck.fat")
    chain(tmp_path)
    image = tmp_path / "got.img"
    with serving(cable, site, lambda ip: MAC) as (_, events):
        head = curl(cable, SECURE, "-I").lower()
        assert "content-type: application/vnd.efi-img" in head
        curl(cable, SECURE, "-o", str(image))
        eventually(lambda: [e.kind for e in events] == [Kind.HTTP_READ, Kind.HTTP_DONE])
    assert f"content-length: {image.stat().st_size}" in head.split("\n")
    assert events[1].detail["bytes"] == image.stat().st_size
    cable.cli.run(["fsck.fat", "-n", str(image)])
    out = tmp_path / "out"
    for name, there in (
        ("VMLINUZ", "images/lab/1/vmlinuz"),
        ("EFI/BOOT/BOOTX64.EFI", "shimx64.efi"),
    ):
        cable.cli.run(["mcopy", "-n", "-i", str(image), f"::/{name}", str(out)])
        assert out.read_bytes() == (tmp_path / there).read_bytes()
        out.unlink()


def test_a_disk_whose_file_has_become_shorter_ends_early(
    cable: Cable, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(tmp_path)
    whole = Site.find

    def cut(self: Site, path: str, base: str) -> Found | None:
        found = whole(self, path, base)
        (tmp_path / "images/lab/1/vmlinuz").write_bytes(b"short")
        return found

    monkeypatch.setattr(Site, "find", cut)
    with serving(cable, site, lambda ip: MAC) as (_, events):
        done = cable.cli.run(
            ["curl", "-sS", "-m", "30", "-o", "/dev/null", BASE + SECURE], check=False
        )
        assert done.returncode == 18  # a partial file
        eventually(lambda: [e.kind for e in events] == [Kind.HTTP_READ, Kind.HTTP_FAILED])
        assert "vmlinuz has become shorter" in str(events[1].detail["why"])
        assert code(cable, "/ipxe/snponly.efi") == "200"
