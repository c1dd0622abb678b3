"""Each cause of a boot that stops, provoked: the machine's events in, the cause in words out."""

from pxed.clients import Clients
from pxed.conflicts import Finding, What
from pxed.dhcp.replies import Mode
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.seat import State
from pxed.traces import Traces
from pxed.why import Scene, explain, hint

MAC = Mac("52:54:00:00:00:01")
RIVAL_MAC = Mac("52:54:00:00:00:02")


def rival(what: What = What.BOOT, *, asks_4011: bool = False) -> Finding:
    return Finding(what, RIVAL_MAC, "10.77.0.2", "boot file x", "", True, 0, 0, asks_4011)


class Boot:
    """One machine's boot, event by event, and what is said of it at any time."""

    def __init__(self, *, arch: int | None = 7, mode: Mode = Mode.PXE_ONLY) -> None:
        self.clients, self.traces = Clients(), Traces()
        self.arch, self.mode = arch, mode
        self.now = 100.0
        self.rival: Finding | None = None
        self.advertises = True

    def __call__(self, kind: Kind, **detail: object) -> "Boot":
        self.now += 0.1
        event = Event(kind, MAC, self.now, detail)
        self.clients.feed(event)
        self.traces.add(event)
        return self

    def discover(self, firmware: str = "pxe", **more: object) -> "Boot":
        return self(Kind.DISCOVER, firmware=firmware, arch=self.arch, **more)

    def offered(self, firmware: str = "pxe", **what: object) -> "Boot":
        what = {"boot_file": "snponly.efi", "root_path": ""} | what
        return self.discover(firmware)(Kind.OFFER, ip="10.77.0.50", **what)

    def acked(self, firmware: str = "pxe", **what: object) -> "Boot":
        what = {"boot_file": "snponly.efi", "root_path": ""} | what
        self.offered(firmware, **what)
        self(Kind.REQUEST, firmware=firmware, arch=self.arch, ip="10.77.0.50")
        return self(Kind.ACK, ip="10.77.0.50", **what)

    def loaded(self, file: str = "snponly.efi") -> "Boot":
        self.acked()(Kind.TFTP_READ, file=file)
        return self(Kind.TFTP_DONE, file=file)

    def san(self) -> "Boot":
        return self.loaded().acked("ipxe", boot_file="", root_path="aoe:e16.0")

    def kernel(self) -> "Boot":
        url = "http://10.77.0.1/boot/lab@1.ipxe"
        return self.loaded().acked("ipxe", boot_file=url)

    def why(self, later: float) -> str:
        (client,) = self.clients
        scene = Scene(self.mode, self.rival, self.advertises, 80, "/usr/lib/ipxe")
        reason = explain(client, self.traces.of(MAC), self.now + later, scene)
        return "" if reason is None else str(reason)


def test_no_image_for_the_class() -> None:
    boot = Boot(arch=0)
    boot.discover("rpi")(Kind.IGNORED, why="nothing is planned for this machine")
    assert "no image for its class, rpi; add [class.rpi]" in boot.why(0)


def test_a_machine_with_an_arm_processor_is_of_the_pis_class() -> None:
    boot = Boot(arch=11).discover()
    boot(Kind.IGNORED, why="nothing is planned for this machine")
    text = "no image for its class, rpi (architecture 11 (64-bit ARM UEFI)); add [class.rpi]"
    assert text in boot.why(0)
    boot = Boot(arch=19).discover("uefi-http")
    boot(Kind.IGNORED, why="image pi@1 has no kernel in its manifest, which ... needs")
    assert boot.why(0).endswith("build it again: pxed image build raspios-like")


def test_a_boot_file_that_debian_has_not_is_named_with_its_target() -> None:
    boot = Boot(arch=11).discover().offered(boot_file="snponly-arm64.efi")
    boot(Kind.REQUEST)(Kind.ACK, boot_file="snponly-arm64.efi", root_path="")
    boot(Kind.TFTP_MISSING, file="snponly-arm64.efi")
    text = boot.why(5)
    assert "it asked for snponly-arm64.efi, which is not here" in text
    assert "pxed ipxe fetch brings it" in text
    assert "/usr/lib/ipxe" in text


def test_a_kernel_in_one_program_is_waited_for_as_a_kernel() -> None:
    boot = Boot(arch=11).discover().offered(boot_file="pi@1.efi")
    boot(Kind.REQUEST)(Kind.ACK, boot_file="pi@1.efi", root_path="")
    boot(Kind.TFTP_READ, file="pi@1.efi")(Kind.TFTP_DONE, file="pi@1.efi")
    assert boot.why(60) == ""
    assert "it loaded pi@1.efi and its kernel has not found its disks" in boot.why(80)


