"""``aoe-fast`` as a person uses it: served to aoetools and to itself, and every misuse."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("aoe_fast.server", reason="the extension is not built: run script/bootstrap")

from aoe_fast.initiator import AtaError, ConfigCommand, Initiator, NoAnswer, TargetError
from pxed.lab.netns import veth
from tests.aoe_peer import PATIENCE, eventually
from tests.conftest import Cable, requires

pytestmark = pytest.mark.netns

AOE_FAST = [sys.executable, "-m", "aoe_fast.cli"]
# The same, which asks for a minute, and not for five seconds, before it says that nobody answers.
_PATIENCE = (
    "from aoe_fast import cli, initiator;"
    " initiator.Initiator.__init__.__kwdefaults__['retries'] = 60; cli.main()"
)
PATIENT = [sys.executable, "-c", _PATIENCE]
ONE, TWO, THREE = (f"52:54:00:00:bb:0{i}" for i in (1, 2, 3))
Serve = Callable[..., "subprocess.Popen[str]"]


def image(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@pytest.fixture
def serve(cable: Cable, tmp_path: Path) -> Iterator[Serve]:
    """Starts ``aoe-fast serve`` with more arguments and waits for its ready line, ``.args[-1]``."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, control: str = "ctl") -> "subprocess.Popen[str]":
        process = cable.srv.popen(
            [*AOE_FAST, "serve", "-i", "eth0", "--control", str(tmp_path / control), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            pytest.fail(f"serve did not start: {process.stderr.read()}")
        assert line.startswith("aoe-fast: ready on eth0")
        process.args = [line]
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*AOE_FAST, *arguments], capture_output=True, text=True, check=False)


