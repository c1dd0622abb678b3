"""The one state machine of a client's life: events and the time in, changes out; no I/O.

A life goes seen -> offered -> booting (through its stages) -> running, and from anywhere to lost
or failed. A **boot** begins with a firmware's DISCOVER and ends at running or failed; its timeline
keeps the first time of each stage.
"""

from collections.abc import Callable, Iterable, Iterator

from pxed.dhcp.classify import class_of
from pxed.events import Event, Kind
from pxed.images import CONFIG_SLOT, SLOTS
from pxed.mac import Mac
from pxed.provision import DONE, RESULTS
from pxed.seat import LOCAL_SCRIPT, Change, Client, Stage, State, Step, What

_REPORTED = {
    "kernel": Stage.KERNEL,
    "root": Stage.ROOT,
    "config": Stage.CONFIG,
    "running": Stage.RUNNING,
}

# What makes a machine known that nobody has heard of.
_OPENERS = (Kind.DISCOVER, Kind.REQUEST, Kind.SOLICIT6)
# Firmware sends DISCOVER again after 4, 8, 16 and 32 s; what comes later is another attempt.
SAME_ATTEMPT = 64.0
# No step of a boot is silent for longer than the slowest of them: a carrier wait of 60 s.
SILENT_BOOT = 120.0
# UEFI's PXE over IPv6 and HTTP boot give up a minute each.
LEAVING = 240.0
# A system that uses its root but says nothing (not our initramfs) counts as running after this.
QUIET_START = 60.0
UNTOLD = "it reads its root; no report"
# Linux's aoe driver broadcasts a config query every 60 s; two missed in a row mean something.
SILENT_RUN = 150.0


class Clients:
    """All machines that were ever heard or named, by MAC; a machine may have several."""

    def __init__(self, known: Iterable[Client] = (), *, limit: int = 20_000) -> None:
        self._by_mac: dict[Mac, Client] = {}
        self._other: dict[Mac, Client] = {}  # by the machines' other addresses
        # Those that time can change, so that a tick costs nothing for the rest.
        self._booting: dict[Mac, Client] = {}
        self._running: dict[Mac, Client] = {}
        # A flood of made-up MACs must not grow the table without end.
        self._limit = limit
        for client in known:
            self._keep(client)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._by_mac.values())

    def __len__(self) -> int:
        return len(self._by_mac)

    @property
    def booting(self) -> int:
        """How many are in the middle of a boot."""
        return len(self._booting)

    def get(self, mac: Mac) -> Client | None:
        """The machine with this address, be it its first one or another."""
        return self._by_mac.get(mac) or self._other.get(mac)

    def add(self, mac: Mac) -> Client:
        """The machine with this address, made known if nobody has heard of it."""
        client = self.get(mac)
        if client is None:
            client = Client(mac)
            self._keep(client)
        return client

    def forget(self, client: Client) -> None:
        """Its next DISCOVER makes it a new machine."""
        for table in (self._by_mac, self._booting, self._running):
            table.pop(client.mac, None)
        for mac in client.macs:
            self._other.pop(mac, None)

    def begin_again(self, client: Client) -> None:
        """If it asks already and got no answer: its next DISCOVER begins a boot that counts."""
        if client.state is State.SEEN:
            client.timeline = []

    def join(self, client: Client, mac: Mac) -> None:
        """From now on ``mac``, which belongs to no machine, is another address of ``client``."""
        client.macs.append(mac)
        self._other[mac] = client

    def part(self, client: Client, mac: Mac) -> None:
        """``mac`` is no longer an address of ``client``."""
        client.macs.remove(mac)
        del self._other[mac]

    def feed(self, event: Event) -> list[Change]:
        """Take one event into account; what changed by it, in order."""
        if event.mac is None:
            return []
        client = self.get(event.mac)
        if client is None:
            if event.kind not in _OPENERS or len(self._by_mac) >= self._limit:
                return []
            if not _boots(event):
                return []
            client = Client(event.mac)
            self._keep(client)
        client.last_seen = max(client.last_seen, event.time)
        changes: list[Change] = []
        if client.state is State.FAILED and _goes_on(client, event):
            client.state, client.why = State.BOOTING, ""  # it was only slow
            changes.append(Change(What.STATE, client, event.time))
        changes += _HANDLERS.get(event.kind, _nothing)(client, event)
        self._sort(client)
        return changes

    def fail(self, client: Client, now: float, why: str) -> list[Change]:
        """This boot has come to its end, for this reason; nothing if it has already."""
        if not (client.in_boot or client.state is State.SEEN):
            return []
        changes = _fail(client, now, why)
        self._sort(client)
        return changes

    def tick(self, now: float, loads: Callable[[Mac], bool] = lambda _: False) -> list[Change]:
        """What has changed by the mere passing of time.

        ``loads``: whether a machine is taking a file, which in a room on one slow link takes
        minutes without an event.
        """
        changes: list[Change] = []
        for client in list(self._booting.values()):
            silent = now - client.last_seen
            if _runs_untold(client, now):
                changes += _reach(client, Stage.RUNNING, now, UNTOLD)
                client.state = State.RUNNING
                changes.append(Change(What.STATE, client, now))
            elif silent > SILENT_BOOT and not any(loads(mac) for mac in client.all_macs):
                stage = client.stage
                after = stage.label if stage is not None else "nothing"
                changes += _fail(client, now, f"silent for {silent:.0f} s after {after}")
        for client in self._running.values():
            if now - client.last_seen > SILENT_RUN:
                client.state = State.LOST
                changes.append(Change(What.STATE, client, now))
        for change in changes:
            self._sort(change.client)
        return changes

    def _keep(self, client: Client) -> None:
        self._by_mac[client.mac] = client
        for mac in client.macs:
            self._other[mac] = client
        self._sort(client)

    def _sort(self, client: Client) -> None:
        for table, belongs in (
            (self._booting, client.in_boot),
            (self._running, client.state is State.RUNNING),
        ):
            if belongs:
                table[client.mac] = client
            else:
                table.pop(client.mac, None)


