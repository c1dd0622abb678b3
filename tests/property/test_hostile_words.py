"""Whatever a machine says, what is logged and shown of it is one line of printable text."""

import contextlib
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pxed import narrative
from pxed.dhcp.codec import DhcpError
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.dhcp.rival import answer, seen
from pxed.dhcp.solicit6 import solicit
from pxed.eventlog import line_of
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.net.http import _shown
from pxed.net.icmpv6 import solicitation
from pxed.table import table
from pxed.tftp.session import shown
from pxed.watch import parse_report
from tests.dhcp_asks import plan
from tests.fuzz.test_fuzz import CORPUS, DAMAGE, damaged, seeds

EVIL = st.lists(
    st.sampled_from(["\x1b", "[2J", "\n", "\r", "\0", "\x7f", "\x9b", "\u202e", "\ud800", "a", '"',
                     "=", " ", "\u2028", "\x85", "%s", "{0}"]), max_size=20,
).map("".join)  # fmt: skip
"""Terminal sequences, line ends of every kind, text that runs backwards."""


def check(event: Event) -> None:
    """The log line, the words for people and the table show it, each on one line."""
    texts = [line_of({"event": event.kind.value, **event.detail}), narrative.words(event)]
    rows = [[str(value) for value in event.detail.values()]]
    texts += table(["x"] * len(rows[0]), rows, width=80).split("\n") if rows[0] else []
    for text in texts:
        assert text.isprintable(), (event, text)


def policies() -> list[Policy]:
    return [
        Policy(Settings(mode, IPv4Address("10.77.0.1"), 24),
               Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.59")), plan)
        for mode in (Mode.PXE_ONLY, Mode.ALL, Mode.PROXY)
    ]  # fmt: skip


SERVERS = policies()
VENDOR = b"PXEClient:Arch:00000:UNDI:002001"


def with_words(data: bytes, words: bytes, code: int) -> bytes:
    """One option more, before all others, of a message as it was captured."""
    return data[:240] + bytes([code, min(len(words), 255)]) + words[:255] + data[240:]


@given(data=st.sampled_from(seeds("dhcp")), damage=DAMAGE, words=EVIL,
       code=st.sampled_from([12, 15, 17, 43, 60, 66, 67, 77, 81, 93, 97, 175]))  # fmt: skip
@settings(max_examples=1500, deadline=None)
def test_no_word_of_a_client_reaches_a_terminal_raw(
    data: bytes, damage: tuple[int, int, int, bytes], words: str, code: int
) -> None:
    """DHCP, in each mode; nothing but the one declared error is raised."""
    raw = words.encode("utf-8", "surrogatepass")
    for message in (
        damaged(data, damage), with_words(data, raw, code), with_words(data, VENDOR + raw, 60),
    ):  # fmt: skip
        for server in SERVERS:
            with contextlib.suppress(DhcpError):
                for event in server.handle(message, 1.0).events:
                    check(event)
            with contextlib.suppress(DhcpError):
                source = IPv4Address("10.77.0.9"), 4011
                for event in server.handle_boot(message, 1.0, source).events:
                    check(event)


@given(words=EVIL, more=st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_names_and_reports(words: str, more: bytes) -> None:
    raw = words.encode("utf-8", "surrogatepass") + more
    text = raw.decode("utf-8", "surrogateescape")
    step, uptime, said = parse_report(raw[:512].ljust(512, b"\0"))
    assert 0 <= uptime <= 1e9
    check(Event(Kind.REPORT, None, 1.0, {"step": step, "uptime": uptime, "text": said}))
    for name in (shown(text), _shown(text)):
        check(Event(Kind.TFTP_FAILED, None, 1.0, {"ip": "10.77.0.9", "file": name, "why": name}))
        check(Event(Kind.HTTP_MISSING, None, 1.0, {"ip": "10.77.0.9", "file": name}))


@given(data=st.sampled_from(seeds("dhcp")), damage=DAMAGE, words=EVIL)
@settings(max_examples=500, deadline=None)
def test_what_another_server_says(
    data: bytes, damage: tuple[int, int, int, bytes], words: str
) -> None:
    """Its answers name a boot file, in a field of its own or an option."""
    raw = words.encode("utf-8", "surrogatepass")[:100]
    spoken = bytearray(damaged(with_words(data, raw, 67), damage))
    if len(spoken) >= 240:
        spoken[0] = 2
        spoken[108 : 108 + len(raw)] = raw
    mac, ip = Mac("02:00:00:00:00:01"), IPv4Address("10.77.0.9")
    xid = int.from_bytes(spoken[4:8], "big")
    rival = answer(bytes(spoken), mac, xid, mac, ip)
    if rival is not None:
        assert str(rival).isprintable()
        assert rival.file.isprintable()


@given(frame=st.binary(max_size=300), at=st.integers(0, 60))
@settings(max_examples=500, deadline=None)
def test_frames_of_ipv6(frame: bytes, at: int) -> None:
    """Any bytes, and any bytes behind headers that pass."""
    head = bytearray(58)
    head[12:14], head[20], head[56:58] = b"\x86\xdd", 17, (547).to_bytes(2, "big")
    for each in (frame, bytes(head) + frame, bytes(head)[:at] + frame):
        solicit(each)
        solicitation(each)


def test_the_check_would_find_it() -> None:
    bad = Event(Kind.IGNORED, None, 1.0, {"why": "a\x1b[2J"})
    with pytest.raises(AssertionError):
        check(bad)
    assert Path(CORPUS / "dhcp").is_dir()
    assert callable(seen)
