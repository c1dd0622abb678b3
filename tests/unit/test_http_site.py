"""Which path stands for what over HTTP; nothing but known names, whatever is asked."""

import json
from pathlib import Path

import pytest

from pxed import images
from pxed.errors import UsageError
from pxed.http.site import Found, Site, disk_url, efi_url, program_url, script_url
from pxed.mac import Mac

BASE = "http://10.77.0.1"


@pytest.fixture
def images_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "images" / "lab" / "1"
    directory.mkdir(parents=True)
    for name in ("boot.img", "root.img", "vmlinuz-6.1", "initrd", "secret"):
        (directory / name).write_bytes(name.encode())
    manifest(directory, {"vmlinuz": "vmlinuz-6.1", "initrd": "initrd", "cmdline": "quiet"})
    return tmp_path / "images"


def manifest(directory: Path, kernel: object, **more: str) -> None:
    data: dict[str, object] = {
        **more,
        "name": "lab",
        "version": "1",
        "class": "x86",
        "kernel": kernel,
    }
    data["devices"] = {"boot": "boot.img", "root": "root.img"}
    (directory / "manifest.json").write_text(json.dumps(data))


@pytest.fixture
def site(images_dir: Path, tmp_path: Path) -> Site:
    (tmp_path / "snponly.efi").write_bytes(b"MZ")
    (tmp_path / "other").write_bytes(b"private")
    return Site(
        lambda spec: images.find(images_dir, spec, ""),
        {"x86": 21},
        tmp_path,
        {"snponly.efi", "ipxe-i386.efi"},
    )


def test_a_kernel_is_found_under_its_plain_name(site: Site, images_dir: Path) -> None:
    found = site.find("/image/lab@1/vmlinuz", BASE)
    assert found is not None
    assert found.path == images_dir / "lab/1/vmlinuz-6.1"


def test_the_script_loads_this_version_from_this_server(site: Site) -> None:
    found = site.find("/boot/lab@1.ipxe", BASE)
    assert found is not None
    lines = found.content.decode().splitlines()
    assert lines[0] == "#!ipxe"
    assert lines[1].startswith(f"kernel {BASE}/image/lab@1/vmlinuz initrd=initrd quiet ")
    assert "pxed.shelf=21" in lines[1]
    assert lines[2].startswith(f"initrd {BASE}/image/lab@1/initrd")


def test_an_efi_program_is_there_only_where_the_manifest_names_one(
    site: Site, images_dir: Path
) -> None:
    image = images.find(images_dir, "lab", "x86")
    path = efi_url(BASE, image).removeprefix(BASE)
    assert site.find(path, BASE) is None
    manifest(images_dir / "lab/1", None, efi="secret")
    found = site.find(path, BASE)
    assert found is not None
    assert found.path == images_dir / "lab/1/secret"
    assert site.find("/image/lab@1/secret", BASE) is None
    assert site.find("/tfm/lab@1/pxed.efi", BASE) is None


def test_the_urls_of_a_plan_are_found(site: Site, images_dir: Path) -> None:
    image = images.find(images_dir, "lab", "x86")
    for url in (script_url(BASE, image), program_url(BASE, "snponly.efi")):
        assert site.find(url.removeprefix(BASE), BASE) is not None


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/ipxe/", "/ipxe/other", "/ipxe/../other", "/ipxe/ipxe-i386.efi",
        "/image/lab@1/secret", "/image/lab@1/manifest.json", "/image/lab@1/vmlinuz-6.1",
        "/image/lab@1/../1/vmlinuz", "/image/lab@../vmlinuz", "/image/lab/vmlinuz",
        "/image/lab@2/vmlinuz", "/image/../lab@1/vmlinuz", "/image//vmlinuz",
        "/boot/other@1.ipxe", "/boot/lab.ipxe", "/boot/../boot/lab@1.ipxe", "/boot/lab@1.ipxe/x",
        "/image/lab@1/vmlinuz\0", "//image/lab@1/vmlinuz", "/etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_is(site: Site, path: str) -> None:
    assert site.find(path, BASE) is None


def test_maintenance_mode_has_a_kernel_of_its_own(site: Site, images_dir: Path) -> None:
    directory = images_dir / "lab/1"
    assert site.find("/tfm/lab@1.ipxe", BASE) is None
    data = json.loads((directory / "manifest.json").read_text())
    words = {"vmlinuz": "vmlinuz-6.1", "initrd": "initrd.tfm", "cmdline": "panic=30"}
    (directory / "initrd.tfm").write_bytes(b"installer")
    (directory / "manifest.json").write_text(json.dumps({**data, "maintenance": words}))
    image = images.find(images_dir, "lab", "x86")
    script = site.find(script_url(BASE, image, tfm=True).removeprefix(BASE), BASE)
    assert script is not None
    assert f"kernel {BASE}/tfm/lab@1/vmlinuz initrd=initrd panic=30" in script.content.decode()
    found = site.find("/tfm/lab@1/initrd", BASE)
    assert found is not None
    assert found.path == directory / "initrd.tfm"
    other = site.find("/image/lab@1/initrd", BASE)
    assert other is not None
    assert other.path == directory / "initrd"


