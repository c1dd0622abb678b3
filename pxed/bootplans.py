"""What a machine's DHCP answer names: boot file, iPXE script, root path or URL."""

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from pxed import scripts, signed
from pxed.choice import Choice
from pxed.dhcp.bootplan import BOOT_FILES, HTTP_FILES, BootPlan
from pxed.dhcp.classify import Firmware, arch_name, class_of
from pxed.dhcp.replies import Mode
from pxed.http.site import disk_url, efi_url, program_url, script_url
from pxed.images import SLOTS, Image
from pxed.mac import Mac
from pxed.seat import LOCAL_SCRIPT


class BootPlans:
    """Answers by firmware and by what ``choice`` says of the machine.

    ``base`` tells the URL of the HTTP service, ``mode`` how DHCP works; both may change.
    """

    def __init__(self, choice: Choice, base: Callable[[], str], mode: Callable[[], Mode]) -> None:
        self._choice = choice
        self._base = base
        self._mode = mode

    def _root_path(self, class_name: str, mode: str | None = None) -> str:
        each = self._choice.config.classes[class_name]
        slot = SLOTS["tfm"] if (mode or each.mode) == "provision" else SLOTS["boot"]
        return f"aoe:e{each.shelf}.{slot}"

    def plan(
        self, mac: Mac, firmware: Firmware, arch: int | None, _features: frozenset[int]
    ) -> BootPlan | None:
        """What this machine is told; None: it gets no answer."""
        class_name = class_of(firmware, arch)
        client = self._choice.clients.get(mac)
        if class_name not in self._choice.config.classes or not self._choice.admits(mac, client):
            return None
        each, base = self._choice.config.classes[class_name], self._base()
        mode = self._choice.mode_of(mac, class_name)
        boot_file = BOOT_FILES.get(arch if arch is not None else 0)
        if mode == "local":
            signs = each.secure_boot and arch in signed.ARCHES
            if firmware in (Firmware.RPI, Firmware.UEFI_HTTP) or signs:
                return None  # without an answer it goes on to its own disk by itself
            return BootPlan(boot_file=boot_file, script=LOCAL_SCRIPT)
        if each.secure_boot and arch in signed.ARCHES and firmware is Firmware.PXE:
            return BootPlan(boot_file=signed.SHIM)
        if each.secure_boot and arch == signed.HTTP_ARCH and firmware is Firmware.UEFI_HTTP:
            return self._secure_disk(mac, tfm=mode == "provision")
        http_file = HTTP_FILES.get(arch if arch is not None else -1)
        plan = BootPlan(
            boot_file=boot_file,
            root_path=self._root_path(class_name, mode),
            script=self._script(class_name, mode) if self._mode() is Mode.PROXY else None,
            http_url=program_url(base, http_file) if http_file else None,
            own_ipxe=each.ipxe == "own",
        )
        if class_name == "rpi" and firmware is not Firmware.RPI:
            return self._arm(plan, self._choice.image_of(mac, class_name), arch)
        if each.boot == "kernel":
            image, tfm = self._choice.image_of(mac, class_name), mode == "provision"
            # An image of before maintenance kernels were named provisions from its disk.
            if not tfm or image.maintenance is not None:
                return replace(plan, root_path=None, script=script_url(base, image, tfm=tfm))
        return plan

    def _secure_disk(self, mac: Mac, *, tfm: bool) -> BootPlan:
        image = self._choice.image_of(mac, "x86")
        if (image.maintenance if tfm else image.kernel) is None:
            what = "maintenance kernel" if tfm else "kernel"
            return BootPlan(why=f"image {image} names no {what} in its manifest: build it again")
        return BootPlan(http_url=disk_url(self._base(), image, mac, tfm=tfm))

    def _arm(self, plan: BootPlan, image: Image, arch: int | None) -> BootPlan:
        """For UEFI on ARM, which does nothing with the boot disk of a Raspberry Pi's image."""
        base = self._base()
        script = script_url(base, image) if image.kernel is not None else None
        if image.efi is not None:
            file = f"{image}.efi"
            return BootPlan(boot_file=file, script=script, http_url=efi_url(base, image))
        if script is None:
            what = f"image {image} has no kernel in its manifest, which {arch_name(arch)} needs"
            return BootPlan(why=what)
        return replace(plan, root_path=None, script=script)

    def grub(self, mac: Mac | None) -> bytes | None:
        """What GRUB of the signed chain is told to do for this machine; None: there is no chain.

        A machine that has begun with the chain goes on with it, also when a reload has ended it.
        """
        client = self._choice.clients.get(mac) if mac is not None else None
        each = self._choice.config.classes.get("x86")
        begun = client is not None and client.in_boot and client.boot_file in signed.PROGRAMS
        if each is None or not (each.secure_boot or begun):
            return None
        if mac is None or not self._choice.admits(mac, client):
            return signed.sorry(mac).encode()
        image, tfm = (
            self._choice.image_of(mac, "x86"),
            self._choice.mode_of(mac, "x86") == "provision",
        )
        kernel = image.maintenance if tfm else image.kernel
        if kernel is None:
            return signed.sorry(mac).encode()
        server = urlsplit(self._base()).hostname or ""
        folder = signed.by_tftp(server, f"{'tfm' if tfm else 'image'}/{image}")
        return signed.configuration(folder, kernel, each.shelf, mac)

    def scripts(self) -> dict[str, bytes]:
        """The iPXE scripts that TFTP serves, by name."""
        found = {LOCAL_SCRIPT: scripts.local()}
        for name in self._choice.config.classes:
            for mode in ("diskless", "provision"):
                found[self._script(name, mode)] = scripts.san(self._root_path(name, mode))
        return found

    def _script(self, class_name: str, mode: str) -> str:
        return f"{class_name}-tfm.ipxe" if mode == "provision" else f"{class_name}.ipxe"
