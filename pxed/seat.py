"""One machine, its current or last boot, and the words for both; no rule of how they change."""

import enum
from dataclasses import dataclass, field

from pxed.errors import READ_ONLY
from pxed.mac import Mac

LOCAL_SCRIPT = "local.ipxe"
"""The iPXE script that sends a machine on to its own disk: who has fetched it is gone from here."""


class State(enum.StrEnum):
    SEEN = "seen"  # it spoke, but not as something that boots
    OFFERED = "offered"  # its firmware asked and we answered
    BOOTING = "booting"  # it took the offer
    RUNNING = "running"
    LOST = "lost"  # it ran, and has not been heard for a while
    FAILED = "failed"
    LOCAL = "local"  # it was sent on to its own disk


class Stage(enum.IntEnum):
    """What a boot goes through, in order; not every boot shows every stage."""

    DISCOVER = 0
    OFFER = 1
    BOOT_FILE = 2
    IPXE = 3
    SAN = 4
    KERNEL = 5
    ROOT = 6
    CONFIG = 7
    RUNNING = 8

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = {
    Stage.DISCOVER: "DISCOVER",
    Stage.OFFER: "OFFER",
    Stage.BOOT_FILE: "boot file",
    Stage.IPXE: "iPXE",
    Stage.SAN: "first AoE read",
    Stage.KERNEL: "kernel up",
    Stage.ROOT: "root mounted",
    Stage.CONFIG: "/config mounted",
    Stage.RUNNING: "running",
}


@dataclass(slots=True)
class Step:
    """One line of a timeline: ``time`` is seconds since the epoch."""

    stage: Stage
    time: float
    detail: str = ""


@dataclass(slots=True)
class Client:
    """One machine and its current or last boot."""

    mac: Mac
    state: State = State.SEEN
    class_name: str = "x86"
    name: str = ""
    firmware: str = ""
    arch: int | None = None
    ip: str = ""
    image: str = ""  # pinned while it runs: NAME@VERSION
    boots: int = 0
    boot_started: float = 0.0
    chainloaded: bool = False  # took a boot loader from us in this boot
    degraded: bool = False
    why: str = ""  # of failed, or of degraded
    damage: str = ""  # what keeps its midlayer from being shown to it, or from being written to
    last_seen: float = 0.0  # 0: never
    # What people say of it
    note: str = ""
    groups: list[str] = field(default_factory=list)
    admission: str = ""  # approved or blocked; else what the configuration says of strangers
    order: str = ""  # what it boots (pxed.orders); empty: what its class boots
    once: str = ""  # the same for its next boot only
    fresh: bool = False  # its midlayer is to be made anew at its next boot
    macs: list[Mac] = field(default_factory=list)  # its other network cards
    # What this boot was given
    doing: str = ""
    mode: str = ""
    # Of its own disk
    result: str = ""  # what the last installer said: how far it is, or its end
    provisioned: str = ""  # the image that was dealt with there: NAME@VERSION
    timeline: list[Step] = field(default_factory=list)

    @property
    def stage(self) -> Stage | None:
        """The latest stage of the current or last boot."""
        return self.timeline[-1].stage if self.timeline else None

    @property
    def boot_file(self) -> str:
        """The last boot loader that it took from us in its current or last boot; empty: none."""
        return next((step.detail for step in self.timeline if step.stage is Stage.BOOT_FILE), "")

    @property
    def damaged(self) -> bool:
        """Whether its midlayer needs a person: not if nothing but the disk below is read-only."""
        return bool(self.damage) and not self.damage.endswith(READ_ONLY)

    @property
    def in_boot(self) -> bool:
        return self.state in (State.OFFERED, State.BOOTING)

    @property
    def all_macs(self) -> tuple[Mac, ...]:
        """Every address of this machine, the one that names it first."""
        return (self.mac, *self.macs)

    @property
    def ordered(self) -> str:
        """The order that holds now: one boot follows one order from its DISCOVER to its disk."""
        stage = self.stage
        if self.in_boot and stage is not None and stage < Stage.SAN:
            return self.doing
        return self.once or self.order

    def stage_seconds(self, stage: Stage) -> float | None:
        """Seconds from the boot's DISCOVER to ``stage``; None if it did not come to it."""
        for step in self.timeline:
            if step.stage is stage:
                return step.time - self.boot_started
        return None


class What(enum.StrEnum):
    NEW_BOOT = "boot"
    STAGE = "stage"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class Change:
    """Something that others act on: a new boot, a stage reached, or only a new state."""

    what: What
    client: Client
    time: float
    step: Step | None = None