def on_disk(found: Found | None) -> bytes:
    assert found is not None
    assert found.disk is not None
    return b"".join(
        (piece.path.read_bytes() if piece.path else piece.content) for piece in found.disk.pieces()
    )


def test_a_machines_disk_for_secure_boot(site: Site, images_dir: Path, tmp_path: Path) -> None:
    image = images.find(images_dir, "lab", "x86")
    path = disk_url(BASE, image, Mac("52:54:00:00:00:01")).removeprefix(BASE)
    for name in ("shimx64.efi", "grubx64.efi"):
        (tmp_path / name).write_bytes(f"the {name}".encode())
    content = on_disk(site.find(path, BASE))
    for part in (b"the shimx64.efi", b"the grubx64.efi", b"vmlinuz-6.1", b"initrd"):
        assert part in content
    words = b"linux /vmlinuz 'quiet' 'pxed.shelf=21' 'BOOTIF=01-52-54-00-00-00-01'\n"
    assert words in content
    assert site.find(path.replace("/secure/", "/secure-tfm/"), BASE) is None
    for wrong in ("52-54-00-00-00", "52:54:00:00:00:01", "..", "x"):
        assert site.find(f"/secure/{wrong}/lab@1.img", BASE) is None
    assert site.find("/secure/52-54-00-00-00-01/lab@2.img", BASE) is None


def test_no_disk_without_the_programs_of_the_chain(
    site: Site, tmp_path: Path, images_dir: Path
) -> None:
    for name in ("shimx64.efi", "grubx64.efi"):
        (tmp_path / name).mkdir()  # whatever Debian has
    path = disk_url("", images.find(images_dir, "lab", "x86"), Mac("52:54:00:00:00:01"))
    assert site.find(path, BASE) is None


@pytest.mark.parametrize("key", ["kernel", "maintenance"])
def test_a_kernel_key_that_names_no_file_is_named(images_dir: Path, key: str) -> None:
    directory = images_dir / "lab/1"
    data = json.loads((directory / "manifest.json").read_text())
    words = {"vmlinuz": "vmlinuz-6.1", "initrd": "gone", "cmdline": ""}
    (directory / "manifest.json").write_text(json.dumps({**data, key: words}))
    with pytest.raises(UsageError, match="gone"):
        images.find(images_dir, "lab", "x86")


def test_an_image_without_a_kernel_has_neither(site: Site, images_dir: Path) -> None:
    manifest(images_dir / "lab/1", None)
    assert site.find("/boot/lab@1.ipxe", BASE) is None
    assert site.find("/image/lab@1/vmlinuz", BASE) is None


GOOD = {"vmlinuz": "vmlinuz-6.1", "initrd": "initrd", "cmdline": "quiet"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"vmlinuz": "../../../etc/passwd"}, "own directory"),
        ({"vmlinuz": "/etc/passwd"}, "own directory"),
        ({"initrd": "missing"}, "no such file"),
        ({"initrd": 3}, "must be a name"),
        ({"cmdline": "a\nboot"}, "one line"),
        ({"cmdline": "x" * 3000}, "one line"),
        ({"cmdline": "a || shell"}, "mean something to iPXE"),
        ({"more": "x"}, "must have"),
    ],
)
def test_a_bad_kernel_key_is_an_error(
    images_dir: Path, change: dict[str, object], word: str
) -> None:
    manifest(images_dir / "lab/1", GOOD | change)
    with pytest.raises(UsageError, match=word):
        images.find(images_dir, "lab", "x86")


def test_a_boot_directory(images_dir: Path) -> None:
    directory = images_dir / "lab/1"
    data = json.loads((directory / "manifest.json").read_text())
    for tree, good in (("firmware", True), ("nowhere", False), ("..", False), ("initrd", False)):
        (directory / "firmware").mkdir(exist_ok=True)
        (directory / "manifest.json").write_text(json.dumps({**data, "tree": tree}))
        if good:
            assert images.find(images_dir, "lab", "x86").tree == directory / "firmware"
        else:
            with pytest.raises(UsageError, match=r"tree|nowhere|initrd"):
                images.find(images_dir, "lab", "x86")