def test_an_architecture_without_a_boot_file() -> None:
    boot = Boot(arch=12).discover()
    boot(Kind.IGNORED, why="no boot file for architecture 12")
    assert boot.why(0).startswith("no boot file for architecture 12; ")


def test_firmware_that_asks_by_ipv6_only() -> None:
    boot = Boot()(Kind.SOLICIT6, firmware="pxe", arch=7)
    assert boot.why(1) == ""
    boot(Kind.SOLICIT6, firmware="pxe", arch=7)
    assert "by IPv6 only, and pxed serves IPv4; switch on network boot by IPv4" in boot.why(6)


def test_firmware_that_asks_by_both() -> None:
    boot = Boot()(Kind.SOLICIT6, firmware="pxe", arch=7).offered()
    assert "IPv6" not in boot.why(16)
    boot = Boot().acked()(Kind.SOLICIT6, firmware="pxe", arch=7)
    assert "never asked for snponly.efi" in boot.why(16)


def test_a_range_that_is_used_up() -> None:
    boot = Boot().discover()(Kind.POOL_FULL, range="10.77.0.50-10.77.0.51")
    assert "no address is left in 10.77.0.50-10.77.0.51; widen" in boot.why(0)


def test_a_range_that_a_flood_has_on_offer() -> None:
    full = {"range": "10.77.0.50-10.77.0.59", "size": 10}
    boot = Boot().discover()(Kind.POOL_FULL, **full, unclaimed=6)
    assert "6 of the 10 addresses" in boot.why(0)
    boot = Boot().discover()(Kind.POOL_FULL, **full, unclaimed=3, free=7)
    assert "3 of the 10 addresses" in boot.why(0)
    boot = Boot().discover()(Kind.POOL_FULL, **full, unclaimed=5)
    assert "no address is left" in boot.why(0)


def test_another_servers_offer_won_and_it_said_so() -> None:
    boot = Boot().offered()
    boot(Kind.IGNORED, why="took the offer of another DHCP server, 10.77.0.2")
    boot.rival = rival()
    assert boot.why(1) == ""
    said = boot.why(2.5)
    assert said.startswith("it took the offer of another DHCP server, 10.77.0.2")
    assert str(RIVAL_MAC) in said


def test_no_request_and_a_known_boot_server() -> None:
    boot = Boot().offered()
    boot.rival = rival()
    assert boot.why(5) == ""
    assert "another server's offer won, probably that of 10.77.0.2" in boot.why(16)


def test_no_request_and_nobody_else() -> None:
    said = Boot().offered().why(16)
    assert "probably our answers do not reach it" in said
    assert "DHCP snooping" in said


def test_it_asks_again_and_again() -> None:
    boot = Boot()
    for wait in (0.1, 4, 8, 16, 20):
        boot.now += wait
        boot.offered()
    assert "did not take our offer (5 made)" in boot.why(0)


def test_pxe_e16_by_a_rival() -> None:
    boot = Boot().offered()
    boot.rival = rival(asks_4011=True)
    assert "PXE-E16; remove option 60" in boot.why(16)


def took(boot: Boot, firmware: str = "pxe") -> Boot:
    """Its REQUEST to the site's DHCP server, which everybody hears."""
    return boot(Kind.REQUEST, firmware=firmware, arch=boot.arch, ip="10.77.0.100",
                server="10.77.0.2")  # fmt: skip


def test_pxe_e16_in_proxy_mode() -> None:
    boot = took(Boot(mode=Mode.PROXY).offered())
    boot.rival = rival(What.DHCP)
    said = boot.why(16)
    assert said.startswith("it has 10.77.0.100 from the DHCP server 10.77.0.2")
    assert "PXE-E16; open port 4011/udp" in said


def test_proxy_mode_without_a_dhcp_server() -> None:
    assert "no DHCP server gave it an address" in Boot(mode=Mode.PROXY).offered().why(16)


def test_proxy_mode_and_a_dhcp_server_that_gives_it_nothing() -> None:
    boot = Boot(mode=Mode.PROXY).offered()
    boot.rival = rival(What.DHCP)
    assert "it took no address from the DHCP server 10.77.0.2" in boot.why(16)


def test_proxy_mode_on_bios_goes_to_tftp_directly() -> None:
    boot = took(Boot(mode=Mode.PROXY, arch=0).offered())
    assert "open port 69/udp" in boot.why(16)


def test_proxy_mode_and_boot_by_http() -> None:
    boot = Boot(mode=Mode.PROXY, arch=16)
    boot.offered("uefi-http", boot_file="http://10.77.0.1/ipxe/snponly.efi")
    assert "open port 80/tcp" in took(boot, "uefi-http").why(16)


