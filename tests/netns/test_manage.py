"""A running server, managed: through its control socket and the commands that speak to it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aoe_fast.initiator import Initiator, NoAnswer
from pxed.ask import ControlClient, NoServer
from pxed.dhcp.codec import BROADCAST_FLAG, Message, Op, Opt, Type, decode, encode
from pxed.errors import UsageError
from pxed.mac import Mac, mac_bytes
from tests.conftest import Cable, requires
from tests.netns.conftest import kept

pytestmark = pytest.mark.netns

CONFIG = 'interface = "eth0"\nstate_dir = "STATE"\n[midlayer]\nsize = "8M"\nkeep_free = 0\n'
M1, M2, M3, NOBODY = (Mac(f"52:54:00:00:00:{n:02x}") for n in (1, 2, 3, 0xFF))


def image(state: Path, version: str, fill: bytes, *, tfm: bool = True) -> Path:
    directory = state.parent / f"source-{version}"
    directory.mkdir()
    devices = {"boot": "boot.img", "root": "root.img"} | ({"tfm": "tfm.img"} if tfm else {})
    for name in devices.values():
        (directory / name).write_bytes((fill * 510 + b"\x55\xaa") * 16)
    said = {"name": "lab", "version": version, "class": "x86", "devices": devices}
    (directory / "manifest.json").write_text(json.dumps(said))
    return directory


class Room:
    """A server in ``cable.srv`` and machines that only speak DHCP and AoE in ``cable.cli``."""

    def __init__(self, cable: Cable, tmp_path: Path) -> None:
        self.cable, self.state = cable, tmp_path / "state"
        self.config = tmp_path / "pxed.toml"
        self.control = ControlClient(self.state / "control.sock", timeout=60)
        self.process: subprocess.Popen[bytes] | None = None
        (self.state / "images" / "lab").mkdir(parents=True)
        shutil.copytree(image(self.state, "1", b"1"), self.state / "images" / "lab" / "1")

    def start(self, more: str = "") -> None:
        self.write(more)
        log = (self.state.parent / "log").open("ab")
        self.process = self.cable.srv.popen(self.command(), stderr=log)
        log.close()
        self.until(self.answers)

    def answers(self) -> bool:
        try:
            self.control.get("/v1/status")
        except NoServer:
            return False
        return True

    def command(self) -> list[str]:
        return [sys.executable, "-m", "pxed", "serve", "-c", str(self.config)]

    def write(self, more: str = "") -> None:
        self.config.write_text(CONFIG.replace("STATE", str(self.state)) + more)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)
        if how is signal.SIGKILL:
            (self.state / "control.sock").unlink()

    def pxed(self, *words: str, status: int = 0, text: str | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pxed", *words, "--state-dir", str(self.state)],
            capture_output=True, text=True, check=False, input=text,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def until(self, true: Callable[[], Any], seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := true()):
            log = (self.state.parent / "log").read_text()
            assert time.monotonic() < deadline, f"not in {seconds} s; the server's log:\n{log}"
            assert self.process is not None
            assert self.process.poll() is None, log
            time.sleep(0.02)
        return found

    def client(self, mac: Mac) -> dict[str, Any]:
        shown: dict[str, Any] = self.control.get(f"/v1/clients/{mac}")
        return shown

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.control.follow("/v1/events") if e["kind"] == kind]

    def discover(self, mac: Mac, seconds: float = 60) -> str:
        """A DISCOVER of an iPXE in the card's ROM; the root path or script it was offered.

        Empty if there was no answer in so many ``seconds``.
        """
        options = {
            Opt.TYPE: bytes((Type.DISCOVER,)), Opt.PARAMETERS: bytes((1, 17, 66, 67)),
            Opt.VENDOR_CLASS: b"PXEClient:Arch:00000:UNDI:002001", Opt.ARCH: b"\0\0",
            Opt.USER_CLASS: b"iPXE", Opt.IPXE: b"\x12\x01\x01\x13\x01\x01",
        }  # fmt: skip
        message = Message(
            op=Op.REQUEST, xid=int(time.monotonic() * 1000) & 0xFFFFFFFF, chaddr=mac,
            flags=BROADCAST_FLAG, options={int(code): value for code, value in options.items()},
        )  # fmt: skip
        with self.cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            udp.bind(("", 68))
            until = time.monotonic() + seconds
            udp.sendto(encode(message), ("255.255.255.255", 67))
            while True:
                udp.settimeout(max(until - time.monotonic(), 0.001))
                try:
                    answer = decode(udp.recv(2048))
                except TimeoutError:
                    return ""
                if (answer.chaddr, answer.xid) == (mac, message.xid):
                    break  # and no late one to what was asked before
        root = answer.options.get(Opt.ROOT_PATH, b"")
        return (root or answer.file).decode()

    def boot(self, mac: Mac) -> str:
        """A new boot, up to the first sector of what it was told to boot; its root path."""
        before = len([e for e in self.events("midlayer-ready") if e["mac"] == mac])
        offered = self.discover(mac)
        self.until(
            lambda: len([e for e in self.events("midlayer-ready") if e["mac"] == mac]) > before
        )
        self.read(mac, int(offered[-1]))
        self.until(lambda: "first AoE read" in str(self.client(mac)["timeline"]))
        return offered

    def refused(self, mac: Mac, why: str) -> None:
        """Its DISCOVER is heard, for this reason refused, and not answered."""
        before = len(self.events("refused"))
        assert self.discover(mac, 1) == ""
        self.until(lambda: len(self.events("refused")) > before)
        last = self.events("refused")[-1]
        assert last["mac"] == mac
        assert why in last["why"]

    @contextmanager
    def initiator(self, mac: Mac, retries: int = 60) -> Iterator[Initiator]:
        """This machine's; by default it asks for a minute."""
        with (
            self.cable.cli.inside(),
            Initiator("eth0", source_mac=mac_bytes(mac), retries=retries) as initiator,
        ):
            yield initiator

    def read(self, mac: Mac, slot: int, lba: int = 0) -> bytes:
        """One sector as this machine sees it; it counts as heard."""
        with self.initiator(mac) as initiator:
            return initiator.read(16, slot, lba, 1)

    def sees_no(self, mac: Mac, slot: int) -> None:
        """Nothing answers this machine there, and something does another one's elsewhere."""
        with self.initiator(mac, 2) as initiator, pytest.raises(NoAnswer, match=rf"16\.{slot}"):
            initiator.read(16, slot, 0, 1)
        self.read(NOBODY, 0)

    def runs(self, mac: Mac) -> None:
        """Its system says that it runs."""
        with self.initiator(mac) as initiator:
            initiator.write(16, 4, 0, b"running 1.0".ljust(512, b"\0"))
        self.until(lambda: self.client(mac)["state"] == "running")

    def kept(self, mac: Mac, **values: object) -> None:
        """Return when the database holds this of the machine: a kill leaves it from now on."""
        self.until(lambda: values.items() <= kept(self.state, mac).items())


