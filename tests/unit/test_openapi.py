"""The description of the control interface says all of it, and nothing that is not there."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from pxed.control import Control
from pxed.manage.core import Core
from pxed.manage.routes import routes
from pxed.openapi import DOCUMENT


class Stand:
    """Routes are only listed here, never called."""

    def __getattr__(self, name: str) -> Any:
        return None


def described() -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, each in DOCUMENT["paths"].items() for method in each}


def served() -> set[tuple[str, str]]:
    stand = cast(Any, Stand())
    control = Control(stand, Path("none"), routes(cast(Core, stand)))
    return {(route.method, route.path) for route in control.routes}


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    assert described() == served()


def test_it_is_json() -> None:
    assert json.loads(json.dumps(DOCUMENT))["openapi"].startswith("3.")


@pytest.mark.parametrize(("method", "path"), sorted(described()))
def test_every_operation_says_what_it_does_and_how_it_fails(method: str, path: str) -> None:
    said = DOCUMENT["paths"][path][method.lower()]
    assert said["summary"]
    assert {"200", "400", "500"} <= said["responses"].keys()
    named = {each["name"] for each in said.get("parameters", []) if each["in"] == "path"}
    assert ("404" in said["responses"]) == bool(named)
    assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}
