"""Our server as a process of its own, as the bench runs it; used by ``servers``.

    echo '{"exports": [...], "clients": 8, "cpu": 0, ...}' | python -m bench.serve

Says "ready" once it listens, a line of JSON with its counters on SIGUSR1 and when SIGTERM ends it.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

from aoe_fast import Export, Server, Target


def address(number: int) -> tuple[int, int]:
    """The shelf and slot of an export, as in generator.c."""
    return 16 + number // 240, number % 240


def client_mac(number: int) -> bytes:
    """The MAC of a client, as in generator.c."""
    return bytes([2, 0xBE, 0, 0, number >> 8, number & 255])


def build_target(asked: dict[str, Any]) -> Target:
    """One export is everybody's; of several, export e is client (e mod clients)'s alone."""
    options = {key: asked[key] for key in ("writable", "durability") if key in asked}
    exports = [Export(path, **options) for path in asked["exports"]]
    target = Target(**asked.get("target", {}))
    clients = asked["clients"]
    if asked.get("shared") or len(exports) == 1:
        target.set_view(None, {address(i): export for i, export in enumerate(exports)})
        return target
    for client in range(clients):
        own = range(client, len(exports), clients)
        numbers = list(own) or [client % len(exports)]
        target.set_view(client_mac(client), {address(i): exports[i] for i in numbers})
    return target


def main() -> None:
    """Serve on eth0, pinned, until SIGTERM."""
    asked = json.loads(sys.stdin.readline())
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signals = {signal.SIGUSR1, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    # Built before it is pinned: on a machine with one CPU it would not spin at all.
    server = Server(build_target(asked), ["eth0"], **asked.get("server", {}))
    os.sched_setaffinity(0, {asked["cpu"]})
    with server:
        print("ready", flush=True)
        while True:
            number = signal.sigwait(signals)
            names = server.counters.dtype.names or ()
            print(json.dumps({n: int(server.counters[n].sum()) for n in names}), flush=True)
            if number == signal.SIGTERM:
                return


if __name__ == "__main__":
    main()
