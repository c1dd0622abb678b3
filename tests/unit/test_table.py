"""Tables for people: what a terminal shows, and what a pipe gets."""

from pxed.table import ago, amount, table

HEADS = ["MAC", "NAME", "FIRMWARE", "IP", "WHY"]
ROWS = [
    ["52:54:00:00:00:01", "seat-01", "uefi", "10.77.0.50", ""],
    [
        "52:54:00:00:00:02",
        "",
        "bios",
        "10.77.0.51",
        "the kernel has not found its disks: does the MTU fit, on the way too?",
    ],
]


def test_a_pipe_gets_all_of_it() -> None:
    lines = table(HEADS, ROWS).splitlines()
    assert lines[0].split() == HEADS
    assert lines[2].endswith("on the way too?")


def test_a_terminal_gets_what_fits_and_the_reason_whole() -> None:
    lines = table(HEADS, ROWS, spare=["FIRMWARE", "IP"], width=80).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[0].split() == ["MAC", "NAME", "IP", "WHY"]
    assert " ".join(line[40:].strip() for line in lines[2:]) == ROWS[1][4]


def test_where_little_is_left_the_reason_goes_below() -> None:
    lines = table(HEADS, ROWS, width=75).splitlines()
    assert lines[-1] == f"    {ROWS[1][4]}"


def test_only_what_must_go_goes() -> None:
    assert "FIRMWARE" in table(HEADS, ROWS, spare=["FIRMWARE", "IP"], width=120)
    narrow = table(HEADS, ROWS, spare=["FIRMWARE", "IP"], width=50).splitlines()
    assert narrow[0].split() == ["MAC", "NAME", "WHY"]
    assert max(len(line) for line in narrow) <= 50


def test_a_last_column_with_some_room_is_folded_where_it_is() -> None:
    lines = table(["MAC", "WHY"], [[ROWS[1][0], "word " * 20]], width=80).splitlines()
    assert [line[:19].strip() for line in lines] == ["MAC", ROWS[1][0], ""]
    assert " ".join(line[19:] for line in lines[1:]).split() == ["word"] * 20


def test_however_narrow_nothing_is_longer_than_the_terminal() -> None:
    assert max(len(line) for line in table(HEADS, ROWS, width=45).splitlines()) <= 45


def test_what_stands_before_the_last_column_is_never_cut() -> None:
    row = ["52:54:00:00:00:01", "seat-" * 12, "booting next:image=lab@2026.11", "why"]
    lines = table(["MAC", "NAME", "STATE", "WHY"], [row], width=80).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert " ".join(lines).split() == " ".join(["MAC NAME STATE WHY", *row]).split()


def test_nothing_is_an_empty_table() -> None:
    assert table(HEADS, [["", "", "", "", ""]]) == ""


def test_columns_that_nobody_has_are_left_out() -> None:
    assert table(["A", "B"], [["1", ""]]) == "A\n1"


def test_amounts_and_spans() -> None:
    assert [amount(n) for n in (0, 1023, 1536, 512 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "512 MiB", "5.0 TiB",
    ]  # fmt: skip
    assert [ago(n) for n in (-1, 119, 120, 7300, 200000)] == ["0 s", "119 s", "2 min", "2 h", "2 d"]
