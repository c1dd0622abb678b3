"""Which machine sees what: the one place that makes views out of images and midlayers.

Unknown machines get the default view: the images' read-only devices, and nothing private.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aoe_fast import AoeError, Export, Target
from pxed.errors import HostError
from pxed.images import CONFIG_SLOT, REPORT_SLOT, SLOTS, Image
from pxed.mac import Mac, mac_bytes

log = logging.getLogger("pxed")

Bindings = dict[tuple[int, int], Export]


class Exports:
    """Opens what is exported and keeps the target's views; HostError if something cannot be opened.

    ``shelves`` maps a class to its shelf.
    """

    def __init__(self, target: Target, shelves: Mapping[str, int], durability: str) -> None:
        self._target = target
        self.shelves = shelves
        self.durability = durability  # of the midlayers that are opened from now on
        self._of_image: dict[Path, dict[int, Export]] = {}
        self._private: dict[Mac, tuple[Export | None, Export]] = {}
        self.synced = 0  # writable devices that ``close`` synced

    def show_to_all(self, images: Mapping[str, Image]) -> None:
        """The default view: the devices of each class's image at that class's shelf."""
        bindings: Bindings = {}
        for class_name, image in images.items():
            bindings |= self._image_bindings(self.shelves[class_name], image)
        self._target.set_view(None, bindings)

    def open_private(
        self, mac: Mac, config: Path | None, report: Path, *, writable: bool = True
    ) -> None:
        """Open a client's own devices (once); they are in its view from the next ``show`` on.

        ``config`` None: the report device alone. ``writable``: what is in ``config``.
        """
        if mac not in self._private:
            layer = None
            if config is not None:
                layer = _open(config, writable=writable, durability=self.durability, serial=mac)
            self._private[mac] = (
                layer,
                _open(report, writable=True, durability="writeback", serial=mac),
            )

    def close_private(self, mac: Mac) -> None:
        """Sync and let go of a client's own devices: the next ``open_private`` opens what is there.

        A view that has them keeps them until it is replaced. May block on the disk. HostError if it
        refuses; they are closed all the same.
        """
        self.take_private(mac)()

    def take_private(self, mac: Mac) -> Callable[[], None]:
        """Forget a client's own devices at once; what it returns closes them, and may block."""
        taken = self._private.pop(mac, ())

        def close() -> None:
            refused = None
            for export in taken:
                try:
                    if export is not None:
                        export.close()
                except AoeError as error:
                    refused = error
            if refused is not None:
                raise HostError(str(refused))

        return close

    def has_layer(self, mac: Mac) -> bool:
        """Whether this client's own /config is open."""
        return self._private.get(mac, (None, None))[0] is not None

    def has_private(self, mac: Mac) -> bool:
        return mac in self._private

    def show(self, macs: Sequence[Mac], class_name: str, image: Image) -> None:
        """Give this machine its view: its image, and its own devices if they are open.

        The first of ``macs`` is the one whose own devices they are; all of them see the same.
        """
        shelf = self.shelves[class_name]
        bindings = self._image_bindings(shelf, image)
        config, report = self._private.get(macs[0], (None, None))
        for slot, export in ((CONFIG_SLOT, config), (REPORT_SLOT, report)):
            if export is not None:
                bindings[shelf, slot] = export
        for mac in macs:
            self._target.set_view(mac_bytes(mac), bindings)

    def hide(self, macs: Sequence[Mac]) -> None:
        """These addresses see nothing at all."""
        for mac in macs:
            self._target.set_view(mac_bytes(mac), {})

    def drop(self, macs: Sequence[Mac]) -> None:
        """These addresses are strangers again: they see what everybody sees."""
        for mac in macs:
            self._target.drop_view(mac_bytes(mac))

    def close_image(self, image: Image) -> None:
        """Let go of an image that is removed; views that have it keep it until they change."""
        for export in self._of_image.pop(image.directory, {}).values():
            export.close()

    def close(self) -> None:
        """Sync and close everything; only after the workers have ended."""
        for raw in {raw for raw, _, _ in self._target.rows() if raw is not None}:
            self._target.drop_view(raw)
        self._target.set_view(None, {})
        for mac, pair in self._private.items():
            for export in pair:
                if export is not None:
                    self._close(mac, export)
        self._private.clear()
        for devices in self._of_image.values():
            for export in devices.values():
                export.close()
        self._of_image.clear()

    def _close(self, mac: Mac, export: Export) -> None:
        """One disk that refuses must not keep the others from being synced."""
        try:
            export.close()
            self.synced += 1
        except AoeError as error:
            log.error("%s: %s", mac, error)

    def _image_bindings(self, shelf: int, image: Image) -> Bindings:
        devices = self._of_image.get(image.directory)
        if devices is None:
            devices = {SLOTS[name]: _open(path) for name, path in image.devices.items()}
            self._of_image[image.directory] = devices
        return {(shelf, slot): export for slot, export in devices.items()}


def _open(
    path: Path, *, writable: bool = False, durability: str = "durable", serial: str = ""
) -> Export:
    try:
        # An IDENTIFY serial has 20 characters: a MAC without its colons fits.
        return Export(
            path, writable=writable, durability=durability, serial=serial.replace(":", "")
        )
    except AoeError as error:
        raise HostError(str(error)) from error
