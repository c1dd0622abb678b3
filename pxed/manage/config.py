"""The configuration of a running server: shown, and taken over again from its file."""

from pxed.config import Config
from pxed.control import Call, Json
from pxed.errors import UsageError
from pxed.manage.core import Core
from pxed.reload import Difference, differences


def reload_configuration(core: Core) -> list[Difference]:
    """Read the configuration again and take over what differs, all of it or nothing.

    UsageError if it is not valid, if an image that it names is not there, or if something in it
    needs a restart; then the server goes on exactly as before.
    """
    found, new = compare(core)
    fixed = [each.key for each in found if not each.live]
    if fixed:
        raise UsageError(
            f"nothing was taken over, because this needs a restart: {', '.join(fixed)}"
        )
    core.use_images(new.classes)
    core.config = new
    core.midlayers.size = new.midlayer.size
    core.midlayers.keep_free = new.midlayer.keep_free
    core.keeper.keep = new.events.keep
    core.exports.durability = new.midlayer.durability
    core.policy.configure(new.dhcp.router, new.dhcp.dns, new.dhcp.lease)
    for mac, override in new.clients.items():
        client = core.clients.get(mac)
        if client is not None and override.name:
            client.name = override.name  # it is said at every start: no need to save it
    for client in core.clients:
        core.clients.begin_again(client)
    return found


def compare(core: Core) -> tuple[list[Difference], Config]:
    """What the file says now against what the server runs with."""
    if core.reread is None:
        raise UsageError("this server was started without a configuration file")
    new = core.reread()
    return differences(core.config, new), new


class ManageConfig:
    """Every method is a route."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def diff(self, _call: Call) -> Json:
        return {"changes": [_line(each) for each in compare(self._core)[0]]}

    async def reload(self, _call: Call) -> Json:
        return {"changes": [_line(each) for each in reload_configuration(self._core)]}


def _line(each: Difference) -> Json:
    return {"key": each.key, "old": each.old, "new": each.new, "live": each.live}
