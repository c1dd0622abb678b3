"""The gate on figures: what is above its bound fails, and one unlucky round does not."""

import json
from pathlib import Path

import pytest

from bench import check
from bench.check import BOUNDS, FIGURES, Figure, judge, read_bounds
from pxed.errors import UsageError


def figure(*answers: list[float], noisy: bool = True) -> tuple[Figure, list[int]]:
    asked: list[int] = []

    def measure(rounds: int) -> list[float]:
        asked.append(rounds)
        return answers[len(asked) - 1]

    return Figure("x", measure, noisy), asked


def test_within_its_bound_it_is_measured_once() -> None:
    one, asked = figure([1.0, 9.0, 1.1])
    assert judge(one, 1.2, 3) == (1.1, True)
    assert asked == [3]


def test_above_it_is_measured_again_longer() -> None:
    one, asked = figure([1.5] * 3, [1.1] * 9)
    assert judge(one, 1.2, 3) == (1.1, True)
    assert asked == [3, 9]


def test_twice_above_it_fails() -> None:
    one, _ = figure([1.5] * 3, [1.6] * 9)
    assert judge(one, 1.2, 3) == (1.5, False)


def test_a_count_is_not_measured_again() -> None:
    one, asked = figure([330.0], noisy=False)
    assert judge(one, 300) == (330.0, False)
    assert len(asked) == 1


def test_every_figure_has_a_bound() -> None:
    assert read_bounds(BOUNDS).keys() == {each.name for each in FIGURES}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nothing": 1}'])
def test_wrong_bounds_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bounds.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"bounds\.json"):
        read_bounds(path)


def test_what_is_worse_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, _ = figure([5.0], [4.0])
    monkeypatch.setattr(check, "FIGURES", (slow,))
    monkeypatch.setattr("bench.check.os.geteuid", lambda: 0)
    monkeypatch.setattr(check, "alone", lambda: "")
    monkeypatch.setattr("bench.check.native.program", lambda _: Path("/bin/true"))
    path = tmp_path / "bounds.json"
    path.write_text('{"x": 2}')
    assert check.main(["--bounds", str(path)]) == 1
    assert "WORSE" in capsys.readouterr().out
    path.write_text('{"x": 6}')
    fast, _ = figure([5.0])
    monkeypatch.setattr(check, "FIGURES", (fast,))
    assert check.main(["--bounds", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["value"] == 5


def test_with_one_cpu_it_says_so_and_counts_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy, asked = figure([5.0])
    count = Figure("count", lambda _: [330.0], noisy=False)
    monkeypatch.setattr(check, "FIGURES", (noisy, count))
    monkeypatch.setattr("bench.check.os.geteuid", lambda: 0)
    monkeypatch.setattr("bench.check.shutil.which", lambda _: "/bin/true")
    monkeypatch.setattr(check, "alone", lambda: "only one CPU")
    path = tmp_path / "bounds.json"
    path.write_text('{"x": 2, "count": 400}')
    assert check.main(["--bounds", str(path)]) == 0
    said = capsys.readouterr()
    assert not asked
    assert "only one CPU" in said.err
    assert "SKIPPED: x" in said.err
    assert "330" in said.out
    path.write_text('{"x": 2, "count": 300}')  # what can be measured still counts
    assert check.main(["--bounds", str(path)]) == 1
