"""What each machine is to boot, and whether it may: configuration, orders and images together."""

import contextlib
from collections.abc import Mapping

from pxed import images, ipxe, orders, provision, signed
from pxed.clients import Clients
from pxed.config import Class, Config, Provision
from pxed.errors import PxedError, UsageError
from pxed.mac import Mac
from pxed.probe import DOCTOR
from pxed.seat import Client, State


def in_use(client: Client) -> bool:
    """Whether this machine may be using its devices now, or come back to them."""
    return client.in_boot or client.state in (State.RUNNING, State.LOST)


class Choice:
    """``config`` may be replaced at any time; ``images`` is what booting clients get, by class.

    ``use`` comes first; ``clients`` are those that the database knows, as soon as it was read.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clients = Clients()
        self.images: dict[str, images.Image] = {}

    def use(self, classes: Mapping[str, Class] | None = None) -> dict[str, images.Image]:
        """Look up again what booting clients get; all or nothing. UsageError if one is missing."""
        found = {
            name: images.find(self.config.images_dir, each.image, name)
            for name, each in (classes or self.config.classes).items()
        }
        self.images = found
        return found

    def check(self, classes: Mapping[str, Class] | None = None) -> None:
        """UsageError for a class whose image has not what its settings need."""
        for name, each in (classes or self.config.classes).items():
            where, image = f"[class.{name}]", self.images[name]
            if each.mode == "provision":
                try:
                    image.check_installable()
                except UsageError as error:
                    raise UsageError(f'{where} mode = "provision": {error}') from None
            if name == "rpi" and image.tree is None:
                raise UsageError(
                    f"{where} image {image} has no boot directory: name one in its manifest, "
                    '"tree": "DIRECTORY"'
                )
            if each.boot == "kernel" and name != "x86":
                raise UsageError(f'{where} boot = "kernel": is for class x86 only')
            if each.secure_boot and each.boot != "kernel":
                raise UsageError(f'{where} secure_boot = true: needs boot = "kernel"')
            if each.secure_boot and (missing := signed.missing(ipxe.directory(self.config))):
                raise UsageError(f"{where} secure_boot = true: {missing}")
            kernel = image.maintenance if each.mode == "provision" else image.kernel
            if each.boot == "kernel" and kernel is None:
                what = "maintenance kernel" if each.mode == "provision" else "kernel"
                raise UsageError(
                    f'{where} boot = "kernel": image {image} names no {what} in its manifest: '
                    'build it again, or use boot = "san"'
                )

    def admits(self, mac: Mac, client: Client | None) -> bool:
        """Whether this machine may boot here; a simulated one of the doctor's always may.

        The doctor's is no client: a machine on the wire that borrows its address is one.
        """
        if client is None:
            open_to_all = self.config.admission.admit == "all"
            return mac == DOCTOR or open_to_all or mac in self.config.clients
        if client.admission:
            return client.admission == "approved"
        known = any(each in self.config.clients for each in client.all_macs)
        return known or self.config.admission.admit == "all"

    def pinned(self, client: Client) -> images.Image | None:
        """The image that this client runs, or else would boot now; None for no class here."""
        if client.class_name not in self.config.classes:
            return None
        if client.image and in_use(client):
            with contextlib.suppress(PxedError):
                return images.find(self.config.images_dir, client.image, client.class_name)
        return self.image_for(client)

    def image_for(self, client: Client) -> images.Image:
        return self.image_of(client.mac, client.class_name)

    def image_of(self, mac: Mac, class_name: str) -> images.Image:
        """The image that this machine of this class would boot now; the MAC may be unknown."""
        client = self.clients.get(mac)
        if client is not None and (spec := orders.parse(client.doing).image):
            return images.find(self.config.images_dir, spec, class_name)
        return self.usual_image(mac, class_name)

    def usual_image(self, mac: Mac, class_name: str) -> images.Image:
        """What it would boot with no order for an image of its own."""
        client = self.clients.get(mac)
        override = self.config.clients.get(client.mac if client is not None else mac)
        if override is not None and override.image is not None:
            return images.find(self.config.images_dir, override.image, class_name)
        return self.images[class_name]

    def mode_of(self, mac: Mac, class_name: str) -> str:
        """``diskless``, ``provision`` or ``local``; the MAC may be unknown.

        A machine that provisions at every boot goes on to its disk if it got this image already.
        """
        client = self.clients.get(mac)
        mode = (orders.parse(client.ordered).mode if client is not None else "") or (
            self.config.classes[class_name].mode
        )
        if mode == "provision" and client is not None and client.once != "provision":
            with contextlib.suppress(PxedError):
                if client.provisioned == str(self.image_of(mac, class_name)):
                    return "local"
        return mode

    def stuck(self) -> list[str]:
        """Who is ordered to install what cannot be installed, and why, a line for each."""
        found = []
        for client in self.clients:
            if "provision" not in (client.once, client.order):
                continue
            try:
                if client.class_name in self.config.classes:
                    self.usual_image(client.mac, client.class_name).check_installable()
            except PxedError as error:
                found.append(f"{client.name or client.mac} will not be provisioned: {error}")
        return found

    def policy_of(self, client: Client) -> Provision | None:
        """How this machine is provisioned; None: the installer asks."""
        override = self.config.clients.get(client.mac)
        return provision.policy(
            self.config.classes[client.class_name].provision,
            override.provision if override is not None else None,
        )

    def uses(self, image: images.Image) -> str:
        """Who needs this image, in one line; empty for nobody. Any thread may ask."""
        for name, each in self.images.items():
            if each.directory == image.directory:
                return f"clients of class {name} boot it: pxed image use another version first"
        for client in list(self.clients):
            who = client.name or client.mac
            if client.image == str(image) and (in_use(client) or client.state is State.SEEN):
                return (
                    f"{who} ({client.state.value}) runs it; "
                    f"if it never comes back: pxed client forget {who}"
                )
            override = self.config.clients.get(client.mac)
            specs = [override.image] if override and override.image else []
            specs += [orders.parse(order).image for order in (client.order, client.once)]
            for spec in specs:
                with contextlib.suppress(UsageError):
                    if spec and images.find(self.config.images_dir, spec, "") == image:
                        return f"{who} is to boot it ({spec})"
        return ""