def _runs_untold(client: Client, now: float) -> bool:
    stage = client.stage
    return (
        stage is not None
        and client.mode != "provision"  # an installer says so when it is done
        and stage >= Stage.KERNEL
        and now - client.timeline[-1].time > QUIET_START
        and now - client.last_seen < QUIET_START
    )


def _goes_on(client: Client, event: Event) -> bool:
    """Whether a boot that was given up goes on: it takes what it was offered."""
    if client.stage is None or client.stage >= Stage.KERNEL:
        return False
    if event.kind is Kind.REQUEST:
        return _boots(event)
    return event.kind in (Kind.TFTP_DONE, Kind.HTTP_DONE, Kind.AOE_READ)


def _boots(event: Event) -> bool:
    return event.detail.get("firmware") not in (None, "other")


def _nothing(_client: Client, _event: Event) -> Iterator[Change]:
    return iter(())


def _discover(client: Client, event: Event) -> Iterator[Change]:
    if not _boots(event):
        return  # the OS's own DHCP, after the boot (M3)
    if event.detail.get("relayed") and client.state not in (State.SEEN, State.FAILED):
        return  # from beyond a router, where anybody can say so: nothing here changes by it
    firmware = str(event.detail["firmware"])
    if firmware == "uefi-http" and _still_leaves(client, event.time):
        return
    if _is_new_boot(client, firmware, event.time):
        client.boots += 1
        client.boot_started = event.time
        client.state = State.SEEN
        client.timeline = []
        client.chainloaded = client.degraded = False
        client.why = ""
        client.firmware = firmware
        arch = event.detail.get("arch")
        client.arch = arch if isinstance(arch, int) else None
        client.class_name = class_of(firmware, client.arch)
        client.doing = client.once or client.order
        yield Change(What.NEW_BOOT, client, event.time)
        yield from _reach(client, Stage.DISCOVER, event.time, firmware)
    if firmware == "ipxe":
        yield from _reach(client, Stage.IPXE, event.time)