def client(cable: Cable, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return cable.cli.run([*PATIENT, *arguments], check=False, timeout=200)


def stopped(process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> tuple[int, str]:
    """(exit status, stderr) after a signal."""
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def finds(initiator: Initiator, *slots: int) -> bool:
    """Whether it finds these, and at last only these."""
    return eventually(lambda: [device.slot for device in initiator.discover(wait=0.2)] == [*slots])


# Good days


def test_ready_line_names_every_export(serve: Serve, tmp_path: Path) -> None:
    a, b = image(tmp_path / "a.img", 1 << 20), image(tmp_path / "b, c.img", 4096)
    process = serve("--export", f"16.0={a}", "--export", f"16.3={b},rw,writeback,mac={ONE}")
    line = f"aoe-fast: ready on eth0: 16.0={a} (1.0 MiB, ro)"
    line += f"; 16.3={b} (4.0 KiB, rw writeback, for {ONE})\n"
    assert process.args == [line]
    assert stopped(process) == (0, "")
    assert not (tmp_path / "ctl").exists()


def test_aoeping_and_aoecfg(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    requires("aoeping", "aoecfg")
    serve("--export", f"16.0={image(tmp_path / 'a.img', 1 << 20)}", "--wire-config")
    ping = cable.cli.run(["aoeping", "-I", "-s", "50", "16", "0", "eth0"])
    assert "model: aoe_fast" in ping.stdout
    assert cable.cli.run(["aoeping", "-s", "1", "16", "1", "eth0"], check=False).returncode != 0

    def aoecfg(*arguments: str) -> str:
        command = ["aoecfg", "-t", "50", *arguments, "16", "0", "eth0"]
        return cable.cli.run(command, check=False).stdout.strip()

    assert aoecfg("-c", "set", "-s", "seat 7") == "seat 7"
    assert aoecfg("-c", "read") == "seat 7"
    assert aoecfg("-c", "test", "-s", "seat 7") == "seat 7"
    assert aoecfg("-c", "prefix", "-s", "seat") == "seat 7"
    assert aoecfg("-c", "fset", "-s", "x" * 1000) == "x" * 1000
    # Not 1024: Debian's aoecfg overflows a buffer of its own from 1023 on.
    everybody = ["aoecfg", "-t", "1", "eth0"]
    assert eventually(lambda: cable.cli.run(everybody).stdout == f"16.0\t{'x' * 1000}\n")


def test_longest_config_string(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    serve("--export", f"16.0={image(tmp_path / 'a.img', 4096)}", "--wire-config")
    with cable.cli.inside(), Initiator("eth0") as initiator:
        for size in (24, 25, 1024, 0):
            config = initiator.config(16, 0, ConfigCommand.FORCE, b"y" * size)
            assert config is not None
            assert config.string == b"y" * size
        with pytest.raises(TargetError, match="bad argument"):
            initiator.config(16, 0, ConfigCommand.FORCE, b"y" * 1025)


def test_an_image_whose_name_is_no_utf_8(serve: Serve, tmp_path: Path) -> None:
    """One of another time, or another system; a newline in it is no end of the ready line."""
    disk = image(tmp_path / os.fsdecode(b"gr\xfcn\n.img"), 4096)
    process = serve("--export", f"16.0={disk},rw")
    where = f"={tmp_path}/gr\\udcfcn\\n.img (4.0 KiB"
    assert process.args == [f"aoe-fast: ready on eth0: 16.0{where}, rw durable)\n"]
    control = ("--control", str(tmp_path / "ctl"))
    added = run("export", "add", *control, f"16.1={disk}")
    assert added.stdout == f"aoe-fast: added 16.1{where}, ro)\n"
    config = os.fsdecode(b"\xfc")
    assert run("export", "set", *control, "16.1", "--config", config).returncode == 0
    (row,) = (row for row in json.loads(run("export", "list", *control, "--json").stdout)
              if row["address"] == "16.1")  # fmt: skip
    assert (os.fsencode(row["path"]), row["config"]) == (os.fsencode(disk), "\\xfc")
    assert run("export", "list", *control).stdout.count("\n") == 2
    assert stopped(process) == (0, "")


def test_an_alarm_is_one_line(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    process = serve("--export", f"16.0={image(tmp_path / 'a.img', 4096)}")
    cable.srv.ip("link del eth0")
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said == "aoe-fast: eth0 is gone: waiting for it to come back\n"
    assert stopped(process) == (0, "")


def test_two_interfaces(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    veth(cable.srv, "eth1", cable.cli, "eth1")
    disk = image(tmp_path / "a.img", 1 << 20)
    serve("-i", "eth1", "--export", f"16.0={disk}", "--workers", "2")
    macs = set()
    for name in ("eth0", "eth1"):
        with cable.cli.inside(), Initiator(name) as initiator:
            macs.add(initiator.device(16, 0).mac)
            assert initiator.read(16, 0, 0, 2048) == disk.read_bytes()
    assert len(macs) == 2


def test_config_is_not_for_clients_to_set(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    serve("--export", f"16.0={image(tmp_path / 'a.img', 4096)}")
    with cable.cli.inside(), Initiator("eth0") as initiator:
        with pytest.raises(TargetError):
            initiator.config(16, 0, ConfigCommand.FORCE, b"mine")
        (device,) = initiator.discover(16, 0, wait=PATIENCE)
        assert device.config == b""


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_read_whole_export(serve: Serve, cable: Cable, tmp_path: Path, mtu: int) -> None:
    for space in (cable.srv, cable.cli):
        space.ip(f"link set eth0 mtu {mtu}")
    disk = image(tmp_path / "a.img", (8 << 20) + 4096)
    serve("--export", f"16.0={disk}")
    copy = tmp_path / "copy.img"
    result = client(cable, "read", "-i", "eth0", "16.0", str(copy))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert copy.read_bytes() == disk.read_bytes()


def test_part_of_a_file(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img", 1 << 20)
    serve("--export", f"16.0={disk},offset=64K,length=128K")
    copy = tmp_path / "copy.img"
    part = ["--offset", "512", "--count", "3K"]
    assert client(cable, "read", "-i", "eth0", "16.0", str(copy), *part).returncode == 0
    assert copy.read_bytes() == disk.read_bytes()[(64 << 10) + 512 :][: 3 << 10]
    whole = client(cable, "read", "-i", "eth0", "16.0", str(copy))
    assert whole.returncode == 0
    assert copy.read_bytes() == disk.read_bytes()[64 << 10 :][: 128 << 10]


@pytest.fixture
def hangups() -> Iterator[None]:
    """Where the tests run under nohup(1), children would ignore SIGHUP too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_write_then_stop(
    serve: Serve, cable: Cable, tmp_path: Path, number: signal.Signals
) -> None:
    disk = image(tmp_path / "a.img", 2 << 20)
    before = disk.read_bytes()
    process = serve("--export", f"16.0={disk},rw")
    data = image(tmp_path / "data", 1 << 20, seed=5)
    result = client(cable, "write", "-i", "eth0", "16.0", str(data), "--offset", "4K")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert stopped(process, number) == (0, "")
    assert not (tmp_path / "ctl").exists()
    assert disk.read_bytes() == before[:4096] + data.read_bytes() + before[4096 + (1 << 20) :]


def test_discover(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    serve("--export", f"16.0={image(tmp_path / 'a.img', 1 << 20)}")
    found: list[dict[str, object]] = []
    lines: list[str] = []

    def look() -> bool:
        found[:] = json.loads(client(cable, "discover", "-i", "eth0", "--json").stdout)
        return bool(found and found[0]["bytes"])

    def list_them() -> bool:
        lines[:] = client(cable, "discover", "-i", "eth0").stdout.splitlines()
        return bool(lines)

    assert eventually(look)
    assert [(each["address"], each["bytes"], each["scnt"]) for each in found] == [
        ("16.0", 1 << 20, 2)
    ]
    assert eventually(list_them)
    assert [line.split()[0] for line in lines] == ["16.0"]


def test_discover_nothing(cable: Cable) -> None:
    result = client(cable, "discover", "-i", "eth0", "--json", "--wait", "0.1")
    assert (result.returncode, json.loads(result.stdout)) == (0, [])


def test_private_exports_at_one_address(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    common = image(tmp_path / "root.img", 8192, seed=1)
    mine, yours = (image(tmp_path / f"{i}.img", 4096 * i, seed=i) for i in (2, 3))
    serve(
        "--export", f"16.1={common}",
        "--export", f"16.3={mine},rw,mac={ONE}",
        "--export", f"16.3={yours},rw,mac={TWO}",
    )  # fmt: skip
    with (
        cable.cli.inside(),
        Initiator("eth0", source_mac=raw(ONE)) as one,
        Initiator("eth0", source_mac=raw(TWO)) as two,
        Initiator("eth0", source_mac=raw(THREE), timeout=0.05, retries=1) as three,
    ):
        for initiator, own in ((one, mine), (two, yours)):
            assert finds(initiator, 1, 3)
            assert initiator.identify(16, 3).sectors == own.stat().st_size // 512
            assert initiator.read(16, 3, 0, 8) == own.read_bytes()[:4096]
            assert initiator.read(16, 1, 0, 16) == common.read_bytes()
        assert finds(three, 1)
        with pytest.raises(NoAnswer):
            three.identify(16, 3)
        one.write(16, 3, 1, b"1" * 512)
        two.write(16, 3, 1, b"2" * 512)
        with pytest.raises(AtaError, match="command aborted"):
            one.write(16, 1, 0, b"1" * 512)
    assert mine.read_bytes()[512:1024] == b"1" * 512
    assert yours.read_bytes()[512:1024] == b"2" * 512
    assert common.read_bytes() == random.Random(1).randbytes(8192)


def test_stat(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img", 1 << 20)
    serve("--export", f"16.0={disk}", "--export", f"16.3={disk},mac={ONE}")
    client(cable, "read", "-i", "eth0", "16.0", str(tmp_path / "copy"))
    control = ["--control", str(tmp_path / "ctl")]
    answer = json.loads(client(cable, "stat", *control, "--json").stdout)
    rows = {(row["mac"], row["slot"]): row for row in answer["exports"]}
    assert set(rows) == {(None, 0), (ONE, 0), (ONE, 3)}
    # What came late was asked for, and read, once more.
    (reader,) = answer["clients"]
    assert rows[None, 0]["read_bytes"] == reader["bytes"] >= 1 << 20
    assert reader["bytes"] - (1 << 20) <= 1024 * (reader["requests"] - 1026)
    assert rows[ONE, 0]["read_bytes"] == 0
    assert sum(worker["drops"] for worker in answer["workers"]) == 0
    lines = client(cable, "stat", *control).stdout.splitlines()
    assert lines[0].startswith("eth0: up ")
    assert len(lines) == 7
    assert lines[5].startswith("CLIENT")
    text = client(cable, "stat", *control, "--prometheus").stdout
    read_bytes = r'^aoe_export_read_bytes_total\{mac="",shelf="16",slot="0"\} (\d+)$'
    (value,) = re.findall(read_bytes, text, re.MULTILINE)
    assert int(value) >= rows[None, 0]["read_bytes"]
    for line in text.splitlines():
        assert line.startswith("# ") or re.fullmatch(
            r'aoe_\w+(\{(\w+="[^"]*",?)+\})? [0-9.e+]+', line
        )


def test_stop_under_load(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    """SIGTERM in the middle of a copy: exit 0, and the client says in one line what happened."""
    # So large that no reader comes to its end before the signal.
    disk = tmp_path / "a.img"
    disk.touch()
    os.truncate(disk, 1 << 40)
    process = serve("--export", f"16.0={disk}")
    copy = tmp_path / "copy"
    reader = cable.cli.popen(
        [*AOE_FAST, "read", "-i", "eth0", "16.0", str(copy), "--wait", "1"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert eventually(lambda: copy.exists() and copy.stat().st_size)
    assert stopped(process) == (0, "")
    _, err = reader.communicate(timeout=PATIENCE)
    assert reader.returncode == 1
    assert err.startswith("aoe-fast: 16.0 read of sector ")
    assert err.count("\n") == 1
    assert not copy.exists()


def test_a_killed_servers_socket_is_taken_over(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    export = f"16.0={image(tmp_path / 'a.img', 4096)}"
    first = serve("--export", export)
    first.kill()
    first.wait()
    assert (tmp_path / "ctl").is_socket()
    assert client(cable, "stat", "--control", str(tmp_path / "ctl")).returncode == 1
    second = serve("--export", export)
    assert client(cable, "stat", "--control", str(tmp_path / "ctl")).returncode == 0
    other = export.replace("16.0", "16.1")
    third = cable.srv.run(
        [*AOE_FAST, "serve", "-i", "eth0", "--export", other, "--control", str(tmp_path / "ctl")],
        check=False,
    )
    assert third.returncode == 2
    assert "another aoe-fast serve answers there" in third.stderr
    assert stopped(second) == (0, "")


def test_control_socket_survives_nonsense(serve: Serve, cable: Cable, tmp_path: Path) -> None:
    serve("--export", f"16.0={image(tmp_path / 'a.img', 4096)}")
    path = str(tmp_path / "ctl")
    nested = b"[" * 60000 + b"\n"
    for line in (b"", b"\xff\n", b"[1]\n", b"x" * 10000, nested, b'{"command": "reboot"}\n'):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            peer.sendall(line)
    assert client(cable, "stat", "--control", path).returncode == 0


# Bad days


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--export", "16.0"], "SHELF.SLOT=PATH"),
        (["--export", "x.0=a.img"], "'x.0' is not SHELF.SLOT"),
        (["--export", "16=a.img"], "'16' is not SHELF.SLOT"),
        (["--export", "4095.0=a.img"], "Linux discards shelf 4095"),
        (["--export", "65535.0=a.img"], "shelves go from 0 to 65534"),
        (["--export", "16.255=a.img"], "slots from 0 to 254"),
        (["--export", "16.0=a.img,fast"], "unknown option 'fast'"),
        (["--export", "16.0=a.img,ro,rw"], "ro or rw, not both"),
        (["--export", "16.0=a.img,rw,durable,writeback"], "durable or writeback, not both"),
        (["--export", "16.0=a.img,writeback"], "add rw"),
        (["--export", "16.0=a.img,mac=12"], "'12' is not a MAC"),
        (["--export", "16.0=a.img,mac=01:00:5e:00:00:01"], "group address"),
        (["--export", "16.0=a.img,offset=x"], "'x' is not a size"),
        (["--export", "16.0=a.img,offset=100"], "multiple of 512"),
        (["--export", "16.0=a.img,length=1G"], "length"),
        (["--export", "16.0=missing.img"], "missing.img: no such file"),
        (["--export", "16.0=empty.img"], "empty.img: is empty"),
        (["--export", "16.0=."], "directory"),
        (["--export", "16.0=a.img", "--export", "16.0=b.img"], "16.0 twice for everybody"),
        (
            ["--export", "16.0=a.img", "--export", f"16.0=b.img,mac={ONE}"],
            f"16.0 twice for {ONE}",
        ),
        (["--export", "16.0=a.img", "-i", "nope"], "no interface 'nope'"),
        (["--export", "16.0=a.img,offset=512,offset=1K"], "offset twice"),
        (["--export", "16.0=a.img", "--workers", "0"], "workers 0"),
        (["--export", "16.0=a.img", "--workers", "9999999999"], "workers 9999999999"),
        (["--export", "16.0=a.img", "--bufcnt", "1"], "bufcnt 1"),
        (["--export", "16.0=a.img", "--bufcnt", "x"], "'x' is not a valid integer"),
        (["--export", "16.0=a.img", "--control", "a.img"], "it exists and is no socket"),
        (["--export", "16.0=a.img", "--spin-us", "-1"], "'--spin-us': -1 is not in the range"),
        (["--export", "16.0=a.img", "--clients", "0"], "'--clients': 0 is not in the range"),
        (["--export", "16.0=a.img", "--user", ""], "--user: is empty"),
        (["--export", "16.0=a.img", "--state", ""], "--state: is empty"),
        (["--export", "16.0=a.img", "--control", ""], "--control: is empty"),
        (["--export", "16.0=a.img", "--frob"], "--frob"),
        ([], "--export"),
    ],
)
def test_serve_misuse(cable: Cable, tmp_path: Path, arguments: list[str], says: str) -> None:
    image(tmp_path / "a.img", 4096)
    image(tmp_path / "b.img", 4096)
    (tmp_path / "empty.img").touch()
    if "--control" not in arguments:
        arguments = [*arguments, "--control", "ctl"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = cable.srv.popen(
        [*AOE_FAST, "serve", "-i", "eth0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("aoe-fast: ")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.img", "b.img", "empty.img"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["read", "-i", "nope", "16.0", "OUT"], 2, "no interface 'nope'"),
        (["read", "-i", "eth0", "16", "OUT"], 2, "is not SHELF.SLOT"),
        (["read", "-i", "eth0", "16.0", "OUT", "--offset", "100"], 2, "multiple of 512"),
        (["read", "-i", "eth0", "16.0", "OUT", "--offset", "1M"], 2, "16.0 ends at 8192"),
        (["read", "-i", "eth0", "16.0", "OUT", "--count", "16K"], 2, "16.0 ends at 8192"),
        (["read", "-i", "eth0", "16.0", "no/such/dir"], 2, "No such file or directory"),
        (["read", "-i", "eth0", "16.9", "OUT"], 1, "16.9 on eth0: no answer"),
        (["write", "-i", "eth0", "16.0", "missing"], 2, "missing: No such file"),
        (["write", "-i", "eth0", "16.0", "odd"], 2, "multiple of 512"),
        (["write", "-i", "eth0", "16.0", "large"], 2, "do not fit 16.0"),
        (["write", "-i", "eth0", "16.0", "good"], 1, "is it exported read-only?"),
        (["discover", "-i", "nope"], 2, "no interface 'nope'"),
        (["discover"], 2, "--interface"),
        (["discover", "-i", "eth0", "--wait", "nan"], 2, "no number of seconds"),
        (["read", "-i", "eth0", "16.0", "/dev/full"], 1, "/dev/full: No space left"),
        (["write", "-i", "eth0", "16.0", "/dev/null"], 2, "not a file or a block device"),
        (["stat"], 2, "-i IFACE or --control PATH"),
        (["stat", "--control", "good"], 1, "is `aoe-fast serve` running?"),
    ],
)
def test_client_misuse(
    serve: Serve, cable: Cable, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    serve("--export", f"16.0={image(tmp_path / 'disk', 8192)}")
    room = tmp_path / "room"
    room.mkdir()
    for name, size in (("odd", 100), ("large", 1 << 20), ("good", 4096)):
        image(room / name, size)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = AOE_FAST if says.endswith("no answer") else PATIENT
    process = cable.cli.popen(
        [*program, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=room, env=environment,
    )  # fmt: skip
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (code, "")
    assert err.startswith("aoe-fast: ")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in room.iterdir()) == ["good", "large", "odd"]


def test_version() -> None:
    result = subprocess.run([*AOE_FAST, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("aoe-fast, version ")