def test_the_boot_file_was_never_asked_for() -> None:
    boot = Boot().acked()
    assert boot.why(5) == ""
    assert "never asked for snponly.efi; open port 69/udp" in boot.why(16)


def test_the_boot_file_was_perhaps_asked_of_another() -> None:
    boot = Boot().acked()
    boot.rival = rival()
    assert "it may load boot file x from 10.77.0.2" in boot.why(16)


def test_a_url_was_never_asked_for() -> None:
    boot = Boot(arch=16)
    boot.acked("uefi-http", boot_file="http://10.77.0.1/ipxe/snponly.efi")
    assert "open port 80/tcp" in boot.why(16)


def test_a_missing_boot_file() -> None:
    boot = Boot(arch=6).acked(boot_file="ipxe-i386.efi")
    boot(Kind.TFTP_MISSING, file="ipxe-i386.efi")
    said = boot.why(3)
    assert "asked for ipxe-i386.efi, which is not here; Debian has none of that kind" in said
    boot = Boot().acked()(Kind.TFTP_MISSING, file="snponly.efi")
    assert "install Debian's package ipxe, or put it into /usr/lib/ipxe" in boot.why(3)


def test_a_transfer_that_stopped() -> None:
    boot = Boot().acked()(Kind.TFTP_READ, file="snponly.efi")
    boot(Kind.TFTP_FAILED, file="snponly.efi", why="no answer after block 3")
    assert boot.why(1) == ""
    assert "stopped: no answer after block 3; look at its cable" in boot.why(9)


def test_nothing_but_the_size_probe() -> None:
    boot = Boot().acked()(Kind.TFTP_PROBE, file="snponly.efi")
    assert boot.why(10) == ""
    assert "asked for the size of snponly.efi" in boot.why(16)


def test_secure_boot() -> None:
    boot = Boot().loaded()
    assert boot.why(30) == ""
    assert "Secure Boot refuses" in boot.why(46)


def test_the_signed_grub_asks_who_gave_the_address() -> None:
    said = Boot(mode=Mode.PROXY).loaded("grubx64.efi").why(46)
    assert "looks for grub.cfg where the site's DHCP server says" in said
    assert "next-server" in said
    assert "UEFI HTTP boot" in said
    said = Boot().loaded("grubx64.efi").why(46)
    assert "asked for no grub.cfg: shim does not believe" in said


def test_a_disk_of_the_signed_chain_that_does_not_start() -> None:
    boot = Boot(arch=16).acked("uefi-http", boot_file="http://10.77.0.1/secure/x/lab@1.img")
    boot(Kind.HTTP_READ, file="/secure/x/lab@1.img")(Kind.HTTP_DONE, file="/secure/x/lab@1.img")
    assert boot.why(46) == ""
    assert "third-party CA" in boot.why(300)


def test_a_bios_machine_that_does_not_come_back_is_not_told_of_secure_boot() -> None:
    said = Boot(arch=0).loaded().why(46)
    assert "spanning tree" in said
    assert "Secure Boot" not in said


def test_aoe_never_answered() -> None:
    boot = Boot().san()
    assert boot.why(10) == ""
    assert "0x88A2" in boot.why(31)


def test_without_router_advertisements_ipxe_waits_longer() -> None:
    boot = Boot().san()
    boot.advertises = False
    assert boot.why(40) == ""
    assert "0x88A2" in boot.why(47)


def test_aoe_found_and_never_read() -> None:
    boot = Boot().san()(Kind.AOE_FOUND, shelf=16, slot=0)
    assert "never read from it; large frames" in boot.why(31)


def test_the_script_of_a_proxy_and_then_no_aoe() -> None:
    boot = Boot(mode=Mode.PROXY).loaded().offered("ipxe", boot_file="x86.ipxe")
    boot(Kind.TFTP_DONE, file="x86.ipxe")
    assert "0x88A2" in boot.why(31)


def test_a_kernel_that_was_never_asked_for() -> None:
    assert "open port 80/tcp" in Boot().kernel().why(16)


def test_a_kernel_that_finds_no_disk() -> None:
    boot = Boot().kernel()(Kind.HTTP_DONE, file="/image/lab@1/initrd")
    assert boot.why(60) == ""
    assert "kernel has not found its disks" in boot.why(76)


def test_a_file_that_takes_minutes_by_http() -> None:
    boot = Boot().kernel()(Kind.HTTP_READ, file="/image/lab@1/vmlinuz")
    boot(Kind.HTTP_DONE, file="/image/lab@1/vmlinuz")(Kind.HTTP_READ, file="/image/lab@1/initrd")
    assert boot.why(600) == ""
    boot(Kind.HTTP_FAILED, file="/image/lab@1/initrd", why="the client hung up")
    assert boot.why(10).startswith("loading /image/lab@1/initrd stopped: the client hung up")