def _still_leaves(client: Client, now: float) -> bool:
    """UEFI that was sent on to its disk first tries the other network entries of its list."""
    return (
        client.state is State.LOCAL
        and bool(client.timeline)
        and now - client.timeline[-1].time < LEAVING
    )


def _is_new_boot(client: Client, firmware: str, now: float) -> bool:
    stage = client.stage
    failed = client.state is State.FAILED
    if stage is None or not (client.in_boot or failed or client.state is State.SEEN):
        return True
    if failed and stage >= Stage.IPXE:
        return True  # an earlier one that failed may only have been slow
    if stage <= Stage.OFFER and client.doing != (client.once or client.order):
        return True  # it has loaded nothing yet, and is to boot something else by now
    if now - client.boot_started > SILENT_BOOT and now - client.timeline[-1].time > SAME_ATTEMPT:
        return True
    if firmware == "rpi":  # its loader asks again for an address after its first file
        return stage > Stage.BOOT_FILE or now - client.timeline[-1].time > SAME_ATTEMPT
    if firmware == "ipxe":
        return stage > Stage.IPXE  # it was past its firmware already: it has been reset
    return stage > Stage.OFFER or now - client.timeline[-1].time > SAME_ATTEMPT


def _offer(client: Client, event: Event) -> Iterator[Change]:
    if client.stage is None:
        return
    client.ip = str(event.detail.get("ip", ""))
    if client.state is State.SEEN:
        client.state = State.OFFERED
    yield from _reach(client, Stage.OFFER, event.time, client.ip)


def _solicit6(client: Client, event: Event) -> Iterator[Change]:
    """By IPv6, which leads nowhere: what it asked before by IPv4 goes first."""
    if _still_leaves(client, event.time):
        return
    if client.state in (State.LOST, State.LOCAL):
        client.state, client.timeline = State.SEEN, []
        yield Change(What.STATE, client, event.time)
    if client.state is State.SEEN and not client.timeline:
        client.firmware = str(event.detail["firmware"])
        arch = event.detail.get("arch")
        client.arch = arch if isinstance(arch, int) else None


def _request(client: Client, event: Event) -> Iterator[Change]:
    if client.in_boot and event.detail.get("server"):  # beside a proxy: another server's address
        client.ip = str(event.detail.get("ip", ""))
    return iter(())


def _ack(client: Client, event: Event) -> Iterator[Change]:
    if client.in_boot and event.detail.get("firmware") != "other":
        client.ip = str(event.detail.get("ip", "")) or client.ip
        client.state = State.BOOTING
    return iter(())


def _boot_file(client: Client, event: Event) -> Iterator[Change]:
    file = str(event.detail.get("file", ""))
    if file == LOCAL_SCRIPT:
        if client.state in (State.RUNNING, State.LOST):
            return  # no boot of its own: somebody uses its IP address
        _obeyed(client)
        client.state = State.LOCAL
        yield Change(What.STATE, client, event.time)
    elif file.endswith(".ipxe"):
        return  # iPXE runs already: this is its script
    elif client.firmware == "rpi" and client.stage is not None and client.stage > Stage.OFFER:
        return  # one of many files
    elif client.in_boot:
        client.state = State.BOOTING
        client.chainloaded = True
        # The card's own iPXE may have asked first; the one that counts comes after this file.
        client.timeline = [step for step in client.timeline if step.stage < Stage.BOOT_FILE]
        yield from _reach(client, Stage.BOOT_FILE, event.time, str(event.detail.get("file", "")))


def _http_file(client: Client, event: Event) -> Iterator[Change]:
    """UEFI HTTP boot loads iPXE this way, or all in one; iPXE a script, a kernel and an initrd."""
    file = str(event.detail.get("file", ""))
    if file.startswith("/ipxe/") or file.endswith((".efi", ".img")):
        yield from _boot_file(client, event)
    elif client.in_boot:
        client.state = State.BOOTING


