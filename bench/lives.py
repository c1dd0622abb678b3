"""How client lives scale: a room of DISCOVERs in one second, thousands of known clients, the log.

    python -m bench lives [storm] [known] [events] [soak] [--clients 200] [--known 5000] [--json]

``storm``: DISCOVERs as one burst against ``pxed serve`` in a network namespace, until the last
midlayer is exported, and one AoE write to each; beside it mkfs.ext4 for each, the usual way.
``known``: restart, ``client list`` and memory with thousands of running clients on the books.
``events``: a million entries through the log into the database.
``soak``: a million events through the whole of a server's client lives; no table may grow.
The server runs in a process of its own with a monitor of its event loop. Needs root.
"""

import argparse
import json
import os

from bench.livesclients import Numbers, clones, known, mkfs, storm
from bench.liveslog import events, soak
from bench.livesserver import noise


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="bench lives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=["storm", "known", "events", "soak", []])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--known", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    parts = options.parts or ["storm", "known", "events", "soak"]
    found: Numbers = {"machine": {"idle_loop_late_ms": round(noise() * 1e3, 2),
                                  "load": os.getloadavg()[0]}}  # fmt: skip
    if "storm" in parts:
        found["storm"] = storm(options.clients)
        found["storm"]["clone_each_1_thread_s"] = round(clones(options.clients, 1), 2)
        found["storm"]["clone_each_4_threads_s"] = round(clones(options.clients, 4), 2)
        found["storm"]["mkfs_each_1_thread_s"] = round(mkfs(options.clients, 1), 2)
        found["storm"]["mkfs_each_4_threads_s"] = round(mkfs(options.clients, 4), 2)
    if "known" in parts:
        found["known"] = known(options.known)
    if "events" in parts:
        found["events"] = events()
    if "soak" in parts:
        found["soak"] = soak()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for part, numbers in found.items():
        print(part)
        for name, value in numbers.items():
            print(f"  {name:24} {value}")
    return 0
