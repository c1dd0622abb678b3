"""The architecture, kept: imports point down the tables of docs/architecture.md."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the top down; a module may import what stands on a lower line, and its own line's package.
LAYERS = [
    ["__main__"],
    ["start"],
    ["cli"],
    ["cli_client", "cli_image", "cli_ipxe", "cli_midlayer", "cli_size", "cli_promote", "doctor"],
    ["cli_import", "cli_pi"],
    ["cli_library"],
    ["cli_base", "cli_group"],
    ["lab"],
    ["app"],
    ["privileges"],
    ["manage"],
    ["status"],
    ["lives"],
    ["preparing", "bootplans", "beside"],
    ["choice"],
    ["control", "watch", "exports", "netboot", "probe"],
    ["net"],
    ["client"],
    ["offline", "keeper"],
    ["store", "journal"],
    ["why", "traces", "strangers", "shares", "overrun", "twins", "narrative"],
    ["selector"],
    ["clients", "conflicts"],
    ["seat"],
    ["dhcp", "tftp", "http"],
    ["describe"],
    ["library"],
    ["contents"],
    ["ipxe"],
    ["scripts", "signed"],
    ["former"],
    ["provision"],
    ["midlayers", "images", "eventlog", "table", "orders", "host"],
    ["bootable", "pi"],
    ["ext4", "body", "ask"],
    ["reload"],
    ["config"],
    ["disk", "threads"],
    ["events", "openapi"],
    ["mac", "errors", "sizing", "interrupt"],
    ["__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SANS_IO = [
    "dhcp",
    "tftp",
    "http",
    "scripts",
    "clients",
    "seat",
    "conflicts",
    "why",
    "strangers",
    "shares",
    "twins",
    "narrative",
    "events",
    "config",
    "provision",
]
SOCKETS = {"socket", "asyncio", "uvloop", "aiohttp", "subprocess"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT / "pxed").parts[0].removesuffix(".py")


MODULES = sorted((ROOT / "pxed").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "pxed" or len(parts) < 2 or parts[1] not in LEVEL or parts[1] == here:
            continue
        assert LEVEL[parts[1]] > LEVEL[here], f"{here} imports {name}, which stands above it"


@pytest.mark.parametrize("path", sorted((ROOT / "aoe_fast").glob("*.py*")), ids=lambda p: p.name)
def test_the_block_server_knows_nothing_of_pxed(path: Path) -> None:
    if path.suffix in (".py", ".pyi"):
        assert not {name for name in imports(path) if name.split(".")[0] == "pxed"}
    else:
        assert "pxed" not in path.read_text()


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room(p) in SANS_IO], ids=lambda p: str(p.relative_to(ROOT))
)
def test_protocol_code_has_no_socket(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & SOCKETS


def test_only_store_knows_sql() -> None:
    users = [path.name for path in MODULES if "sqlite3" in imports(path)]
    assert users == ["store.py"]


def test_every_module_has_its_layer() -> None:
    assert {room(path) for path in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bench" / "native").glob("*.h")), ids=lambda p: p.name
)
def test_a_header_calls_nothing_above_it(path: Path) -> None:
    """Included alone it is whole."""
    flags = ["-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused", "-D_GNU_SOURCE"]
    done = subprocess.run(
        ["cc", *flags, "-x", "c", "-include", str(path), "/dev/null"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
