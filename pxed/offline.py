"""What can be known of a state directory that no server serves."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from pxed import config, images, orders
from pxed.errors import UsageError
from pxed.images import Image
from pxed.seat import State
from pxed.store import Store


def uses_without_server(state_dir: Path, config_path: Path | None) -> Callable[[Image], str]:
    """What ``Library.remove`` asks: who needs an image, by the configuration and the database."""
    specs: list[tuple[str, str]] = []
    if config_path is not None:
        loaded = config.load(config_path, interface="any")
        named = [each.image for each in loaded.classes.values()]
        named += [each.image for each in loaded.clients.values()]
        specs = [(spec, "the configuration names it") for spec in named if spec]
    running = {}
    if (state_dir / "pxed.db").exists():
        with Store(state_dir / "pxed.db") as store:
            for client in store.clients():
                who = client.name or client.mac
                if client.state not in (State.FAILED, State.LOCAL) and client.image:
                    running[client.image] = f"{who} ran it when the server stopped"
                for order in (client.order, client.once):
                    if spec := orders.parse(order).image:
                        specs.append((spec, f"{who} is to boot it"))

    def uses(image: Image) -> str:
        if str(image) in running:
            return running[str(image)]
        for spec, why in specs:
            with contextlib.suppress(UsageError):
                if images.find(image.directory.parents[1], spec, "").directory == image.directory:
                    return why
        return ""

    return uses
