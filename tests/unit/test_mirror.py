"""What tests fetch: a mirror that is silent skips them, a fetch that is broken fails them."""

from pathlib import Path

import pytest

from pxed.errors import HostError
from tests import conftest


def test_a_fetch_that_fails_beside_a_mirror_that_answers_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conftest, "mirror_answers", lambda: True)
    with pytest.raises(HostError, match="ours"), conftest.from_mirror():
        raise HostError("ours")


def test_a_silent_mirror_skips_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "mirror_answers", lambda: False)
    skipped = pytest.raises(pytest.skip.Exception, match="does not answer: no route")
    with skipped, conftest.from_mirror():
        raise HostError("no route")


def test_a_mirror_answers_if_apt_gets_its_release_file(tmp_path: Path) -> None:
    conftest.requires("apt-get", root=False)
    assert not conftest.mirror_answers(f"copy:{tmp_path}")
    (tmp_path / "dists/bookworm").mkdir(parents=True)
    (tmp_path / "dists/bookworm/InRelease").write_text("here\n")
    assert conftest.mirror_answers(f"copy:{tmp_path}")
