"""All threads of a server at work, for ThreadSanitizer and valgrind: traffic, views that change.

``python -m tests.fuzz.stress ROUNDS``; needs root. Prints what was answered.
"""

import contextlib
import gc
import os
import sys
import tempfile
import threading
from pathlib import Path

from aoe_fast import Export, Target
from aoe_fast.mapped import hot_chunks
from aoe_fast.memory import live_blocks
from aoe_fast.stats import status
from aoe_fast.store import live_backings
from pxed.lab.netns import Namespace, veth
from tests.aoe_frames import BROADCAST, FLUSH, IDENTIFY, WRITE, ata, config, frame
from tests.aoe_peer import Peer, eventually, serving
from tests.conftest import Cable


def traffic(peer: Peer, rounds: int) -> int:
    answered = 0
    for number in range(rounds):
        for each in range(8):
            tag = 16 * number + each
            peer.send(peer.read(tag * 7 % 2000, tag=tag) if each % 2 else
                      peer.write(tag * 5 % 2000, bytes(512), tag=tag))  # fmt: skip
        peer.send(frame(1, config(0), src=peer.mac, dst=BROADCAST, shelf=0xFFFF, slot=0xFF))
        peer.send(ata(IDENTIFY, count=1, src=peer.mac, dst=BROADCAST))
        peer.send(ata(FLUSH, src=peer.mac, dst=BROADCAST))
        # A sanitizer may make an answer late: the first one is waited for.
        while peer.receive(0.02 if answered else 60) is not None:
            answered += 1
    return answered


def through_the_mapping(peer: Peer, export: Export, path: Path) -> int:
    """Writes into hot chunks, after a FLUSH as well, and into one whose file became shorter.

    How many; nobody else may FLUSH meanwhile, or nothing would ever get hot.
    """
    answered = 0

    def write() -> bool:
        """One round of writes; whether a chunk is hot by then."""
        nonlocal answered
        for page in (*range(16), *range(16)):
            data = bytes([page]) * 1024
            request = ata(WRITE, 8 * page + 1, 2, data=data, src=peer.mac, dst=BROADCAST, slot=4)
            answered += peer.ask(request).status == 0x40
        return hot_chunks(export) > 0

    for _ in range(2):
        peer.ask(ata(FLUSH, src=peer.mac, dst=BROADCAST, slot=4))
        if not eventually(write, 300):
            raise RuntimeError("nothing was written through the mapping")
    os.truncate(path, 4096)
    write()
    return answered


def serve(cable: Cable, folder: Path, rounds: int) -> int:
    """Everything at once, then all is let go; how many answers came."""
    target = Target(wire_config=True, wire_reserve=True)
    exports = [Export(folder / "a", writable=True),
               Export(folder / "b", writable=True, durability="writeback")]  # fmt: skip
    target.set_view(None, {(16, 3): exports[0], (16, 4): exports[1]})
    peers = [Peer(cable, bytes([2, 0, 0, 0, 0, n])) for n in (1, 2)]
    with serving(cable, target, workers=2) as server:
        enough = threading.Event()

        def swap() -> None:
            number = 0
            while not enough.wait(0.002):
                number += 1
                target.set_view(peers[number % 2].mac, {(16, 3): exports[number // 2 % 2]})
                status(server, 1.0)
                if number % 50 == 0:
                    target.drop_view(peers[0].mac)

        thread = threading.Thread(target=swap)
        thread.start()
        answered = sum(traffic(peer, rounds) for peer in peers)
        enough.set()
        thread.join()
        answered += through_the_mapping(Peer(cable), exports[1], folder / "b")
    for export in exports:
        export.close()
    return answered


def main(rounds: int) -> int:
    os.environ.pop("LD_PRELOAD", None)  # the sanitizer is for us, not for the programs we start
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        srv, cli = stack.enter_context(Namespace("srv")), stack.enter_context(Namespace("cli"))
        veth(srv, "eth0", cli, "eth0")
        for name in ("a", "b"):
            (folder / name).write_bytes(bytes(1 << 20))
        before = live_blocks(), live_backings()
        answered = serve(Cable(srv, cli), folder, rounds)
        gc.collect()
        left = live_blocks(), live_backings()
        print(f"answered {answered}, blocks and backings {before} before, {left} after")
        return int(answered == 0 or left != before)


if __name__ == "__main__":
    status_code = main(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(status_code)  # the sanitizers have said what they saw; Python's own end is not asked
