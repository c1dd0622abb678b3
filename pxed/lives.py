"""Events in, deeds out: log entries, saved rows, and the devices of a new boot.

What protocols saw goes through the clients' state machine; nothing else acts on an event.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pxed import provision
from pxed.choice import Choice
from pxed.eventlog import LASTING, EventLog, line_of
from pxed.events import Event, Kind
from pxed.keeper import Keeper
from pxed.mac import Mac
from pxed.seat import Change, Client, State, What
from pxed.shares import Shares
from pxed.strangers import CLAIMED, Strangers, is_stranger, proves, takes
from pxed.traces import Traces
from pxed.twins import TOO_OLD, Twins
from pxed.watch import Watch
from pxed.why import explain, hint

if TYPE_CHECKING:
    from pxed.netboot import NetBoot

log = logging.getLogger("pxed")

# Kinds that are logged always.
_LOUD = frozenset(
    ("boot", "stage", "state", "refused", "alarm", "mode", "rival", "rival-gone", "hint")
)
_BAD = frozenset(("alarm", "rival", "refused"))
_WARN = logging.WARNING
_Line = tuple[Any, ...]


TELL = 60.0  # seconds between two words on messages that were not logged


class Lives:
    """``begin(client, since)`` prepares the devices of a client that has begun to boot.

    ``drop(client)`` takes them away from one that is forgotten. ``netboot`` is set before the first
    event.
    """

    netboot: "NetBoot"

    def __init__(
        self, choice: Choice, events: EventLog, keeper: Keeper, watch: Watch,
        begin: Callable[[Client, float], None], drop: Callable[[Client], None],
        failed: Callable[[Client], None] = lambda _client: None,
    ) -> None:  # fmt: skip
        self._choice = choice
        self._events = events
        self._keeper = keeper
        self._watch = watch
        self._begin = begin
        self._drop = drop
        self._failed = failed
        self.traces = Traces()
        self.strangers = Strangers()
        self.shares = Shares()
        for client in choice.clients:
            if is_stranger(client):
                self.strangers.asks(client.mac, client.last_seen)
        # Of a boot that a restart is in the middle of: its report is read from its beginning again.
        self._logged = set[_Line]()
        for each in events.latest("boot", Kind.REPORT.value):
            if each["kind"] == "boot":
                self._begins(each["mac"])
            else:
                self._logged.add(_line(each["mac"], each))
        self._twins = Twins()
        self.tftp_bytes = 0
        self._told = self._named = 0.0  # when that was said of messages that were not logged

    @property
    def not_logged(self) -> int:
        """How many entries the log has not got, as machines made too many."""
        return self.shares.total + self.strangers.left_out

    def emit(self, event: Event) -> None:
        """Take an event from any protocol: log it, feed it to the clients, act on the changes."""
        if event.kind is Kind.DISCOVER and event.mac is not None:
            self._hear_out(event.mac)
        if event.kind is Kind.TFTP_DONE:
            self.tftp_bytes += int(str(event.detail.get("bytes", 0)))
        if event.kind is not Kind.AOE_HEARD and not self._is_logged(event):
            self._note(event.kind.value, event.mac, event.time, event.detail)
        self.netboot.heard(event)
        if event.kind in (Kind.DISCOVER, Kind.ACK):
            self._look_for_twins(event)
        changes = self._choice.clients.feed(event)
        if event.mac is not None and proves(event):
            self._proven(event.mac, event.time)
        if event.mac is not None and takes(event):
            self._takes(event.mac, event.time)
        if event.mac is not None and event.kind in (Kind.REQUEST, Kind.SOLICIT6):
            self._bound(event.mac, event.time)
        if any(change.what is What.NEW_BOOT for change in changes) and event.mac is not None:
            self.traces.begin(event.mac)
            self._begins(event.mac)
        for change in changes:
            self.act(change)
        if event.mac is not None and (client := self._choice.clients.get(event.mac)) is not None:
            (self._keeper.changed if changes else self._keeper.heard)(client)
            self.traces.add(event)
            self._look_into(client, event)

    def _begins(self, mac: Mac) -> None:
        """A boot: its report is an empty one."""
        self._logged = {line for line in self._logged if line[0] != mac}

    def _is_logged(self, event: Event) -> bool:
        """Whether the log has this line of a report from before a restart; said once of each."""
        if event.kind is not Kind.REPORT or not self._logged:
            return False
        line = _line(event.mac, event.detail)
        known = line in self._logged
        self._logged.discard(line)
        return known

    def _hear_out(self, mac: Mac) -> None:
        """What it wrote before it began again belongs to the boot that ends now.

        A loop that was held up comes to both at once, and a new boot's report is an empty one: an
        installer's result would be lost, and the machine be installed again.
        """
        client = self._choice.clients.get(mac)
        if client is not None and client.in_boot:
            for each in client.all_macs:
                for event in self._watch.reports(each, time.monotonic_ns(), time.time()):
                    self.emit(event)

    def _proven(self, mac: Mac, now: float) -> None:
        client = self._choice.clients.get(mac)
        if client is not None and self.strangers.proven(client.mac):
            self._begin(client, now)

    def _takes(self, mac: Mac, now: float) -> None:
        client = self._choice.clients.get(mac)
        if client is not None and self.strangers.takes(client.mac, now):
            self._begin(client, now)

    def _look_for_twins(self, event: Event) -> None:
        last = None
        if event.kind is Kind.ACK and event.mac is not None:
            silence = self._watch.silence([event.mac], time.monotonic_ns())
            last = time.time() - silence if silence < TOO_OLD else None
        if (text := self._twins.heard(event, last)) is not None:
            self.emit(Event(Kind.ALARM, event.mac, event.time, {"text": text}))

    def _bound(self, mac: Mac, now: float) -> None:
        """What made it known was no DISCOVER: such machines are no more than other strangers."""
        client = self._choice.clients.get(mac)
        if client is not None and client.stage is None and is_stranger(client):
            self.strangers.hears(client.mac, now)

    def _look_into(self, client: Client, event: Event) -> None:
        """What this event says of a delay, or of a boot that ends before it has begun."""
        if event.kind is Kind.DISCOVER and (why := hint(self.traces.of(client.mac))) is not None:
            self.emit(Event(Kind.HINT, client.mac, event.time, {"text": str(why)}))
        if event.kind is Kind.REPORT and client.mode == "provision":
            self._provisioned(client, str(event.detail.get("step", "")))
        if client.state is State.SEEN and event.kind in (
            Kind.IGNORED, Kind.POOL_FULL, Kind.SOLICIT6,
        ):  # fmt: skip
            self.explain(client, event.time)

    def _provisioned(self, client: Client, step: str) -> None:
        """What a machine boots when its installer is done: from its disk, once or from now on."""
        if step not in provision.RESULTS:
            return
        client.once = "local"
        each = self._choice.config.classes.get(client.class_name)
        standing = (client.order or (each.mode if each is not None else "")) == "provision"
        policy = self._choice.policy_of(client) if each is not None else None
        if provision.stays(step, policy, standing=standing):
            client.order = "local"
        self._keeper.changed(client)

    def explain(self, client: Client, now: float) -> None:
        """End a boot whose cause of failure is known."""
        reason = explain(client, self.traces.of(client.mac), now, self.netboot.scene())
        if reason is not None:
            for change in self._choice.clients.fail(client, now, str(reason)):
                self.act(change)

    def act(self, change: Change) -> None:
        """Do what a change of the state machine asks for."""
        client = change.client
        self._keeper.changed(client)
        if change.what is What.NEW_BOOT:
            override = self._choice.config.clients.get(client.mac)
            client.name = (override.name if override else None) or client.name
            strange = is_stranger(client) or client.mac in self.strangers
            at_once = not strange or self.strangers.asks(client.mac, change.time)
            if not self._choice.admits(client.mac, client):
                why = ("it is blocked" if client.admission == "blocked"
                       else f"it waits for approval: pxed client approve {client.mac}")  # fmt: skip
                self._note("refused", client.mac, change.time, {"why": why})
                return
            self._note("boot", client.mac, change.time, {"number": client.boots,
                                                         "order": client.doing})  # fmt: skip
            for mac in client.all_macs:
                self._watch.begin_boot(mac)
            if at_once:
                self._begin(client, change.time)
        elif change.what is What.STAGE and change.step is not None:
            after = round(change.step.time - client.boot_started, 3)
            self._note(
                "stage",
                client.mac,
                change.step.time,
                {"stage": change.step.stage.label, "after": after, "detail": change.step.detail},
            )
        elif change.what is What.STATE:
            detail = {"state": client.state.value, "why": client.why, "degraded": client.degraded}
            self._note("state", client.mac, change.time, detail)
            if client.state is State.RUNNING:
                self.netboot.settled(client.mac)
            elif client.state is State.FAILED:
                self._failed(client)

    def _note(self, kind: str, mac: Mac | None, at: float, detail: Any) -> None:
        strange = (
            kind in CLAIMED if mac is None
            else mac in self.strangers or self._choice.clients.get(mac) is None
        )  # fmt: skip
        if strange and not self.strangers.may_log(at):
            return
        if not strange and mac is not None and kind not in LASTING and not self.shares.may_log(
            mac, at, matters=kind in _LOUD
        ):  # fmt: skip
            return
        self._events.add({"time": at, "kind": kind, "mac": mac, **detail})
        self._keeper.soon()
        level = _WARN if kind in _BAD else logging.INFO if kind in _LOUD else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(level, "%s", line_of({"mac": mac or "-", "event": kind, **detail}))

    def _of_whom(self, out: list[tuple[Mac, int]]) -> str:
        mac, count = out[0]
        client = self._choice.clients.get(mac)
        who = f"{client.name} ({mac})" if client is not None and client.name else str(mac)
        others = f" and {sum(n for _, n in out[1:])} of {len(out) - 1} others" if out[1:] else ""
        return (
            f"{count} messages of {who}{others} were not logged: far more than a boot makes. It "
            "loops, or somebody else uses its address: look at pxed client show, and at its port"
        )

    def tick(self, now: float) -> None:
        """What the time alone shows: why a boot came to its end, and who fell silent."""
        for client in [client for client in self._choice.clients if client.in_boot]:
            self.explain(client, now)
        for change in self._choice.clients.tick(now, self.netboot.loads):
            self.act(change)
        for mac in self.strangers.too_many(now):
            if (gone := self._choice.clients.get(mac)) is not None:
                self._choice.clients.forget(gone)
                self._keeper.forgotten(gone)
                self._drop(gone)
        if self.strangers.unlogged and now - self._told > TELL:
            text = (
                f"{self.strangers.unlogged} messages of machines that nobody has heard of before "
                "were not logged: made-up addresses? Look for a loop or a broken card"
            )
            self._told, self.strangers.unlogged = now, 0
            self.emit(Event(Kind.ALARM, None, now, {"text": text}))
        if now - self._named > TELL and (out := self.shares.left_out()):
            self._named = now
            self.emit(Event(Kind.ALARM, out[0][0], now, {"text": self._of_whom(out)}))
        self._keeper.soon()


def _line(mac: Any, detail: Mapping[str, Any]) -> _Line:
    """What makes a line of a machine's report this one and no other."""
    return mac, detail.get("step"), detail.get("uptime"), detail.get("text")