def test_firmware_that_does_not_believe_shim() -> None:
    boot = Boot().acked(boot_file="shimx64.efi")(Kind.TFTP_DONE, file="shimx64.efi")
    assert "allow Microsoft's UEFI CA" in boot.why(46)


def test_a_signed_kernel_that_takes_minutes() -> None:
    boot = Boot().acked(boot_file="shimx64.efi")(Kind.TFTP_DONE, file="shimx64.efi")
    boot(Kind.TFTP_DONE, file="/image/lab@1/vmlinuz")
    assert boot.why(44) == ""
    assert "only a kernel that Debian has signed is started" in boot.why(46)
    boot(Kind.TFTP_READ, file="/image/lab@1/initrd")
    assert boot.why(600) == ""
    boot(Kind.TFTP_DONE, file="/image/lab@1/initrd")
    assert "its kernel has not found its disks" in boot.why(76)


def test_a_midlayer_that_cannot_be_made() -> None:
    boot = Boot().offered()(Kind.MIDLAYER_FAILED, why="no space left")
    assert "cannot be prepared: no space left" in boot.why(0)


def test_a_boot_that_goes_on_is_not_explained() -> None:
    boot = Boot().san()(Kind.AOE_FOUND, shelf=16, slot=0)(Kind.AOE_READ, shelf=16, slot=0)
    for later in (0, 30, 300):
        assert boot.why(later) == ""


def test_spanning_tree_between_ipxe_and_its_question() -> None:
    boot = Boot().loaded()
    boot.now += 28
    boot.discover("ipxe")
    said = str(hint(boot.traces.of(MAC)))
    assert said.startswith("28 s from loading iPXE to its first question")
    assert "portfast" in said


def test_spanning_tree_after_the_cards_own_ipxe_has_loaded_ours() -> None:
    boot = Boot(arch=0).acked("ipxe", boot_file="undionly.kpxe")
    boot(Kind.TFTP_READ, file="undionly.kpxe")(Kind.TFTP_DONE, file="undionly.kpxe")
    loaded = boot.now
    assert boot.why(44) == ""
    assert "undionly.kpxe and was not heard again" in boot.why(46)
    boot.now = loaded + 12
    boot.discover("ipxe")
    assert "12 s from loading iPXE" in str(hint(boot.traces.of(MAC)))
    boot.discover("ipxe")
    assert hint(boot.traces.of(MAC)) is None


def test_an_ipxe_that_has_loaded_its_script_was_not_refused() -> None:
    boot = Boot().loaded()(Kind.TFTP_READ, file="autoexec.ipxe")(
        Kind.TFTP_DONE, file="autoexec.ipxe"
    )
    assert boot.why(44) == ""
    said = boot.why(46)
    assert "it loaded autoexec.ipxe and was not heard again; a switch port with spanning" in said
    assert "Secure Boot" not in said


def test_spanning_tree_before_the_first_question() -> None:
    boot = Boot().discover(secs=28)
    assert "asking for 28 s before anything arrived" in str(hint(boot.traces.of(MAC)))
    assert hint(Boot().discover(secs=4).traces.of(MAC)) is None


def test_no_gap_no_hint() -> None:
    boot = Boot().loaded().discover("ipxe")
    assert hint(boot.traces.of(MAC)) is None


def test_a_slow_boot_that_was_given_up_goes_on_where_it_was() -> None:
    boot = Boot().loaded()
    (client,) = boot.clients
    boot.clients.fail(client, boot.now + 21, "Secure Boot")
    assert (client.state, client.why) == (State.FAILED, "Secure Boot")
    boot.now += 30
    boot.acked("ipxe", boot_file="", root_path="aoe:e16.0")
    assert (client.state, client.why, client.boots) == (State.BOOTING, "", 1)


def test_a_machine_that_asks_again_after_its_refusal_is_the_same_boot() -> None:
    boot = Boot(arch=12).discover()
    (client,) = boot.clients
    boot.clients.fail(client, boot.now, "no boot file")
    boot.now += 4
    boot.discover()
    assert (client.boots, client.state) == (1, State.FAILED)


def test_a_running_machine_cannot_fail_to_boot() -> None:
    boot = Boot().san()(Kind.REPORT, step="running", uptime=1.0, text="")
    (client,) = boot.clients
    assert boot.clients.fail(client, boot.now, "late") == []
    assert client.state is State.RUNNING


def test_traces_are_bounded() -> None:
    traces = Traces()
    for number in range(10_000):
        mac = Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
        traces.add(Event(Kind.DISCOVER, mac, 1.0))
    for _ in range(1000):
        traces.add(Event(Kind.DISCOVER, MAC, 1.0))
    assert len(traces.of(MAC)) <= 64
    assert len(traces._of) <= 4096
