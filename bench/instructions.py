"""Instructions that ``handle()`` takes for each kind of frame, counted by callgrind: no noise."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FUNCTION = "__pyx_f_8aoe_fast_6target_handle"
FRAMES = 200
KINDS = ("read-1k", "read-8k", "write-1k", "identify", "query", "unknown")
_OWN = bytes.fromhex("027700000001")
_CLIENT = bytes.fromhex("02be00000001")


def frame(kind: str, number: int) -> bytes:
    """One request of a kind."""
    ethernet = _OWN + _CLIENT + b"\x88\xa2"
    head = ethernet + b"\x10\0\0\x10" + (b"\x07" if kind == "unknown" else b"\0")
    if kind == "query":
        return head + b"\x01" + number.to_bytes(4, "big") + bytes(8)
    opcode = {"identify": 0xEC, "write-1k": 0x34}.get(kind, 0x24)
    count = 16 if kind == "read-8k" else 2
    ata = bytes([0x41 if opcode == 0x34 else 0x40, 0, count, opcode])
    lba = (number * 16).to_bytes(6, "little") + bytes(2)
    body = bytes(1024) if opcode == 0x34 else b""
    return head + b"\0" + number.to_bytes(4, "big") + ata + lba + body


def serve(kind: str) -> None:
    """Under callgrind: have a target handle FRAMES frames of a kind."""
    from aoe_fast import Export, Target

    with tempfile.NamedTemporaryFile() as image:
        image.truncate(16 << 20)
        target = Target()
        export = Export(image.name, writable=True, durability="writeback")
        target.set_view(_CLIENT, {(16, 0): export})
        for number in range(FRAMES):
            target.handle(frame(kind, number), _OWN, mtu=9000)


def count(kind: str) -> float:
    """Instructions for one frame, everything that ``handle`` calls included."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        argv = [
            "valgrind", "--tool=callgrind", f"--toggle-collect={FUNCTION}",
            f"--callgrind-out-file={out}", sys.executable, "-m", "bench.instructions", kind,
        ]  # fmt: skip
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
        found = re.search(r"^(?:summary|totals): (\d+)", out.read_text() if out.exists() else "",
                          re.MULTILINE)  # fmt: skip
        if done.returncode != 0 or found is None:
            raise RuntimeError(f"callgrind failed: {done.stderr.strip()[-300:]}")
        return int(found[1]) / FRAMES


def main(argv: Sequence[str]) -> int:
    """Print the instructions for each kind; exit status 1 without valgrind."""
    parser = argparse.ArgumentParser(prog="python -m bench instructions", description=__doc__)
    parser.add_argument("--only", action="append", choices=KINDS, metavar="KIND")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    found = {}
    try:
        for kind in asked.only or KINDS:
            found[kind] = count(kind)
            if not asked.json:
                print(f"{kind:10} {found[kind]:7.0f} instructions", flush=True)
    except FileNotFoundError:
        print("bench instructions: no valgrind: install it", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"bench instructions: {error}", file=sys.stderr)
        return 1
    if asked.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