@pytest.fixture
def room(cable: Cable, tmp_path: Path) -> Iterator[Room]:
    requires("mkfs.ext4", "e2fsck", "debugfs")
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0", "route add default dev eth0")
    made = Room(cable, tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_images_are_switched_while_running_clients_keep_theirs(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.runs(M1)
    said = room.pxed("image", "add", str(image(room.state, "2", b"2")))
    assert "lab@2 is added" in said
    assert room.read(M1, 0)[:1] == b"1"
    # lab@1 was put there by hand, and no channel was ever set: it is what boots all the same.
    room.boot(M2)
    assert room.read(M2, 0)[:1] == b"1"
    said = room.pxed("image", "use", "lab@2")
    assert "lab@stable is now lab@2 (was 1)" in said
    assert "2 running clients" in said
    assert room.read(M1, 0)[:1] == b"1"
    room.boot(M3)
    assert room.read(M3, 0)[:1] == b"2"
    room.boot(M1)
    assert room.read(M1, 0)[:1] == b"2"
    assert room.client(M1)["image"] == "lab@2"
    assert "lab@1" in room.pxed("image", "rollback", "lab")
    assert "runs it" in room.pxed("image", "remove", "lab@2", status=2)
    assert "clients of class x86" in room.pxed("image", "remove", "lab@1", status=2)
    assert "ok   boot.img" in room.pxed("image", "verify", "lab@2")
    listed = json.loads(room.pxed("image", "list", "--json"))["images"]
    assert {each["version"]: each["channels"] for each in listed} == {"1": ["stable"], "2": []}


def test_a_removed_image_is_gone_and_its_clients_see_nothing_of_it(room: Room) -> None:
    room.start()
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@1")
    room.pxed("image", "remove", "lab@2")
    assert not (room.state / "images" / "lab" / "2").exists()
    assert "there is no image lab@2" in room.pxed("image", "show", "lab@2", status=2)
    room.boot(M1)
    assert room.read(M1, 0)[:1] == b"1"


def test_a_seat_is_told_which_versions_were_removed(room: Room) -> None:
    room.start()
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@1")
    room.boot(M1)
    assert room.read(M1, 4, 24) == bytes(512)
    assert "at their next start" in room.pxed("image", "remove", "lab@2")
    assert room.read(M1, 4, 24) == bytes(512)  # it runs
    room.boot(M1)
    assert room.read(M1, 4, 24).rstrip(b"\0") == b"pxed-former 1\nlab@2\n"
    room.config.write_text(
        room.config.read_text().replace("[midlayer]", "[midlayer]\nreclaim = false")
    )
    room.pxed("config", "reload")
    room.boot(M1)
    assert room.read(M1, 4, 24) == bytes(512)


def test_canary_clients(room: Room) -> None:
    room.start()
    room.pxed("image", "use", "lab@1")
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@2", "--channel", "canary")
    room.pxed("client", "boot", str(M1), "image=lab@canary")
    room.boot(M1)
    room.boot(M2)
    assert (room.read(M1, 0)[:1], room.read(M2, 0)[:1]) == (b"2", b"1")


def test_one_boot_to_provision_and_no_second(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.pxed("client", "boot", str(M1), "provision", "--once")
    room.stop(signal.SIGKILL)
    room.start()
    assert room.client(M1)["once"] == "provision"
    assert room.boot(M1) == "aoe:e16.2"
    assert room.client(M1)["mode"] == "provision"
    assert room.client(M1)["once"] == ""
    assert room.boot(M1) == "aoe:e16.0"


def test_a_boot_from_the_clients_own_disk(room: Room) -> None:
    room.start()
    room.pxed("client", "boot", str(M1), "local", "--once")
    assert room.discover(M1) == "local.ipxe"
    script = room.cable.cli.run(["curl", "-s", "tftp://10.77.0.1/local.ipxe"], check=True).stdout
    assert "exit" in script
    assert not (room.state / "config/midlayers/525400000001.ext4").exists()


def test_strangers_wait_for_approval(room: Room) -> None:
    room.start('[clients]\nadmit = "approve"\n')
    room.refused(M1, "waits for approval")
    assert "WAITS" in room.pxed("client", "list")
    assert not (room.state / "config/midlayers/525400000001.ext4").exists()
    room.pxed("client", "approve", str(M1))
    room.pxed("client", "name", str(M1), "seat-01")
    assert room.boot(M1) == "aoe:e16.0"
    room.pxed("client", "block", "seat-01", "--now")
    room.stop(signal.SIGKILL)
    room.start('[clients]\nadmit = "approve"\n')
    room.sees_no(M1, 0)
    room.refused(M1, "blocked")
    room.pxed("client", "approve", "seat-*")
    room.boot(M1)


def test_names_groups_and_notes_outlive_a_kill(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.pxed("client", "name", str(M1), "seat-01")
    room.pxed("client", "group", "seat-01", "-a", "room-a", "-a", "canary")
    room.pxed("client", "note", "@room-a", "-m", "by the window")
    room.pxed("client", "boot", "@room-a", "image=lab@1")
    room.stop(signal.SIGKILL)
    room.start()
    shown = room.client(M1)
    assert (shown["name"], shown["groups"], shown["note"], shown["order"], shown["image"]) == (
        "seat-01", ["room-a", "canary"], "by the window", "image=lab@1", "lab@1",
    )  # fmt: skip
    assert "seat-01" in room.pxed("client", "list", "@canary")
    assert "by the window" in room.pxed("client", "show", "seat-01")
    kinds = [entry["kind"] for entry in room.control.follow("/v1/events")]
    assert "boot" in kinds  # from before the kill
    assert "boot" in room.pxed("event", "--since", "1h")


def test_a_restart_gives_a_running_client_its_view_again(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.runs(M1)
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@2")
    room.kept(M1, state="running", image="lab@1")
    room.stop(signal.SIGKILL)
    room.start()
    assert room.read(M1, 0)[:1] == b"1"
    assert len(room.read(M1, 3)) == 512


def test_a_reset_gives_a_new_layer_and_keeps_the_old(room: Room) -> None:
    room.start()
    room.boot(M1)
    with room.initiator(M1) as initiator:
        initiator.write(16, 3, 8000, b"precious".ljust(512, b"\0"))
    assert "at its next boot" in room.pxed("client", "reset", str(M1))
    assert room.read(M1, 3, 8000)[:8] == b"precious"
    time.sleep(1.1)  # a machine that was heard just now is taken to run still
    room.boot(M1)
    assert room.read(M1, 3, 8000)[:8] == bytes(8)
    assert room.client(M1)["fresh"] is False
    assert "kept" in room.pxed("midlayer", "list")
    room.pxed("client", "forget", str(M1), "--force")
    assert "no client" in room.pxed("client", "show", str(M1), status=2)
    room.boot(M1)
    assert room.read(M1, 3, 8000)[:8] == bytes(8)


def test_care_of_midlayers(room: Room, tmp_path: Path) -> None:
    room.start('[client."52:54:00:00:00:02"]\nname = "desk"\nsize = "16M"\n')
    room.boot(M1)
    room.boot(M2)
    layers = {m["mac"]: m for m in json.loads(room.pxed("midlayer", "list", "--json"))["midlayers"]}
    assert (layers[M1]["size"], layers[M2]["size"]) == (8 << 20, 16 << 20)
    assert "switch it off" in room.pxed("midlayer", "backup", "desk", "x", status=2)
    room.pxed("client", "forget", "all", "--force")
    assert "orphan" in room.pxed("midlayer", "list")
    room.pxed("client", "note", str(M2), "-m", "known again, and off")
    saved = tmp_path / "saved"
    room.pxed("midlayer", "backup", str(M2), str(saved))
    assert saved.stat().st_size == 16 << 20
    room.pxed("midlayer", "resize", str(M2), "32M")
    room.pxed("midlayer", "restore", str(M2), str(saved))
    room.pxed("midlayer", "restore", str(M2), "--old")
    path = room.state / "config/midlayers/525400000002.ext4"
    assert path.stat().st_size == 32 << 20
    assert "nothing to delete" in room.pxed("midlayer", "gc")
    assert "nothing was deleted" in room.pxed("midlayer", "gc", "--old", text="n\n")
    assert "1 deleted" in room.pxed("midlayer", "gc", "--old", "--yes")


def test_a_disk_that_is_nearly_full(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.stop()
    room.config.write_text("")
    room.start()
    room.config.write_text(room.config.read_text().replace("keep_free = 0", 'keep_free = "16T"'))
    room.pxed("config", "reload")
    room.discover(M2)
    room.until(lambda: room.events("midlayer-failed"))
    room.until(lambda: any("keep_free" in each["text"] for each in room.events("alarm")))
    room.boot(M1)  # who has one goes on


def test_a_layer_that_was_not_closed_is_mended_and_a_damaged_one_not_shown(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.boot(M2)
    room.stop()
    layers = room.state / "config/midlayers"
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", layers / "525400000001.ext4"],
                   check=True, capture_output=True)  # fmt: skip
    with (layers / "525400000002.ext4").open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))
    room.start()
    room.boot(M1)
    room.boot(M2)
    checked = {e["mac"]: e["checked"] for e in room.events("midlayer-ready")}
    assert checked[M1] in ("mended", "journal replayed")
    assert checked[M2] == "damaged"
    assert len(room.read(M1, 3)) == 512
    room.sees_no(M2, 3)
    room.until(lambda: any("needs a person" in e["text"] for e in room.events("alarm")))
    states = {m["mac"]: m["state"] for m in room.control.get("/v1/midlayers")["midlayers"]}
    assert states == {M1: "in use", M2: "damaged"}
    room.stop()
    room.start()  # what was found holds for as long as that boot does
    room.sees_no(M2, 3)
    with room.initiator(M2) as initiator:
        initiator.write(16, 4, 0, b"degraded 2.0 e16.3: no answer".ljust(512, b"\0"))
    room.until(lambda: room.control.get("/v1/status")["degraded"] == 1)
    assert "its midlayer is damaged: " in room.pxed("client", "show", str(M2))
    assert "(1 degraded: pxed client list)" in room.pxed("status")


def test_two_cards_are_one_client(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.boot(M2)
    assert "switch it off" in room.pxed("client", "join", str(M1), str(M2), status=2)
    room.pxed("client", "forget", str(M2), "--force")
    room.pxed("client", "join", str(M1), str(M2))
    with room.initiator(M1) as initiator:
        initiator.write(16, 3, 8000, b"precious".ljust(512, b"\0"))
    assert room.read(M2, 3, 8000)[:8] == b"precious"
    room.stop(signal.SIGKILL)
    room.start()
    assert room.read(M2, 3, 8000)[:8] == b"precious"
    assert [c["mac"] for c in room.control.get("/v1/clients")] == [M1]
    room.pxed("client", "join", str(M1), str(M2), "--part")
    room.sees_no(M2, 3)


def test_wake_on_lan(room: Room) -> None:
    room.start()
    with room.cable.cli.inside():
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0842))
    with heard:
        heard.settimeout(60)
        heard.bind(("eth0", 0x0842))
        room.pxed("client", "wake", str(M1))
        frame = heard.recv(2000)
    assert frame[14:] == b"\xff" * 6 + mac_bytes(M1) * 16


def test_a_reload_is_whole_or_nothing(room: Room) -> None:
    room.start()
    room.write('[clients]\nadmit = "approve"\n[dhcp]\nlease = "1h"\n')
    assert "clients.admit: all -> approve" in room.pxed("config", "reload", "--dry-run")
    assert room.discover(M1) != ""
    assert "taken over" in room.pxed("config", "reload")
    room.refused(M2, "waits for approval")
    room.write('[aoe]\nworkers = 2\n[clients]\nadmit = "all"\n')
    said = room.pxed("config", "reload", status=2)
    assert "aoe.workers: 1 -> 2  (needs a restart)" in said
    assert "nothing was taken over" in said
    assert room.discover(M2, 1) == ""
    room.write('[clients]\nadmit = "some"\n')
    assert "admit" in room.pxed("config", "reload", status=2)
    room.write('[class.x86]\nimage = "other"\n')
    assert "no image other" in room.pxed("config", "reload", status=2)
    room.write('[dhcp]\nlease = "1h"\n[clients]\nadmit = "all"\n')
    assert room.process is not None
    room.process.send_signal(signal.SIGHUP)
    room.until(lambda: room.control.get("/v1/config/diff")["changes"] == [])
    assert room.discover(M2) != ""


def test_bad_requests_are_one_line(room: Room) -> None:
    room.start()
    post = room.control.post
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/clients/boot", {"select": ["all"], "order": "moon"}),
        ("/v1/clients/boot", {"select": [M1], "order": "image=other"}),
        ("/v1/clients/name", {"client": M1, "name": "a\nb"}),
        ("/v1/clients/name", {"client": M1, "name": M2}),
        ("/v1/clients/note", {"select": "all", "note": ""}),
        ("/v1/clients/note", {"select": [M1], "note": "x", "more": 1}),
        ("/v1/clients/group", {"select": [M1]}),
        ("/v1/images/use", {"image": "lab@9"}),
        ("/v1/images/use", {"image": "lab@1", "channel": "../x"}),
        ("/v1/midlayers/backup", {"client": "nobody", "file": "x"}),
        ("/v1/midlayers/remove", {"macs": ["x"]}),
        ("/v1/doctor/simulate", {"firmware": "c64"}),
        ("/v1/nothing", {}),
    ]
    for what, body in requests:
        with pytest.raises(UsageError) as raised:
            post(what, body)
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="absolute"):
        list(room.control.follow("/v1/images", {"directory": "source"}))


def test_the_doctor_finds_a_working_server_and_a_broken_one(room: Room) -> None:
    room.start()
    command = [sys.executable, "-m", "pxed", "doctor", "-c", str(room.config)]
    done = room.cable.srv.run(command, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("privileges", "MTU", "undionly.kpxe", "ring", "uefi client (simulated)"):
        assert word in done.stdout
    assert "BROKEN" not in done.stdout
    assert room.control.get("/v1/clients") == []
    room.stop()
    shutil.rmtree(room.state / "images")
    room.cable.srv.ip("addr flush dev eth0")
    done = room.cable.srv.run([*command, "--json"], check=False, timeout=120)
    assert done.returncode == 1
    broken = {f["about"] for f in json.loads(done.stdout) if f["grade"] == "BROKEN"}
    assert {"address", "image x86"} <= broken
