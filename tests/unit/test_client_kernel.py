"""The kernel cache: what is kept, what is fetched, and what a cache that fails costs."""

from pathlib import Path

import pytest

from pxed.client import kernel as subject
from pxed.client.kernel import Kernel, cache_dir, fetch_kernel
from pxed.errors import HostError

DEP = """\
kernel/drivers/net/virtio_net.ko: kernel/net/failover.ko kernel/virtio/virtio.ko kernel/ring.ko
kernel/net/failover.ko:
kernel/virtio/virtio.ko:
kernel/ring.ko:
kernel/char/virtio-rng.ko: kernel/virtio/virtio.ko
"""


def _fake(into: Path, release: str = "6.1.0-1-cloud-amd64") -> None:
    modules = into / "lib/modules" / release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(DEP)
    (into / "boot").mkdir()
    (into / "boot" / f"vmlinuz-{release}").write_bytes(b"kernel")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces apt: each download gives a new release; the list of packages asked for."""
    asked: list[str] = []

    def download(package: str, into: Path) -> None:
        asked.append(package)
        _fake(into, f"6.1.0-{len(asked)}-cloud-amd64")

    monkeypatch.setattr(subject, "_download", download)
    return asked


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    _fake(tmp_path)
    kernel = Kernel(tmp_path, "6.1.0-1-cloud-amd64")
    names = [path.name for path in kernel.closure(["virtio_net", "no_such", "virtio-rng"])]
    assert names == ["ring.ko", "virtio.ko", "failover.ko", "virtio_net.ko", "virtio-rng.ko"]


def test_the_second_time_is_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    monkeypatch.setenv("PXED_CACHE", str(tmp_path / "cache"))
    first, second = fetch_kernel("linux-image-x"), fetch_kernel("linux-image-x")
    assert first == second
    assert first.vmlinuz.read_bytes() == b"kernel"
    assert downloads == ["linux-image-x"]


def test_refresh_replaces_the_entry_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    monkeypatch.setenv("PXED_CACHE", str(tmp_path))
    fetch_kernel("linux-image-x")
    assert fetch_kernel("linux-image-x", refresh=True).release == "6.1.0-2-cloud-amd64"
    assert [path.name for path in (tmp_path / "kernel").iterdir()] == ["linux-image-x"]
    assert fetch_kernel("linux-image-x").release == "6.1.0-2-cloud-amd64"


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    monkeypatch.setenv("PXED_CACHE", "/proc/no/such/place")
    assert fetch_kernel("linux-image-x").vmlinuz.is_file()
    assert fetch_kernel("linux-image-x").vmlinuz.is_file()
    assert len(downloads) == 2


def test_a_download_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(package: str, into: Path) -> None:
        (into / "half").write_bytes(b"")
        raise HostError("no network")

    monkeypatch.setattr(subject, "_download", download)
    monkeypatch.setenv("PXED_CACHE", str(tmp_path))
    with pytest.raises(HostError, match="no network"):
        fetch_kernel("linux-image-x")
    assert list((tmp_path / "kernel").iterdir()) == []


def test_a_package_without_a_kernel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_download", lambda package, into: None)
    monkeypatch.setenv("PXED_CACHE", str(tmp_path))
    with pytest.raises(HostError, match="holds no kernel"):
        fetch_kernel("hello")


def test_missing_apt_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PXED_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt-cache is missing"):
        fetch_kernel("linux-image-x")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PXED_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/pxed"),
    ],
)
def test_where_the_cache_is(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PXED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)
