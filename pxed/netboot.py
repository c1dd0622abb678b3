"""The boot protocols on one interface: DHCP, TFTP, HTTP and router advertisements, joined.

What a machine boots is the application's to say (``plan``); what went over the wire goes to
``emit``. Chooses the DHCP mode at start-up where that is left to the server.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from pxed import images, ipxe, signed
from pxed.clients import Clients
from pxed.config import Config
from pxed.conflicts import GONE, Conflicts
from pxed.dhcp.bootplan import BOOT_FILES, HTTP_FILES
from pxed.dhcp.classify import RPI_OUIS
from pxed.dhcp.lease import Lease, ends
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import PlanFor, Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.dhcp.rival import Rival
from pxed.errors import HostError, UsageError
from pxed.events import Event, Kind
from pxed.http.site import Site
from pxed.mac import Mac
from pxed.net.conflicts import EVERY, ConflictWatch
from pxed.net.dhcp import DhcpServer
from pxed.net.dhcp6 import SolicitEar
from pxed.net.http import HttpServer
from pxed.net.link import Link
from pxed.net.neighbours import Neighbours
from pxed.net.ra import RouterAdvertiser
from pxed.net.rival import find_rivals
from pxed.net.tftp import TftpServer
from pxed.scripts import AUTOEXEC
from pxed.seat import Client, State
from pxed.strangers import is_stranger, proves
from pxed.tftp.files import Files
from pxed.tftp.session import File
from pxed.tftp.trees import Trees
from pxed.why import Scene

log = logging.getLogger("pxed")

GRACE = 10.0  # seconds that a machine runs before its temporary lease is taken back
LOOK = 1.5  # seconds that a start in mode auto or all waits for another DHCP server's answer


def _is_pi(client: Client) -> bool:
    return client.class_name == "rpi" and client.firmware not in ("pxe", "ipxe", "uefi-http")


class NetBoot:
    """Between ``start`` and ``close``; ``start`` raises PxedError and leaves nothing behind.

    ``leases`` are those from before, and ``keep`` is told of each that changes. ``scripts`` are
    the iPXE scripts that TFTP serves by name, ``image_of`` gives the image that a machine of a
    class would boot now. After ``start``: ``mode``, ``leases``, ``policy``, ``dhcp``, ``tftp``,
    ``http``.
    """

    def __init__(
        self,
        config: Config,
        link: Link,
        clients: Clients,
        leases: Iterable[Lease],
        *,
        keep: Callable[[Lease], None],
        plan: PlanFor,
        image_of: Callable[[Mac, str], images.Image],
        scripts: Mapping[str, bytes],
        grub: Callable[[Mac | None], bytes | None],
        emit: Callable[[Event], None],
    ) -> None:
        self.config = config
        self.link = link
        self.mode = Mode.PXE_ONLY
        self._clients = clients
        self._known_leases = leases
        self._keep = keep
        self._plan = plan
        self._image_of = image_of
        self._timers: dict[Mac, asyncio.TimerHandle] = {}
        self._leasing: list[Rival] = []  # other DHCP servers that were there at the start
        self._scripts = scripts
        self._ipxe = ipxe.directory(config)  # what is fetched meanwhile is for the next start
        self._grub = grub
        self._emit = emit
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop everything in reverse order; closing twice is fine."""
        await self._stack.aclose()

    async def _start(self) -> None:
        config, link = self.config, self.link
        self.leases = self._pool()
        self._neighbours = Neighbours(config.interface)
        self._trees = Trees(
            self._files(), self.mac_of, self._tree_of, self._common_tree, self._is_known,
            self._program_of, self._grub, self._kernel_of,
        )  # fmt: skip
        self._stack.callback(self._trees.close)
        self._stack.callback(self._cancel_timers)
        self.mode = await self._choose_mode()
        self.conflicts = Conflicts(
            self.mode,
            lambda ip: ip in self.leases,
            gone=GONE,
            auto=config.dhcp.mode == "auto",
            signed=lambda: any(each.secure_boot for each in self.config.classes.values()),
        )
        address = link.address()
        settings = Settings(
            mode=self.mode,
            server=address.ip,
            prefixlen=address.network.prefixlen,
            router=config.dhcp.router,
            dns=config.dhcp.dns,
            lease=config.dhcp.lease,
        )
        self.policy = Policy(settings, self.leases, self._plan)
        self.dhcp = DhcpServer(link, self.policy, self._emit)
        self.tftp = TftpServer(
            link,
            self._trees.open,
            self._emit,
            mac_of=self.mac_of,
            largest_block=self._largest_block,
            single_port=config.tftp.single_port,
            spin_us=config.aoe.spin_us,
            # A whole room may ask before its first packet is looked at: nobody's own transfer
            # makes room for a neighbour's.
            max_silent=max(512, config.aoe.max_clients),
            max_sessions=max(2048, 2 * config.aoe.max_clients),
        )
        shelves = {name: each.shelf for name, each in config.classes.items()}
        programs = {*BOOT_FILES.values(), *HTTP_FILES.values()}
        self._site = Site(self._image, shelves, self._ipxe, programs)
        self.http = HttpServer(
            link,
            config.http.port,
            self._site,
            self._emit,
            base=lambda: self.base,
            mac_of=self.mac_of,
        )
        for service in (self.tftp, self.http, self.dhcp):  # DHCP last: it names the others
            await service.start()
            self._stack.push_async_callback(service.close)
        if config.dhcp.router_advertisement:
            advertiser = RouterAdvertiser(link, self._in_boot_phase, self._emit)
            await advertiser.start()
            self._stack.push_async_callback(advertiser.close)
        ear = SolicitEar(link, self._emit)
        await ear.start()
        self._stack.push_async_callback(ear.close)
        self.watch = ConflictWatch(
            link, self.conflicts, self._emit, shelves=set(shelves.values()), every=EVERY
        )
        await self.watch.start()
        self._stack.push_async_callback(self.watch.close)
        for rival in self._leasing:
            for event in self.conflicts.dhcp(rival, time.time()):
                self._emit(event)

    def _pool(self) -> Leases:
        config, address = self.config, self.link.address()
        taken = {address.ip} | ({config.dhcp.router} if config.dhcp.router else set())
        first, last = ends(config.dhcp.range, address.network, taken, config.interface)
        leases = Leases(first, last, exclude=taken, on_change=self._keep)
        leases.restore(self._known_leases, time.time(), self._is_known)
        return leases

    def _files(self) -> Files:
        root = self._ipxe
        if not root.is_dir():
            raise UsageError(
                f"[tftp] root = {root}: no such directory: install Debian's package ipxe, "
                "or name the directory with iPXE's files"
            )
        virtual = dict(self._scripts)
        if (autoexec := ipxe.script(root)) is not None:
            virtual[AUTOEXEC] = autoexec
        aliases = {**signed.files(), **ipxe.stand_ins(root)}
        return Files(root, virtual=virtual, aliases=aliases, fold_case=self.config.tftp.fold_case)

    def _largest_block(self, mac: Mac | None) -> int:
        """The TFTP block size that a machine gets at most, whatever it asks for."""
        one = self.config.clients.get(mac) if mac is not None else None
        return (one.max_blksize if one else None) or self.config.tftp.max_blksize

    # The mode

    async def _choose_mode(self) -> Mode:
        """``auto``: beside another DHCP server only boot information, else leases for firmware.

        HostError for ``all`` where another server answers, unless that is forced.
        """
        wanted = self.config.dhcp.mode
        if wanted not in ("auto", "all") or (wanted == "all" and self.config.dhcp.force):
            return Mode(wanted)
        rivals = await find_rivals(self.link, LOOK, enough=lambda rival: rival.leases)
        leasing = self._leasing = [rival for rival in rivals if rival.leases]
        if wanted == "all":
            if leasing:
                raise HostError(
                    f'[dhcp] mode = "all": {leasing[0]}: stop that one, or use mode = "auto", '
                    "or set [dhcp] force = true"
                )
            return Mode.ALL
        if leasing:
            mode, why = Mode.PROXY, f"{leasing[0]}; it hands out addresses, pxed what to boot"
        else:
            mode = Mode.PXE_ONLY
            why = f"no other DHCP server answered within {LOOK:g} s; pxed leases to boot firmware"
        self._say(mode, why)
        return mode

    def _say(self, mode: Mode, why: str) -> None:
        log.info('[dhcp] mode = "auto": %s: %s', mode, why)
        self._emit(Event(Kind.MODE, None, time.time(), {"mode": str(mode), "why": why}))

    def _choose_again(self) -> None:
        """``auto``: a DHCP server has turned up, or the last one has gone."""
        found = self.conflicts.leasing()
        if (found is not None) == (self.mode is Mode.PROXY):
            return
        if found is not None:
            mode = Mode.PROXY
            why = (
                f"the DHCP server {found.ip} ({found.mac}) has turned up: it hands out addresses, "
                "pxed what to boot; leases that pxed gave run on to their end"
            )
        else:
            mode = Mode.PXE_ONLY
            why = (
                "no DHCP server answers here any more; pxed leases to boot firmware until one does"
            )
        try:
            self.dhcp.set_mode(mode)
        except HostError as error:
            text = f'[dhcp] mode = "auto" stays {self.mode}: {error}'
            self._emit(Event(Kind.ALARM, None, time.time(), {"text": text}))
            return
        self.mode = self.conflicts.mode = mode
        self._say(mode, why)

    # What the others ask

    @property
    def base(self) -> str:
        """The URL of our HTTP service; it follows the server's address."""
        port = self.config.http.port
        return f"http://{self.policy.settings.server}{'' if port == 80 else f':{port}'}"

    def open_file(self, name: str) -> File:
        """What TFTP would serve under this name to a machine without an address; TftpError."""
        return self._trees.open(name, "")

    def has_url(self, url: str) -> bool:
        """Whether our HTTP server has something under this URL."""
        path = url.removeprefix(self.base)
        return path != url and self._site.find(path, self.base) is not None

    def loads(self, mac: Mac) -> bool:
        """Whether this machine is taking a file, by TFTP or by HTTP."""
        return self.tftp.loads(mac) or self.http.loads(mac)

    def scene(self) -> Scene:
        """What explains a boot that stopped, beside the machine itself."""
        return Scene(
            self.mode,
            self.conflicts.booter(),
            self.config.dhcp.router_advertisement,
            self.config.http.port,
            str(self._ipxe),
        )

    def update(self, link: Link) -> bool:
        """The interface has an address, maybe another one (M1); True if that is new."""
        self.link = link
        self.watch.follow(link)
        self.tftp.follow(link)
        address = link.address()
        return self.policy.update_server(address.ip, address.network.prefixlen)

    def mac_of(self, ip: str) -> Mac | None:
        """Whose address this is: our lease knows, the kernel, or else the client's record."""
        with contextlib.suppress(ValueError):
            if (mac := self.leases.owner(IPv4Address(ip), time.time())) is not None:
                return mac
        if (mac := self._neighbours.mac_of(ip)) is not None:
            return mac
        return next((client.mac for client in self._clients if client.ip == ip), None)

    def heard(self, event: Event) -> None:
        """What an event means for the boot protocols themselves."""
        serial = event.detail.get("serial") if event.kind is Kind.DISCOVER else None
        if serial and event.mac is not None:
            self._trees.learn(str(serial), event.mac)
        if event.kind is Kind.TFTP_READ and event.mac is not None:
            self.policy.taken(event.mac, event.time)
        if event.mac is not None and proves(event):
            self.leases.used(event.mac, time.time())
        if event.kind in (Kind.RIVAL, Kind.RIVAL_GONE):
            self.policy.beside = self.conflicts.leasing() is not None
            if self.config.dhcp.mode == "auto":
                self._choose_again()

    def settled(self, mac: Mac) -> None:
        """The machine runs: its temporary lease goes back to the pool soon (M3)."""
        if self.mode is not Mode.PXE_ONLY or mac in self._timers:
            return
        loop = asyncio.get_running_loop()
        self._timers[mac] = loop.call_later(GRACE, self._give_back, mac)

    def _give_back(self, mac: Mac) -> None:
        del self._timers[mac]
        client = self._clients.get(mac)
        now = time.time()
        lease = self.leases.of(mac, now)
        if client is None or client.state is not State.RUNNING or lease is None:
            return
        if self.leases.release(mac, lease.ip, now):
            self._emit(Event(Kind.RELEASE, mac, now, {"ip": str(lease.ip), "why": "it runs"}))

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _in_boot_phase(self, mac: Mac) -> bool:
        """Whether a router solicitation is answered.

        iPXE solicits before its first DISCOVER, so a machine that has booted here before is one,
        unless it is known to run a system: no other host is ever answered.
        """
        client = self._clients.get(mac)
        return client is not None and (
            client.in_boot or client.state in (State.SEEN, State.FAILED, State.LOST)
        )

    # Raspberry Pis

    def _tree_of(self, mac: Mac) -> Path | None:
        client = self._clients.get(mac)
        # A UEFI machine of this class loads iPXE, and its kernel by HTTP.
        pi = _is_pi(client) if client is not None else mac[:8] in RPI_OUIS
        if not pi or "rpi" not in self.config.classes:
            return None
        return self._image_of(mac, "rpi").tree

    def _is_known(self, mac: Mac) -> bool:
        client = self._clients.get(mac)
        return client is not None and not is_stranger(client)

    def _common_tree(self) -> Path | None:
        return self._image_of(Mac(""), "rpi").tree if "rpi" in self.config.classes else None

    def _program_of(self, spec: str) -> Path | None:
        with contextlib.suppress(UsageError):
            return self._image(spec).efi
        return None

    def _kernel_of(self, path: str) -> Path | None:
        """What GRUB loads of an image by TFTP is what iPXE loads by HTTP."""
        found = self._site.find(f"/{path}", self.base)
        return found.path if found is not None else None

    def _image(self, spec: str) -> images.Image:
        return images.find(self.config.images_dir, spec, "")
