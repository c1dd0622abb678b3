"""The commands that talk to a running ``aoe-fast serve``: how long they wait for it."""

from typing import Any

import pytest
from click.testing import CliRunner

from aoe_fast import remote


@pytest.mark.parametrize(
    "words", [["add", "16.1=disk.img"], ["remove", "16.1"], ["set", "16.1", "--config", "x"]]
)
def test_a_change_may_take_as_long_as_a_disk(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is shared is read for its digest; one that goes is synced."""
    waited = []

    def ask(_path: str, _request: dict[str, Any], *, patience: float = 1) -> dict[str, Any]:
        waited.append(patience)
        return {"added": "16.1=disk.img"}

    monkeypatch.setattr(remote, "ask", ask)
    done = CliRunner().invoke(remote.export, [*words, "--control", "socket"])
    assert done.exit_code == 0, done.output
    assert waited == [600]
