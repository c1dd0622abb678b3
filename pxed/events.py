"""Events: what the protocols saw, as facts with a time; the client state machine is fed with them.

Protocol code returns events and never acts on them. ``time`` is seconds since the epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pxed.mac import Mac


class Kind(StrEnum):
    """What happened. The comment names the keys of ``Event.detail``."""

    # DHCP, from pxed.dhcp.policy
    DISCOVER = "discover"  # firmware, arch; serial (of a Raspberry Pi), secs (it asks), relayed
    OFFER = "offer"  # ip, boot_file, root_path
    REQUEST = "request"  # firmware, arch, ip; server: in proxy mode, whose address it takes
    ACK = "ack"  # ip, boot_file, root_path
    NAK = "nak"  # ip, why
    DECLINE = "decline"  # ip
    RELEASE = "release"  # ip
    IGNORED = "ignored"  # why: a message that is not ours to answer
    # range, size, free; unclaimed: on offer, not taken; idle: taken, and nothing done since
    POOL_FULL = "pool-full"

    # DHCPv6, from pxed.net.dhcp6
    SOLICIT6 = "solicit6"  # firmware, arch: it asks for a network boot by IPv6

    # TFTP, from pxed.tftp.session
    TFTP_READ = "tftp-read"  # ip, file, size
    TFTP_DONE = "tftp-done"  # ip, file, bytes, seconds
    TFTP_PROBE = "tftp-probe"  # ip, file: asked for the size, then aborted; not a failure
    TFTP_MISSING = "tftp-missing"  # ip, file
    TFTP_FAILED = "tftp-failed"  # ip, file, why

    # HTTP, from pxed.net.http
    HTTP_READ = "http-read"  # ip, file, size: of files, not of scripts
    HTTP_DONE = "http-done"  # ip, file, bytes, seconds
    HTTP_MISSING = "http-missing"  # ip, file
    HTTP_FAILED = "http-failed"  # ip, file, why

    # Router solicitation answered, from pxed.net.ra
    ROUTER_ADVERT = "router-advert"

    # AoE, from pxed.watch (counters of aoe_fast)
    AOE_FOUND = "aoe-found"  # shelf, slot: first config query or IDENTIFY of this boot
    AOE_READ = "aoe-read"  # shelf, slot: first read of this boot
    AOE_WRITE = "aoe-write"  # shelf, slot: first write of this boot
    AOE_HEARD = "aoe-heard"  # it still talks to its devices; at most every few seconds

    # The machine's own words, through its report device (see docs/architecture.md)
    REPORT = "report"  # step, uptime, text

    # From pxed.why
    HINT = "hint"  # text: what delayed a boot

    # The server's own work
    MIDLAYER_READY = "midlayer-ready"  # path, seconds, new, checked
    MIDLAYER_FAILED = "midlayer-failed"  # why
    MODE = "mode"  # mode, why: what [dhcp] mode = "auto" chose
    RIVAL = "rival"  # what, rival (MAC), ip, offer, consequence: another server on this segment
    RIVAL_GONE = "rival-gone"  # what, rival (MAC), ip
    ALARM = "alarm"  # text
    WAKE = "wake"  # a magic packet was sent to it


@dataclass(frozen=True, slots=True)
class Event:
    """One fact about one client (``mac``), or about the server itself (``mac`` None)."""

    kind: Kind
    mac: Mac | None
    time: float
    detail: Mapping[str, object] = field(default_factory=dict)
