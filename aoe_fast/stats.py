"""What a server has done, for people and programs: plain dictionaries, and Prometheus text.

Reads the shared counters without stopping a worker: a row may be one request ahead of another.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from aoe_fast.observe import BOUNDS
from aoe_fast.server import Server

KINDS = ("aoe", "abrt", "idnf", "unc")
_STUCK = 3
"""So many repeated long requests, none of them new, while short ones get through."""


def quantile_us(latency: Sequence[int], share: float) -> float:
    """Upper bound (us) of the bucket in which this share of the requests ends; 0: no request."""
    total = sum(latency)
    if not total:
        return 0.0
    seen = 0
    for bucket, count in enumerate(latency):
        seen += count
        if seen >= share * total:
            return round(BOUNDS[min(bucket, len(BOUNDS) - 1)] * 1e6, 3)
    return round(BOUNDS[-1] * 1e6, 3)


def _shared(row: Any) -> dict[str, Any]:
    """What rows of bindings and of clients have in common."""
    latency = [int(count) for count in row["latency"]]
    return {
        "errors": {kind: int(row[f"errors_{kind}"]) for kind in KINDS},
        "latency": latency,
        "p50_us": quantile_us(latency, 0.5),
        "p99_us": quantile_us(latency, 0.99),
        "p999_us": quantile_us(latency, 0.999),
    }


def rows_of(server: Server) -> list[dict[str, Any]]:
    """A dictionary for each (MAC, shelf, slot) that is served."""
    stats = server.target.stats
    counts = ("queries", "identifies", "reads", "writes", "read_bytes", "written_bytes")
    rows = []
    for (mac, shelf, slot), number in sorted(
        server.target.rows().items(), key=lambda item: (item[0][0] or b"", item[0][1:])
    ):
        row = stats[number]
        entry: dict[str, Any] = {"mac": mac.hex(":") if mac else None, "shelf": shelf, "slot": slot}
        entry |= {name: int(row[name]) for name in counts}
        rows.append(entry | _shared(row))
    return rows


def clients_of(server: Server) -> list[dict[str, Any]]:
    """A dictionary for each client that was answered, the busiest first."""
    clients = []
    for number, table in enumerate(server.clients):
        interface = server.interfaces[number // server.workers]
        for row in table[table["requests"] > 0]:
            entry: dict[str, Any] = {
                "mac": int(row["mac"]).to_bytes(6, "big").hex(":"),
                "interface": interface,
                "requests": int(row["requests"]),
                "bytes": int(row["bytes"]),
                "repeats": int(row["repeats"]),
                "postponed": int(row["postponed"]),
                "last_ns": int(row["last_ns"]),
                "mtu_black_hole": bool(row["stuck"] >= _STUCK and row["small_stuck"] == 0),
            }
            clients.append(entry | _shared(row))
    return sorted(clients, key=lambda client: -int(client["requests"]))


def workers_of(server: Server) -> list[dict[str, int]]:
    """The counters of each worker, then those of the side threads."""
    counters = server.counters
    names = [name for name in counters.dtype.names or () if not name.startswith("reserved")]
    return [{name: int(row[name]) for name in names} for row in counters]


def ports_of(server: Server) -> list[dict[str, Any]]:
    """The state of each interface."""
    return [
        {
            "interface": port.interface,
            "serving": port.opened,
            "mac": port.mac.hex(":") if port.opened else None,
            "mtu": port.mtu if port.opened else None,
        }
        for port in server.ports
    ]


def status(server: Server, uptime_s: float) -> dict[str, Any]:
    """Everything that ``aoe-fast stat`` shows."""
    return {
        "pid": os.getpid(),
        "uptime_s": round(uptime_s, 1),
        "interfaces": list(server.interfaces),
        "ports": ports_of(server),
        "exports": rows_of(server),
        "clients": clients_of(server),
        "workers": workers_of(server),
    }


# Prometheus text format 0.0.4.

_TOTALS = {
    "frames": "Frames received",
    "replies": "Replies sent",
    "ignored": "Frames that got no answer",
    "drops": "Frames lost because a receive ring was full",
    "send_errors": "Replies that could not be sent",
    "syncs": "Syncs of an export",
    "cold": "Reads that waited for a disk beside the others",
    "parked": "Writes that waited for a disk beside the others",
    "spread": "Broadcast answers that were put off by some milliseconds",
    "postponed": "Requests beyond a client's queue depth, served after the others",
    "overrun": "Requests lost because their client was far beyond its queue depth",
    "repeats": "Probable retransmissions",
    "announced": "Config replies that lowered a client's queue depth",
}
_ROWS = {
    "reads": "Reads",
    "writes": "Writes",
    "read_bytes": "Bytes read",
    "written_bytes": "Bytes written",
    "queries": "Config queries",
    "identifies": "IDENTIFYs",
}
_CLIENTS = {
    "requests": "Requests of a client",
    "bytes": "Bytes read and written by a client",
    "repeats": "Probable retransmissions of a client",
    "postponed": "Requests beyond the client's queue depth",
}


def prometheus(answer: dict[str, Any]) -> str:
    """``status``'s answer in Prometheus text format."""
    return "\n".join(_lines(answer)) + "\n"


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    yield from _head("aoe_uptime_seconds", "Time since the start", "gauge")
    yield f"aoe_uptime_seconds {answer['uptime_s']}"
    for name, about in _TOTALS.items():
        yield from _head(f"aoe_{name}_total", about, "counter")
        yield f"aoe_{name}_total {sum(worker[name] for worker in answer['workers'])}"
    yield from _head("aoe_link_serving", "1 while the interface is served", "gauge")
    for port in answer["ports"]:
        yield f'aoe_link_serving{{interface="{port["interface"]}"}} {int(port["serving"])}'
    exports = [
        (
            f'mac="{row["mac"] or ""}",shelf="{row["shelf"]}",slot="{row["slot"]}"',
            row,
        )
        for row in answer["exports"]
    ]
    clients = [
        (f'mac="{row["mac"]}",interface="{row["interface"]}"', row) for row in answer["clients"]
    ]
    for kind, names, rows in (("export", _ROWS, exports), ("client", _CLIENTS, clients)):
        for name, about in names.items():
            yield from _head(f"aoe_{kind}_{name}_total", about, "counter")
            for labels, row in rows:
                yield f"aoe_{kind}_{name}_total{{{labels}}} {row[name]}"
        yield from _head(f"aoe_{kind}_errors_total", "Failed requests by kind", "counter")
        for labels, row in rows:
            for what, count in row["errors"].items():
                yield f'aoe_{kind}_errors_total{{{labels},kind="{what}"}} {count}'
    yield from _head("aoe_client_mtu_black_hole", "1 if only short replies arrive", "gauge")
    for labels, row in clients:
        yield f"aoe_client_mtu_black_hole{{{labels}}} {int(row['mtu_black_hole'])}"
    yield from _head(
        "aoe_export_latency_seconds", "From arrival to the reply's sending", "histogram"
    )
    for labels, row in exports:
        seen = 0
        for bound, count in zip(BOUNDS, row["latency"], strict=False):
            seen += count
            yield f'aoe_export_latency_seconds_bucket{{{labels},le="{bound:.9g}"}} {seen}'
        seen = sum(row["latency"])
        yield f'aoe_export_latency_seconds_bucket{{{labels},le="+Inf"}} {seen}'
        yield f"aoe_export_latency_seconds_count{{{labels}}} {seen}"


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}."
    yield f"# TYPE {name} {kind}"
