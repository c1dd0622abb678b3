"""``aoe-fast`` copies and compares, and says what is slow; what it shows is safe to look at."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aoe_fast.frames import LinuxPace
from aoe_fast.initiator import Initiator
from tests.aoe_peer import PATIENCE
from tests.conftest import Cable, requires
from tests.netns.test_aoe_cli import client
from tests.netns.test_aoe_cli_hot import AOE_FAST, Start, export, image, start

__all__ = ["start"]  # the fixture
pytestmark = pytest.mark.netns


@pytest.mark.parametrize("pace", ["steady", "linux"])
def test_a_copy_there_and_back_is_verified(
    start: Start, cable: Cable, tmp_path: Path, pace: str
) -> None:
    disk = image(tmp_path / "a.img", 1 << 20)
    start(cable.srv, "--export", f"16.0={disk},rw,writeback")
    source = image(tmp_path / "source", 300 * 512)
    more = ("--offset", "64K", "--verify", "--pace", pace)
    done = client(cable, "write", "-i", "eth0", "16.0", str(source), *more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    where = ("--offset", "64K", "--count", "150K", "--pace", pace)
    assert (
        client(cable, "read", "-i", "eth0", "16.0", str(tmp_path / "back"), *where).returncode == 0
    )
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


# ``aoe-fast``, on whose disk, the first argument, somebody else writes before it is read back.
FORGETS = """
import sys
from aoe_fast import cli, copies, initiator
initiator.Initiator.__init__.__kwdefaults__["retries"] = 60
disk, compare = sys.argv.pop(1), copies._compare
def forget(*words):
    with open(disk, "r+b") as file:
        file.seek(-512, 2)
        file.write(b"!" * 512)
    compare(*words)
copies._compare = forget
cli.main()
"""


def test_a_disk_that_forgets_is_found_out(start: Start, cable: Cable, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img", 8 << 20)
    start(cable.srv, "--export", f"16.0={disk},rw,writeback")
    source = image(tmp_path / "source", 8 << 20)
    forgets = [sys.executable, "-c", FORGETS, str(disk)]
    words = ["write", "-i", "eth0", "16.0", str(source), "--verify"]
    copy = cable.cli.run([*forgets, *words], check=False)
    assert copy.returncode == 1
    said = copy.stderr
    assert re.fullmatch(r"aoe-fast: 16\.0: sector 16383 reads back wrong: .*\n", said), said
    assert disk.read_bytes()[:-512] == source.read_bytes()[:-512]


def test_a_targets_words_do_nothing_to_a_terminal(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    start(cable.srv, "--export", f"16.0={image(tmp_path / 'a.img')}")
    assert export(tmp_path, "set", "16.0", "--config", "\x1b[2Jgone\n\u202e").returncode == 0
    said = client(cable, "discover", "-i", "eth0").stdout
    assert said.rstrip("\n").isprintable()
    assert r"\x1b[2Jgone\n\u202e" in said
    assert export(tmp_path, "list").stdout.rstrip("\n").isprintable()


def test_linux_pace_is_chosen(start: Start, cable: Cable, tmp_path: Path) -> None:
    start(cable.srv, "--export", f"16.0={image(tmp_path / 'a.img')}")
    with cable.cli.inside(), Initiator("eth0", pace="linux") as initiator:
        assert initiator._pace is LinuxPace
        assert len(initiator.read(16, 0, 0, 128)) == 65536


def test_a_bar_on_a_terminal(start: Start, cable: Cable, tmp_path: Path) -> None:
    requires("script")
    start(cable.srv, "--export", f"16.0={image(tmp_path / 'a.img', 1 << 20)}")
    command = " ".join([*AOE_FAST, "read", "-i", "eth0", "16.0", str(tmp_path / "out")])
    done = cable.cli.run(["script", "-qec", command, "/dev/null"])
    assert "100%" in done.stdout


def test_sizes_that_are_refused_and_that_are_slow(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    odd = image(tmp_path / "odd", 1000)
    done = cable.srv.run([*AOE_FAST, "serve", "-i", "eth0", "--export", f"16.0={odd}"], check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "truncate" in done.stderr
    slow = image(tmp_path / "slow", 4096 + 512)
    server = start(cable.srv, "--export", f"16.0={slow}")
    added = export(tmp_path, "add", f"16.1={slow}")
    server.terminate()
    _, said = server.communicate(timeout=PATIENCE)
    for text in (said, added.stderr):
        assert "no multiple of 4096" in text


def test_watching_shows_a_rate_and_ends_quietly(start: Start, cable: Cable, tmp_path: Path) -> None:
    start(cable.srv, "--export", f"16.0={image(tmp_path / 'a.img')}")
    watch = subprocess.Popen(
        [*AOE_FAST, "stat", "--watch", "--control", str(tmp_path / "ctl")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert watch.stdout is not None
        assert any(re.search(r"\d+ frames \(\d+/s\)", line) for line in watch.stdout)
        watch.send_signal(signal.SIGINT)
        _, err = watch.communicate(timeout=PATIENCE)
    finally:
        watch.kill()
        watch.wait()
    assert (watch.returncode, err) == (0, "")


# Prometheus


LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def test_prometheus_text_keeps_the_formats_rules(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    """Exposition format 0.0.4: HELP and TYPE before samples, families together, no series twice,
    histograms that grow up to +Inf, which equals their count."""
    disk = image(tmp_path / "a.img")
    mac = "52:54:00:00:00:01"
    start(cable.srv, "--export", f"16.0={disk},rw", "--export", f"16.1={disk},mac={mac}")
    with cable.cli.inside(), Initiator("eth0") as initiator:
        initiator.write(16, 0, 0, b"x" * 4096)
        initiator.read(16, 0, 0, 100)
        more = 1024 * initiator.repeated  # each of two sectors at most
    text = subprocess.run(
        [*AOE_FAST, "stat", "--prometheus", "--control", str(tmp_path / "ctl")],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    ).stdout  # fmt: skip
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    values: dict[tuple[str, str], float] = {}
    helped, current = "", ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split()[2]
            assert helped not in kinds, f"{helped} comes in two places"
            continue
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split()
            assert current == helped
            kinds[current] = kind
            continue
        match = LINE.fullmatch(line)
        assert match is not None, line
        name, labels, value = match[1], match[2] or "", float(match[3])
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        assert (family if kinds.get(family) == "histogram" else name) == current, line
        assert kinds[current] != "counter" or name.endswith("_total"), line
        assert (name, labels) not in seen, line
        seen.add((name, labels))
        values[name, labels] = value
    buckets = [(key, value) for key, value in values.items() if key[0].endswith("_bucket")]
    assert buckets
    last = -1.0
    for (name, labels), value in buckets:
        assert value >= last
        last = -1.0 if 'le="+Inf"' in labels else value
        if 'le="+Inf"' in labels:
            rest = labels.replace(',le="+Inf"', "")
            assert values[name.replace("_bucket", "_count"), rest] == value
    everybody = 'mac="",shelf="16",slot="0"'
    assert 4096 <= values["aoe_export_written_bytes_total", everybody] <= 4096 + more
    assert 51200 <= values["aoe_export_read_bytes_total", everybody] <= 51200 + more