def _aoe_read(client: Client, event: Event) -> Iterator[Change]:
    if not client.in_boot:
        return
    client.state = State.BOOTING
    _obeyed(client)
    yield from _reach(
        client, Stage.SAN, event.time, f"e{event.detail['shelf']}.{event.detail['slot']}"
    )
    if event.detail.get("slot") == SLOTS["root"]:
        yield from _reach(client, Stage.KERNEL, event.time)


def _obeyed(client: Client) -> None:
    """It has got what it was ordered to boot: a one-shot order is used up, whatever comes now."""
    if client.once == client.doing:
        client.once = ""


def _aoe_heard(client: Client, event: Event) -> Iterator[Change]:
    if client.state is State.LOST:
        client.state = State.RUNNING
        yield Change(What.STATE, client, event.time)


def _aoe_write(client: Client, event: Event) -> Iterator[Change]:
    # Only a mount writes to /config: this is how a client that never reports is followed.
    if client.in_boot and event.detail.get("slot") == CONFIG_SLOT:
        yield from _reach(client, Stage.CONFIG, event.time)


def _report(client: Client, event: Event) -> Iterator[Change]:
    step = str(event.detail.get("step", ""))
    text = str(event.detail.get("text", ""))
    if step == "failed":
        if client.mode == "provision":
            client.result = f"{step} {text}"
        yield from _fail(client, event.time, text or "the client gave no reason")
    elif step == "degraded":
        client.degraded = True
        if client.damage and not client.damaged:
            client.why = f"changes will be lost: {client.damage}"
            yield Change(What.STATE, client, event.time)
            return
        # It only knows that no such disk came.
        reason = f"its midlayer is damaged: {client.damage}" if client.damage else text
        larger = "`pxed midlayer resize` gives it more room, " if "No space" in reason else ""
        if larger and "layers of" in reason:
            larger += "so does `pxed image remove` of a version whose layer it has, "
        client.why = (
            f"{reason or 'changes will be lost'}; `pxed event` may say more of its disk, {larger}"
            f"`pxed client reset {client.mac}` gives it an empty one, `pxed midlayer restore` a"
            " backup"
        )
        yield Change(What.STATE, client, event.time)
    elif step == "installing" and client.mode == "provision":
        client.result = f"{step} {text}"
        client.state = State.BOOTING
        yield Change(What.STATE, client, event.time)
    elif step in RESULTS and client.mode == "provision":
        client.result = f"{step} {text}"
        client.state = State.LOCAL if step in DONE else State.FAILED
        client.why = "" if step in DONE else text
        if step in DONE:
            client.provisioned = client.image
        yield Change(What.STATE, client, event.time)
    elif step in _REPORTED:
        stage = _REPORTED[step]
        yield from _reach(client, stage, event.time, text)
        if stage is Stage.RUNNING and client.state is not State.RUNNING:
            client.state = State.RUNNING
            if not client.degraded:
                client.why = ""
            yield Change(What.STATE, client, event.time)


def _reach(client: Client, stage: Stage, time: float, detail: str = "") -> Iterator[Change]:
    """Note a stage the first time in a boot; stages that come out of order keep their place.

    What a client says of one that was seen before is noted there.
    """
    for step in client.timeline:
        if step.stage is stage:
            if step.detail in ("", UNTOLD):
                step.detail = detail or step.detail
            return
    step = Step(stage, time, detail)
    client.timeline.append(step)
    client.timeline.sort(key=lambda s: s.stage)
    yield Change(What.STAGE, client, time, step)


def _fail(client: Client, now: float, why: str) -> list[Change]:
    client.state = State.FAILED
    client.why = why
    return [Change(What.STATE, client, now)]


_HANDLERS = {
    Kind.DISCOVER: _discover,
    Kind.OFFER: _offer,
    Kind.SOLICIT6: _solicit6,
    Kind.REQUEST: _request,
    Kind.ACK: _ack,
    Kind.TFTP_DONE: _boot_file,
    Kind.HTTP_DONE: _http_file,
    Kind.AOE_READ: _aoe_read,
    Kind.AOE_HEARD: _aoe_heard,
    Kind.AOE_WRITE: _aoe_write,
    Kind.REPORT: _report,
}
