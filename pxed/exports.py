"""Which machine sees what: the one place that makes views out of images and midlayers.

Unknown machines get the default view: the images' read-only devices, and nothing private.
"""

from collections.abc import Mapping
from pathlib import Path

from aoe_fast import AoeError, Export, Target
from pxed.errors import HostError
from pxed.images import CONFIG_SLOT, REPORT_SLOT, SLOTS, Image
from pxed.mac import Mac, mac_bytes

Bindings = dict[tuple[int, int], Export]


class Exports:
    """Opens what is exported and keeps the target's views; HostError if something cannot be opened.

    ``shelves`` maps a class to its shelf.
    """

    def __init__(self, target: Target, shelves: Mapping[str, int], durability: str) -> None:
        self._target = target
        self._shelves = shelves
        self._durability = durability
        self._of_image: dict[Path, dict[int, Export]] = {}
        self._private: dict[Mac, tuple[Export, Export]] = {}

    def show_to_all(self, images: Mapping[str, Image]) -> None:
        """The default view: the devices of each class's image at that class's shelf."""
        bindings: Bindings = {}
        for class_name, image in images.items():
            bindings |= self._image_bindings(self._shelves[class_name], image)
        self._target.set_view(None, bindings)

    def open_private(self, mac: Mac, config: Path, report: Path) -> None:
        """Open a client's own devices (once); they are in its view from the next ``show`` on."""
        if mac not in self._private:
            self._private[mac] = (
                _open(config, writable=True, durability=self._durability, serial=mac),
                _open(report, writable=True, durability="writeback", serial=mac),
            )

    def has_private(self, mac: Mac) -> bool:
        return mac in self._private

    def show(self, mac: Mac, class_name: str, image: Image) -> None:
        """Give this machine its view: its image, and its own devices if they are open."""
        shelf = self._shelves[class_name]
        bindings = self._image_bindings(shelf, image)
        if mac in self._private:
            config, report = self._private[mac]
            bindings |= {(shelf, CONFIG_SLOT): config, (shelf, REPORT_SLOT): report}
        self._target.set_view(mac_bytes(mac), bindings)

    def close(self) -> None:
        """Sync and close everything; only after the workers have ended."""
        for mac in self._private:
            self._target.drop_view(mac_bytes(mac))
        self._target.set_view(None, {})
        for pair in self._private.values():
            for export in pair:
                export.sync()
                export.close()
        self._private.clear()
        for devices in self._of_image.values():
            for export in devices.values():
                export.close()
        self._of_image.clear()

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
